"""The realism card: every measure of every simulator on one scale, 0 the human floor, 1 the base told to play a user.

The scale of a measure is its distance from humans. Its ends are two values: the distance between two halves of the
humans, and that of the role-playing base; where these two cannot be told apart the measure has no scale. An interval
on it is that of the simulator's own distance; that the ends are estimates too shows in their own intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from realm.core.metrics import Metrics
from realm.evaluation import levels
from realm.evaluation.intervals import interval_around
from realm.evaluation.levels import Level
from realm.evaluation.measure import Measure

HUMANS, ROLEPLAY, FLOOR = "humans", "roleplay", "human_floor"
SIMULATORS = {
    "usergpt": "UserGPT",
    "base": "base, flipped template",
    "roleplay": "base told to play a user",
    "responder": "responder told to play a user",
}
GROUPS = ("what is asked", "how it is said", "how it goes on", "what it remembers")
COLUMNS = ["group", "key", "measure", "who", "value", "ci_low", "ci_high", "n", "unit", "floor"]
COLUMNS += ["position", "position_low", "position_high"]
LEAST = 10  # conversations; of fewer nothing is told


@dataclass(frozen=True)
class Row:
    """One measure. ``values``: by source, as they are; ``gaps``: by simulator, what the scale is made of, the distance
    from humans; ``floor``: the same between two halves of the humans."""

    group: str
    key: str
    words: str
    unit: str
    values: Mapping[str, Measure]
    gaps: Mapping[str, Measure]
    floor: float

    @property
    def positions(self) -> dict[str, Measure]:
        """By simulator, on the scale from the floor to role-play; empty where these two cannot be told apart."""
        end = self.gaps.get(ROLEPLAY)
        if end is None or not (self.floor < end.ci_low or end.ci_high < self.floor):
            return {}
        place = lambda value: (value - self.floor) / (end.value - self.floor)  # noqa: E731
        return {
            who: Measure(place(m.value), *sorted((place(m.ci_low), place(m.ci_high))), m.n)
            for who, m in self.gaps.items()
        }


def level_row(group: str, key: str, words: str, unit: str, found: Mapping[str, Level]) -> Row | None:
    """A row of levels by source, humans among them; None without humans or anyone to compare.

    Sources of fewer than 10 conversations that have such a value are left out (``left_out`` tells of them), and those
    of which it cannot be told: pooled words can be too few.
    """
    told = lambda level: level.n >= LEAST and math.isfinite(level.measure.value)  # noqa: E731
    enough = {who: level for who, level in found.items() if told(level)}
    humans = enough.get(HUMANS)
    if humans is None or humans.n < 2 * LEAST or len(enough) < 2:
        return None
    values = {who: level.measure for who, level in enough.items()}
    gaps = {who: levels.gap(m, values[HUMANS]) for who, m in values.items() if who != HUMANS}
    size = min(level.n for who, level in enough.items() if who != HUMANS)
    return Row(group, key, words, unit, values, gaps, levels.floor(humans, size))


def mean_rows(
    group: str, by_conversation: Mapping[str, tuple[str, str, Mapping[str, Sequence[float]]]], seed: int
) -> list[Row]:
    """Rows of means: key -> (words, unit, source -> a value a conversation, NaN where it has none)."""
    rows = [
        level_row(group, key, words, unit, {who: levels.mean_level(v, seed) for who, v in values.items()})
        for key, (words, unit, values) in by_conversation.items()
    ]
    return [row for row in rows if row]


def distance_row(
    group: str,
    key: str,
    words: str,
    unit: str,
    samples: Mapping[str, np.ndarray],
    distance: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
) -> Row | None:
    """A row of distances from humans, at equal n. ``samples``: by source, one entry a conversation, humans among them,
    twice as many of these where the floor is to have as many. None with fewer than 10 of a source."""
    humans = np.asarray(samples[HUMANS])
    others = {who: np.asarray(s) for who, s in samples.items() if who != HUMANS and len(s) >= LEAST}
    size = min([len(humans) // 2, *map(len, others.values())])
    if size < LEAST or not others:
        return None
    gaps = {who: distance_measure(humans[:size], s[:size], distance, seed) for who, s in others.items()}
    between = levels.mean_of_halvings(lambda a, b: distance(humans[a], humans[b]), len(humans), size, seed)
    return Row(group, key, words, unit, gaps, gaps, between)


def distance_measure(
    one: np.ndarray, other: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], float], seed: int
) -> Measure:
    """A distance with the jackknife's interval, of the conversations of both sides."""
    n, everyone = len(one), len(one) + len(other)

    def statistic(index: np.ndarray) -> float:
        return float(distance(one[index[index < n]], other[index[index >= n] - n]))

    value, error = statistic(np.arange(everyone)), levels.jackknife_error(statistic, everyone, seed)
    return Measure(value, *interval_around(value, error**2), n)


def left_out(sizes: Mapping[str, int], what: str) -> str:
    """One line on the simulators of which too little is there; nothing where all have enough."""
    few = [f"{SIMULATORS[who]} ({n})" for who, n in sizes.items() if who in SIMULATORS and n < LEAST]
    return f"Cannot be told, fewer than {LEAST} {what}: {', '.join(few)}." if few else ""


# ---------------------------------------------------------------- of all rows


def add_metrics(metrics: Metrics, rows: Iterable[Row]) -> None:
    """``KEY_WHO`` and ``KEY_human_floor``, and ``card_KEY_WHO``, the position; what is there already stays."""
    for row in rows:
        what = f"{row.words}, {row.unit}"
        numbers = {f"{row.key}_{who}": (m, what) for who, m in row.values.items()}
        places = f"{row.words}: 0 human floor, 1 base told to play a user"
        numbers |= {f"card_{row.key}_{who}": (m, places) for who, m in row.positions.items()}
        for name, (m, unit) in numbers.items():
            if name not in metrics:
                metrics.add(name, m.value, ci=_interval(m), n=m.n, unit=unit)
        if f"{row.key}_{FLOOR}" not in metrics and math.isfinite(row.floor):
            n = min(m.n for m in row.gaps.values())
            metrics.add(f"{row.key}_{FLOOR}", row.floor, n=n, unit=f"{what}: between two halves of the humans")


def _interval(m: Measure) -> tuple[float, float] | None:
    return (m.ci_low, m.ci_high) if math.isfinite(m.ci_low) and math.isfinite(m.ci_high) else None


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """A line a measure and source: group, key, measure, who, value with limits, n, unit, floor, and the position with
    limits (NaN where the measure has no scale)."""
    lines = []
    for row in rows:
        for who, m in row.values.items():
            place = row.positions.get(who, Measure(math.nan, math.nan, math.nan, m.n))
            lines.append(
                {
                    "group": row.group,
                    "key": row.key,
                    "measure": row.words,
                    "who": SIMULATORS.get(who, who),
                    "value": m.value,
                    "ci_low": m.ci_low,
                    "ci_high": m.ci_high,
                    "n": m.n,
                    "unit": row.unit,
                    "floor": row.floor,
                    "position": place.value,
                    "position_low": place.ci_low,
                    "position_high": place.ci_high,
                }
            )
    return pd.DataFrame(lines, columns=COLUMNS)


def wide(rows: Iterable[Row]) -> pd.DataFrame:
    """For reading: a line a measure, a column a source, values with their intervals, and the floor."""
    return pd.DataFrame(
        [
            {
                "measure": row.words,
                "unit": row.unit,
                **{SIMULATORS.get(who, who): shown(m) for who, m in sorted(row.values.items(), key=_order)},
                "two halves of the humans differ by": f"{row.floor:.3g}",
            }
            for row in rows
        ]
    ).fillna("")


def _order(item: tuple[str, Measure]) -> int:
    return [HUMANS, *SIMULATORS].index(item[0])


def shown(m: Measure) -> str:
    """``0.7 [0.6, 0.8]``."""
    return f"{m.value:.3g}" + (f" [{m.ci_low:.3g}, {m.ci_high:.3g}]" if _interval(m) else "")


def without_scale(rows: Sequence[Row]) -> str:
    """One line on the measures by which the role-playing base is no further from humans than humans are, and on those
    of them by which UserGPT is."""
    few = [row for row in rows if ROLEPLAY in row.gaps and not row.positions]
    if not few:
        return ""
    ours = [row.words for row in few if "usergpt" in row.gaps and row.gaps["usergpt"].ci_low > row.floor]
    told = f" UserGPT is told from humans by {len(ours)} of them: {'; '.join(ours)}." if ours else ""
    words = "; ".join(row.words for row in few)
    return f"Not on the scale, since the base told to play a user is not told from humans by it: {words}.{told}"
