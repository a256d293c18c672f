"""The realism card as one figure: a row a measure, a dot a simulator, 0 the human floor, 1 the base told to play."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from realm.evaluation.card import GROUPS, SIMULATORS
from realm.reporting.drawing import ACCENT, OURS, PUBLISHED, SECOND, Drawn, redrawable

LOOKS = {
    SIMULATORS["usergpt"]: (OURS, "o", 9),
    SIMULATORS["base"]: (PUBLISHED, "s", 6),
    SIMULATORS["responder"]: (ACCENT, "D", 6),
    SIMULATORS["roleplay"]: (SECOND, "|", 11),
}
LEFT, RIGHT = -0.45, 2.0  # of the scale; who lies beyond is drawn at the edge, as an arrow
ALL = "median of all measures"


@redrawable
def realism(table: pd.DataFrame) -> Drawn:
    """``table``: as ``evaluation.card.table`` gives it, in its order. Measures without a scale are not drawn; with none
    at all the figure says so. Above all measures stand their medians, with the middle half of them."""
    drawn = table.dropna(subset="position")
    lines = pd.concat([_medians(drawn), drawn], ignore_index=True) if len(drawn) else drawn
    places, heads = _places(lines)
    figure, axes = plt.subplots(figsize=(9.5, 1.8 + 0.27 * (len(places) + len(heads))))
    axes.axvspan(LEFT, 0, color=SECOND, alpha=0.08, linewidth=0)
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    for row in lines.itertuples():
        _dot(axes, row, places[row.group, row.measure])
    for group, height in heads.items():
        axes.text(LEFT - 0.02, height, group, ha="right", va="center", fontweight="bold", transform=axes.transData)
    axes.set_yticks(list(places.values()), [measure for _, measure in places])
    axes.set_xlim(LEFT, RIGHT)
    axes.set_ylim(max([*places.values(), 0]) + 0.7, -0.9)
    axes.set_xticks(
        [0, 0.5, 1, 1.5],
        ["0\nas humans differ\namong themselves", "0.5", "1\nas the base told\nto play a user", "1.5"],
    )
    axes.set_xlabel(_below(drawn), fontsize=10)
    axes.set_title("How far from humans? Left is nearer" if len(drawn) else "No measure has a scale: too few texts")
    _legend(figure, lines)
    return figure, table


def _medians(drawn: pd.DataFrame) -> pd.DataFrame:
    positions = drawn.groupby("who", sort=False).position
    found = positions.quantile([0.25, 0.5, 0.75]).unstack().reset_index()
    found.columns = ["who", "position_low", "position", "position_high"]
    return found.assign(group="", measure=ALL, n=positions.size().to_numpy())


def _places(lines: pd.DataFrame) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """(height of each measure, height of each group's head), from the top down."""
    places: dict[tuple[str, str], float] = {}
    heads: dict[str, float] = {}
    height = 0.0
    for group in ("", *GROUPS):
        measures = list(dict.fromkeys(lines.measure[lines.group == group])) if len(lines) else []
        if measures and group:
            heads[group], height = height, height + 1
        for measure in measures:
            places[group, measure], height = height, height + 1
    return places, heads


def _dot(axes: Axes, row: tuple, height: float) -> None:
    color, marker, size = LOOKS.get(row.who, ("black", "o", 6))
    off = {who: 0.12 * (i - 1.5) for i, who in enumerate(LOOKS)}.get(row.who, 0)
    if not LEFT <= row.position <= RIGHT:
        edge, arrow = (RIGHT - 0.02, ">") if row.position > RIGHT else (LEFT + 0.02, "<")
        axes.plot(edge, height + off, arrow, color=color, markersize=size, clip_on=False)
        return
    low, high = max(row.position_low, LEFT), min(row.position_high, RIGHT)
    wide = 3.5 if row.measure == ALL else 1.3
    axes.plot([low, high], [height + off] * 2, color=color, linewidth=wide, alpha=0.6, solid_capstyle="butt")
    axes.plot(row.position, height + off, marker, color=color, markersize=size + 3 * (row.measure == ALL))


def _below(drawn: pd.DataFrame) -> str:
    if not len(drawn):
        return "position of each simulator"
    return (
        "distance from humans: 0 of one half of them from the other,\n1 of the base told to play a user\n"
        f"95 % intervals over conversations, n = {drawn.n.min()} to {drawn.n.max()};\nof the medians the middle half"
    )


def _legend(figure: plt.Figure, lines: pd.DataFrame) -> None:
    there = [who for who in LOOKS if len(lines) and (lines.who == who).any()]
    handles = [
        plt.Line2D([], [], color=LOOKS[who][0], marker=LOOKS[who][1], markersize=LOOKS[who][2], linewidth=1.3)
        for who in there
    ]
    if there:
        figure.legend(handles, there, loc="outside lower center", ncols=2)
