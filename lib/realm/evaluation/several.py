"""Several comparisons at once: p-values read from intervals, adjusted for their number by Holm's method."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from scipy import stats

from realm.evaluation.intervals import Span, Z

SURE = 0.05
Name = TypeVar("Name", bound=Hashable)


def chance(value: float, interval: Span, bound: Span = (0.0, 0.0)) -> float:
    """Two-sided p of a value at the bound, its error read from the half of the 95 % interval that faces the bound, as
    if it were normal; NaN without an interval."""
    nearest = min(max(value, bound[0]), bound[1])
    half = value - interval[0] if value > nearest else interval[1] - value
    gap = abs(value - nearest)
    if half <= 0:
        return 0.0 if gap else 1.0
    return float(2 * stats.norm.sf(Z * gap / half))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """P values of several tests, adjusted for their number (Holm 1979), under the same names in the same order."""
    adjusted, running = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def by_holm(gaps: Mapping[Name, tuple[float, float, float]]) -> dict[Name, float]:
    """Of differences by name, each with the limits of its 95 % interval, p of no difference, adjusted for their number;
    those without an interval are no comparison, and left out."""
    found = {name: chance(value, (low, high)) for name, (value, low, high) in gaps.items()}
    return holm({name: p for name, p in found.items() if not math.isnan(p)})
