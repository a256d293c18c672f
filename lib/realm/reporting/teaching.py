"""The figure of notebook 04's experiment: whose questions teach better, in paired differences, and how it scales."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from realm.evaluation.lessons import called
from realm.evaluation.teaching import BASE, EQUAL_TOKENS, REALCHAT
from realm.reporting.drawing import ACCENT, OURS, SECOND, Drawn, redrawable

COLORS = {REALCHAT: OURS, "humans": SECOND}


@redrawable
def teaching(table: pd.DataFrame, title: str) -> Drawn:
    """Paired differences of perplexity with their intervals: each student minus the base model, students minus each
    other, and, where there are several, parts of RealChat minus the base model. ``table``: as
    ``lessons.differences_table`` gives it.
    """
    of_base, fair = table.other == BASE, table.way.isin(("", EQUAL_TOKENS))
    sizes = table[of_base & (table.one == REALCHAT) & (table.way != EQUAL_TOKENS)].sort_values("conversations")
    widths = (3, 3, 2) if len(sizes) > 1 else (3, 3)
    figure, (gains, pairs, *parts) = plt.subplots(
        1, len(widths), figsize=(1.5 * sum(widths) + 0.5, 3.6), width_ratios=widths
    )
    _differences(gains, table[of_base & fair], "What did it teach?\nEach minus the untrained base model")
    _differences(pairs, table[~of_base & fair], "Who teaches better?\nOne student minus the other")
    for axes in parts:
        _parts(axes, sizes)
    figure.suptitle(title)
    note = f"95 % bootstrap intervals of paired differences over {table.n.max()} held-out conversations"
    figure.supxlabel(f"{note}; filled: equal conversations, hollow: equal supervised tokens", fontsize=9)
    return figure, table


def _differences(axes: Axes, table: pd.DataFrame, title: str) -> None:
    lines = list(dict.fromkeys(zip(table.one, table.other, strict=True)))
    axes.axvline(0, color="black", linewidth=1)
    for row in table.itertuples():
        hollow, color = row.way == EQUAL_TOKENS, COLORS.get(row.one, ACCENT)
        axes.errorbar(
            row.difference,
            lines.index((row.one, row.other)) + (0.14 if hollow else -0.14),
            xerr=[[row.difference - row.ci_low], [row.ci_high - row.difference]],
            fmt="o",
            color=color,
            markerfacecolor="white" if hollow else color,
            capsize=4,
        )
    names = [called(one) if other == BASE else f"{called(one)}\nminus {called(other)}" for one, other in lines]
    axes.set_yticks(range(len(lines)), names)
    axes.set_ylim(max(len(lines), 1) - 0.5, -0.5)
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("difference of perplexity\n← left of 0: the first is better", fontsize=9)


def _parts(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axhline(0, color="black", linewidth=1)
    reach = [rows.difference - rows.ci_low, rows.ci_high - rows.difference]
    axes.errorbar(rows.conversations, rows.difference, reach, color=OURS, marker="o", capsize=4)
    axes.set_xlim(left=0)
    axes.set_title("Does more RealChat\nteach more?", fontsize=10)
    axes.set_xlabel("conversations of RealChat", fontsize=9)
    axes.set_ylabel("minus the base model", fontsize=9)
