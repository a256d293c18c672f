"""Properties of one source's conversations that are compared by their difference: means, pooled words, pairs.

The sample is always the conversation: what a conversation says twice counts no more than what it says once. A level
is told of any part of the conversations, so that two halves of the humans give its floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from realm.evaluation.intervals import interval_around, jackknife_variance, mean_interval
from realm.evaluation.measure import Measure

HALVINGS = 20
BLOCKS = 20  # of conversations, each left out once by the jackknife


@dataclass(frozen=True)
class Level:
    """``of(index)``: its value for the conversations of an index array; ``interval(seed)``: 95 %, over all ``n``."""

    n: int
    of: Callable[[np.ndarray], float]
    interval: Callable[[int], tuple[float, float]]
    seed: int

    @cached_property
    def measure(self) -> Measure:
        return Measure(self.of(np.arange(self.n)), *self.interval(self.seed), self.n)


def mean_level(values: Sequence[float], seed: int) -> Level:
    """Mean of a value a conversation, bootstrapped; conversations that have none (NaN) are left out of ``n``."""
    found = np.asarray(values, float)
    found = found[~np.isnan(found)]

    def interval(seed: int) -> tuple[float, float]:
        # A share of 0 of 24 has no spread to draw from, and is not known to be 0.
        if len(found) and found.min() == found.max() and found[0] in (0.0, 1.0):
            low, high = stats.binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
            return float(low), float(high)
        return mean_interval(found, seed)

    return Level(len(found), lambda index: float(found[index].mean()), interval, seed)


def pooled_level(words: Sequence[Sequence[str]], of: Callable[[Sequence[str]], float], seed: int) -> Level:
    """A statistic of the words of all conversations one after another, in their order; those without are left out.

    The interval is the jackknife's, by blocks of conversations: a bootstrap would draw conversations twice, and take
    that for repetition.
    """
    spoken = [list(w) for w in words if len(w)]

    def statistic(index: np.ndarray) -> float:
        return float(of([w for i in index for w in spoken[i]]))

    return Level(len(spoken), statistic, lambda seed: jackknife(statistic, len(spoken), seed), seed)


def pairwise_level(similarity: np.ndarray, scale: float, seed: int) -> Level:
    """``scale`` * (1 - mean similarity of two different conversations); ``similarity``: (n, n). Jackknife: a bootstrap
    draws conversations twice, and leaves such pairs out or takes them for repetition."""
    others = np.array(similarity, float)
    np.fill_diagonal(others, 0.0)
    n = len(others)

    def statistic(index: np.ndarray) -> float:
        part = others[np.ix_(index, index)]
        return scale * (1 - float(part.sum()) / (len(index) * (len(index) - 1)))

    def interval(_: int) -> tuple[float, float]:
        if n < 3:
            return math.nan, math.nan
        without = (others.sum() - 2 * others.sum(axis=1)) / ((n - 1) * (n - 2))
        return interval_around(statistic(np.arange(n)), scale**2 * jackknife_variance(without))

    return Level(n, statistic, interval, seed)


def jackknife(statistic: Callable[[np.ndarray], float], n: int, seed: int) -> tuple[float, float]:
    """95 % interval around ``statistic(arange(n))``, NaN where there is none: see ``jackknife_error``."""
    value, error = statistic(np.arange(n)), jackknife_error(statistic, n, seed)
    reach = float(stats.t.ppf(0.975, max(1, min(BLOCKS, n) - 1)))
    return value - reach * error, value + reach * error


def jackknife_error(statistic: Callable[[np.ndarray], float], n: int, seed: int) -> float:
    """Standard error of ``statistic(arange(n))``, from leaving out each of 20 random blocks of the n conversations.

    NaN where there are fewer than two, or the statistic is.
    """
    if n < 2:
        return math.nan
    blocks = np.array_split(np.random.default_rng(seed).permutation(n), min(BLOCKS, n))
    left = np.array([statistic(np.setdiff1d(np.arange(n), block)) for block in blocks])
    return math.sqrt(jackknife_variance(left))


def gap(one: Measure, other: Measure) -> Measure:
    """How far two independent values lie apart, 0 or more, with an interval from theirs (Zou and Donner 2008)."""
    signed = one.value - other.value
    low = signed - math.hypot(one.value - one.ci_low, other.ci_high - other.value)
    high = signed + math.hypot(one.ci_high - one.value, other.value - other.ci_low)
    return Measure(abs(signed), max(low, -high, 0.0), max(-low, high), one.n)


def floor(humans: Level, size: int) -> float:
    """The mean distance between two halves of the humans, of ``size`` conversations each, over 20 halvings."""
    return mean_of_halvings(lambda a, b: abs(humans.of(a) - humans.of(b)), humans.n, size, humans.seed)


def mean_of_halvings(
    distance: Callable[[np.ndarray, np.ndarray], float], n: int, size: int, seed: int, halvings: int = HALVINGS
) -> float:
    """``distance(index, index)`` between two disjoint groups of ``size`` of ``n``, at most half, averaged."""
    size, rng = min(size, n // 2), np.random.default_rng(seed)
    drawn = (rng.permutation(n) for _ in range(halvings))
    return float(np.mean([distance(order[:size], order[size : 2 * size]) for order in drawn]))
