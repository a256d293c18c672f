"""This run's own MT-Bench scores as one figure; no published score stands in it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd

from realm.reporting.drawing import ACCENT, OURS, PUBLISHED, SECOND, Drawn, redrawable

COLORS = (PUBLISHED, OURS, ACCENT, SECOND)  # base, ReaLM, and whatever the profile puts beside them


@redrawable
def judged(table: pd.DataFrame) -> Drawn:
    """Scores of 1 to 10 by group, a dot a model, with the bootstrap interval over questions. ``table``: those of
    ``mt_bench_scores.add_scores`` one after the other."""
    models, groups = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.group))
    figure, axes = plt.subplots(figsize=(8.5, 1.6 + 0.38 * len(groups)))
    for place, model in enumerate(models):
        rows = table[table.model == model]
        apart = 0.5 * (place + 0.5) / len(models) - 0.25
        axes.errorbar(
            rows.score,
            [groups.index(group) + apart for group in rows.group],
            xerr=[(rows.score - rows.ci_low).fillna(0), (rows.ci_high - rows.score).fillna(0)],
            fmt="o",
            color=COLORS[place % len(COLORS)],
            capsize=3,
            label=model,
        )
    counted = {group: " and ".join(map(str, dict.fromkeys(rows.n))) for group, rows in table.groupby("group")}
    axes.set_yticks(range(len(groups)), [f"{group} (n = {counted[group]})" for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0.8, 10.2)
    judge = ", ".join(dict.fromkeys(table.judge))
    axes.set_xlabel(
        "score, 1 to 10, with the 95 % interval over questions;\nwhere one question stands alone there is none"
    )
    axes.set_title(f"MT-Bench by the judge {judge}:\nthese models against each other, and nothing else")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure, table
