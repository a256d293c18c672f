"""The figure of notebook 04's experiment: who learned how much from whose questions, and how RealChat scales."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from realm.evaluation.teaching import BASE, EQUAL_TOKENS, REALCHAT
from realm.reporting.drawing import ACCENT, OURS, PUBLISHED, SECOND, Drawn, redrawable

COLORS = {BASE: PUBLISHED, REALCHAT: OURS, "humans": SECOND}


@redrawable
def teaching(table: pd.DataFrame, title: str) -> Drawn:
    """Perplexity of the responder's answers to held-out humans, by student, and over RealChat's share.

    ``table``: as ``lessons.lessons_table`` gives it.
    """
    compared = table[table.way.isin(("", EQUAL_TOKENS))]
    scaling = table[(table.corpus == BASE) | ((table.corpus == REALCHAT) & (table.way != EQUAL_TOKENS))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(3, 2), sharey=True)
    _students(left, compared)
    rows = scaling.sort_values("conversations")
    right.errorbar(
        rows.conversations,
        rows.perplexity,
        [rows.perplexity - rows.ci_low, rows.ci_high - rows.perplexity],
        color=OURS,
        marker="o",
        capsize=4,
    )
    right.set_xlabel("conversations of RealChat (0: the base model)")
    left.set_ylabel("perplexity, lower is better")
    figure.suptitle(title)
    note = f"95 % bootstrap intervals over {table.n.max()} held-out conversations; paired differences: the table"
    figure.supxlabel(note, fontsize=9)
    return figure, table


def _students(axes: Axes, table: pd.DataFrame) -> None:
    """Filled: equal numbers of conversations; hollow: equal supervised tokens."""
    corpora = list(dict.fromkeys(table.corpus))
    for row in table.itertuples():
        hollow, color = row.way == EQUAL_TOKENS, COLORS.get(row.corpus, ACCENT)
        axes.errorbar(
            corpora.index(row.corpus) + (0.15 if hollow else -0.15 if row.corpus != BASE else 0),
            row.perplexity,
            [[row.perplexity - row.ci_low], [row.ci_high - row.perplexity]],
            fmt="o",
            color=color,
            markerfacecolor="white" if hollow else color,
            capsize=4,
        )
    axes.set_xticks(range(len(corpora)), corpora)
    axes.set_xlabel("whose questions (filled: equal conversations, hollow: equal supervised tokens)", fontsize=8)
