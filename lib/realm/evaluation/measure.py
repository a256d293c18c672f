"""A number with its interval: what every measure of this wing returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval; ``n`` counts conversations.

    Both limits are of the same statistic as the value, by a method that holds the value inside by construction:
    none is ever moved until it does.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
