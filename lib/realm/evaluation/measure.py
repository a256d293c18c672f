"""A number with its interval, which every measure of this wing returns, and its floor: humans against humans."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from realm.core.errors import TooFewError


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


def floor(
    compare: Callable[[np.ndarray, np.ndarray], float], humans: int, size: int, *, halvings: int = 20, seed: int
) -> tuple[Measure, float]:
    """What a measure says of humans against humans, as many a side as of a simulator: mean, standard deviation.

    ``compare(index, index)``: the measure between two disjoint groups of ``size`` of the ``humans`` conversations, once
    for each random halving. Halvings of the same humans are all but uncorrelated, each putting other pairs on opposite
    sides, so the interval of the mean is Student's over halvings. Raises TooFewError for fewer than 2 * ``size``.
    """
    if humans < 2 * size:
        raise TooFewError(
            f"human floor: {humans} conversations, two groups of {size} are asked for; "
            "lower simulator_realism.conversations"
        )
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(humans) for _ in range(halvings)]
    found = [compare(order[:size], order[size : 2 * size]) for order in orders]
    mean, sd = float(np.mean(found)), float(np.std(found, ddof=1))
    reach = float(stats.t.ppf(0.975, halvings - 1)) * sd / math.sqrt(halvings)
    return Measure(mean, mean - reach, mean + reach, 2 * size), sd
