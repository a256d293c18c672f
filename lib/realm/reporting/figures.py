"""Plots, each a figure function as ``drawing`` wants them: saved as PNG together with the CSV of the very numbers it
shows, and drawn anew from that CSV alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from realm.reporting.drawing import ACCENT, OURS, PUBLISHED, SECOND, Drawn, redrawable
from realm.reporting.drawing import save as save  # notebooks draw and save from one room

FEW_STEPS, FEW_VALUES = 20, 20


def funnel_beside(ours: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Sessions left after each of the paper's steps, and their share of those read: ours beside the published ones.

    ``ours``: columns step, sessions. ``published``: columns step, sessions, ours (our step of the same rule).
    """
    table = published.merge(ours.rename(columns={"step": "ours", "sessions": "sessions_ours"}), on="ours")
    table["share_published"] = table.sessions / table.sessions.iloc[0]
    table["share_ours"] = table.sessions_ours / table.sessions_ours.iloc[0]
    return table


@redrawable
def funnel(table: pd.DataFrame) -> Drawn:
    """Our funnel beside the published one. ``table``: as ``funnel_beside`` gives it."""
    figure, axes = plt.subplots(figsize=(10, 4.2))
    y = np.arange(len(table))
    for offset, share, count, color, label in (
        (-0.2, table.share_published, table.sessions, PUBLISHED, f"published ({table.sessions.iloc[0]:,} sessions)"),
        (0.2, table.share_ours, table.sessions_ours, OURS, f"this run ({table.sessions_ours.iloc[0]:,} sessions)"),
    ):
        axes.barh(y + offset, 100 * share, 0.38, color=color, label=label)
        for position, (s, c) in enumerate(zip(share, count, strict=True)):
            axes.text(100 * s + 1, position + offset, f"{c:,}", va="center", fontsize=10)
    axes.set_yticks(y, table.step)
    axes.invert_yaxis()
    axes.set_xlim(0, 115)
    axes.set_xlabel("sessions left, % of those read (bar labels: sessions)")
    axes.set_title("Cleaning ShareGPT by the paper's steps")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure, table


@redrawable
def bars(table: pd.DataFrame, label: str, value: str, xlabel: str, title: str) -> Drawn:
    """Horizontal bars in the table's order, each with its number. ``label`` and ``value`` name columns."""
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.3 * len(table)))
    axes.barh(table[label], table[value], color=OURS)
    for i, number in enumerate(table[value]):
        axes.text(number, i, f" {number:,.3g}" if number < 1_000 else f" {number:,.0f}", va="center", fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    return figure, table


@redrawable
def topics(table: pd.DataFrame, title: str) -> Drawn:
    """A point a text, coloured by topic, the largest topics first. ``table``: x, y, topic (its terms)."""
    table = table.sort_values(["topic", "x", "y"], ignore_index=True)
    sizes = table.topic.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    colors = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(figsize=(9.5, 5.2))
    for i, (topic, n) in enumerate(sizes.items()):
        points = table[table.topic == topic]
        marker = "os^D"[i // len(colors) % 4]
        axes.scatter(points.x, points.y, s=9, marker=marker, color=colors[i % len(colors)], label=f"{topic} ({n:,})")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)
    figure.legend(loc="outside right upper", fontsize=10, markerscale=2)
    return figure, table


def histograms(columns: Mapping[str, Mapping[str, Sequence[float]]], log: bool) -> pd.DataFrame:
    """Shares of values by bin (x label -> series name -> values), so that sizes can differ; a row a bin and series:
    measure, series, n (of the series), from, to, share. A series without values has no rows."""
    rows = []
    for label, series in columns.items():
        series = {name: values for name, values in series.items() if len(values)}
        top = max((max(v) for v in series.values()), default=1)
        edges = np.geomspace(1, top + 1, 25) if log else np.arange(0.5, top + 1.5)
        edges = np.unique(np.floor(edges)) if log else edges
        for name, values in series.items():
            share = np.histogram(values, edges)[0] / len(values)
            rows += [
                {"measure": label, "series": name, "n": len(values), "from": a, "to": b, "share": s}
                for a, b, s in zip(edges[:-1], edges[1:], share, strict=True)
            ]
    return pd.DataFrame(rows, columns=["measure", "series", "n", "from", "to", "share"])


@redrawable
def distributions(
    columns: Mapping[str, Mapping[str, Sequence[float]]] | pd.DataFrame, title: str, log: bool = True
) -> Drawn:
    """One histogram a column, of values as ``histograms`` takes them, or of the table that it gives."""
    table = columns if isinstance(columns, pd.DataFrame) else histograms(columns, log)
    measures = list(dict.fromkeys(table.measure))
    figure, axes = plt.subplots(1, max(1, len(measures)), figsize=(4.6 * max(1, len(measures)), 3.6), squeeze=False)
    for axis, label in zip(axes[0], measures, strict=False):
        series = table[table.measure == label].groupby("series", sort=False)
        for (name, bins), color in zip(series, (OURS, ACCENT, SECOND, PUBLISHED), strict=False):
            edges = [*bins["from"], bins["to"].iloc[-1]]
            axis.stairs(100 * bins.share, edges, color=color, linewidth=1.8, label=f"{name} (n = {bins.n.iloc[0]:,})")
        axis.set_xlabel(label)
        axis.set_ylabel("share, %")
        if log and table[table.measure == label]["to"].max() > FEW_VALUES:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= 100])
        axis.set_ylim(0, 1.4 * 100 * table[table.measure == label].share.max())  # the names stand above all lines
        axis.legend(fontsize=10, loc="upper right")
    figure.suptitle(title)
    return figure, table


@redrawable
def loss_curve(log: Sequence[Mapping[str, float]], title: str) -> Drawn:
    """Training loss a step, and its running mean. ``log``: records with step, loss (nats per token), learning_rate."""
    table = pd.DataFrame(log)[["step", "loss", "learning_rate"]].astype(float)
    table["running_mean"] = table.loss.ewm(span=max(3, len(table) // 5)).mean()
    figure, axes = plt.subplots(figsize=(6.5, 3.6))
    dot = "o" if len(table) <= FEW_STEPS else None  # a line through one point is none
    axes.plot(table.step, table.loss, color=PUBLISHED, linewidth=1, marker=dot, label="each step")
    axes.plot(table.step, table.running_mean, color=OURS, linewidth=2, label="running mean")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per supervised token")
    axes.set_title(title)
    axes.legend()
    return figure, table


@redrawable
def before_after(table: pd.DataFrame, ylabel: str, title: str) -> Drawn:
    """Bars with 95 % intervals. ``table``: columns label, value, ci_low, ci_high, n."""
    figure, axes = plt.subplots(figsize=(2.6 + 1.5 * len(table), 4.4))
    colors = [PUBLISHED, OURS, ACCENT, SECOND][: len(table)]
    axes.bar(table.label, table.value, 0.6, color=colors)
    error = [table.value - table.ci_low, table.ci_high - table.value]
    axes.errorbar(table.label, table.value, error, fmt="none", color="black", capsize=4)
    for i, row in table.reset_index(drop=True).iterrows():
        axes.text(i + 0.05, row.value, f" {row.value:.3g}", va="bottom", ha="left", fontsize=10)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"95 % bootstrap intervals over conversations, n = {table.n.iloc[0]}")
    return figure, table


@redrawable
def controls(table: pd.DataFrame, title: str) -> Drawn:
    """Perplexity with 95 % intervals, a panel a kind of turn. ``table``: as ``user_turns.comparison`` gives it."""
    kinds = [k for k in ("all", "first", "later") if k in set(table.turns)]
    heads = {"all": "all human turns", "first": "turns that open a session", "later": "later turns"}
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 3.4), squeeze=False, sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = table[table.turns == kind].reset_index(drop=True)
        colors = [OURS if m.endswith("UserGPT") else PUBLISHED if m.startswith("(a)") else ACCENT for m in rows.model]
        axis.errorbar(
            rows.perplexity,
            rows.model,
            xerr=[rows.perplexity - rows.ci_low, rows.ci_high - rows.perplexity],
            fmt="none",
            color="black",
            capsize=4,
        )
        axis.scatter(rows.perplexity, rows.model, c=colors, s=60, zorder=3)
        axis.set_xlabel(f"perplexity (n = {rows.n.iloc[0]})")
        axis.set_title(heads[kind], fontsize=10)
    axes[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure, table


@redrawable
def published_scores(
    published: pd.DataFrame,
    column: str,
    highlight: str,
    xlabel: str,
    title: str,
    source: str,
    error: str | None = None,
) -> Drawn:
    """Published scores of several systems, best on top, the paper's own highlighted. Nothing of ours in it."""
    table = published.sort_values(column, ascending=False, ignore_index=True, kind="stable")
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.33 * len(table)))
    colors = [ACCENT if m == highlight else PUBLISHED for m in table.model]
    axes.barh(table.model, table[column], color=colors, xerr=table[error] if error else None)
    reach = table[column] + (table[error] if error else 0)
    for i, value in enumerate(table[column]):
        axes.text(reach[i] + 0.01 * table[column].max(), i, f"{value:.2f}", va="center", fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * reach.max())
    axes.set_xlabel(f"{xlabel}\npublished; source: {source}", fontsize=10)
    axes.set_title(title)
    return figure, table


@redrawable
def mt_bench_by_category(table: pd.DataFrame, title: str, source: str) -> Drawn:
    """Scores by category on a radar's spokes laid flat. ``table``: group, score, ci_low, ci_high, n."""
    shown = table[~table.group.str.startswith(("overall", "turn"))]
    overall = table[table.group == "overall"].score.iloc[0]
    figure, axes = plt.subplots(figsize=(8, 3.8))
    axes.bar(shown.group, shown.score, 0.65, color=ACCENT)
    error = [shown.score - shown.ci_low, shown.ci_high - shown.score]
    axes.errorbar(shown.group, shown.score, error, fmt="none", color="black", capsize=4)
    axes.axhline(overall, color="black", linestyle="--", linewidth=1)
    lowest = int(np.argmin(shown.score))  # above the lowest bar the label stands free
    axes.text(lowest, overall + 0.1, f"overall {overall:.2f}", ha="center", fontsize=10)
    axes.set_ylim(0, 10.5)
    axes.set_ylabel("score, 1 to 10")
    axes.set_xlabel(f"95 % bootstrap intervals over questions; published; source: {source}", fontsize=10)
    axes.set_title(title)
    axes.tick_params(axis="x", labelrotation=20)
    return figure, table
