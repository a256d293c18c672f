"""Intervals over conversations, by bootstrap or by leaving out: every headline figure carries one.

No limit is ever moved to hold its value or to stay in bounds: a limit that must be was of another statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy import special, stats
from sklearn.metrics import roc_auc_score

RESAMPLES = 2_000
LEVEL = 0.95
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
Span = tuple[float, float]


def bootstrap(
    samples: Sequence[Sequence[float]], statistic: Callable[..., float], seed: int, *, vectorized: bool = True
) -> tuple[float, float]:
    """Percentile interval (95 %) of ``statistic(*samples, axis=-1)``, resampling the rows of all samples together.

    ``samples``: one or more arrays of length n, paired by position (row i is conversation i in each).
    From one conversation no interval can be told: both limits are NaN then, and ``Metrics`` records none.
    """
    arrays = [np.asarray(s, dtype=float) for s in samples]
    if len(arrays[0]) < 2:
        return math.nan, math.nan
    result = stats.bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=vectorized,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=200,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    return bootstrap([values], lambda x, axis=-1: np.mean(x, axis=axis), seed)


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent trials; NaN twice where there was none."""
    if n == 0:
        return math.nan, math.nan
    found = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def ratio_of_sums(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.sum(numerator, axis=axis) / np.sum(denominator, axis=axis)


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve of ranking places by ``scores``; NaN where ``truth`` holds one kind alone."""
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else math.nan


def auc_interval(scores: np.ndarray, truth: np.ndarray, draws: Iterable[np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of ``auc`` over ``draws``: index arrays of resampled places, all of length n or not."""
    values = [auc(scores[drawn], truth[drawn]) for drawn in draws]
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def drawn_by_group(group: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Places of groups drawn with replacement, all places of a group together; ``group``: (n,), a name a place."""
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(group == name) for name in np.unique(group)]
    for _ in range(RESAMPLES):
        yield np.concatenate([places[i] for i in rng.integers(0, len(places), len(places))])


def jackknife_variance(left_out: np.ndarray) -> float:
    """Variance of a statistic from its values with each of n conversations left out, (n,); of two sides, add theirs.

    Too large on average rather than too small, whatever the statistic (Efron, Stein 1981).
    """
    n = len(left_out)
    return (n - 1) / n * float(np.sum((left_out - np.mean(left_out)) ** 2))


def interval_around(value: float, variance: float) -> tuple[float, float]:
    """95 % interval by normal theory; of a distance its lower limit may be negative: it cannot be told from none."""
    reach = Z * math.sqrt(variance)
    return value - reach, value + reach


def interval_within(value: float, variance: float, n: int, low: float, high: float) -> tuple[float, float]:
    """95 % interval of a value between two bounds: by normal theory on the scale of log odds (delta method), so that
    it stays inside without being cut. At a bound itself, the rule of three for ``n`` conversations."""
    width = high - low
    share = (value - low) / width
    if share in (0.0, 1.0):
        return (low, low + 3 / n * width) if share == 0 else (high - 3 / n * width, high)
    step = Z * math.sqrt(variance) / (width * share * (1 - share))
    return tuple(low + width * float(special.expit(special.logit(share) + side * step)) for side in (-1, 1))


def fixed_by_limit(values: Sequence[float], limit: float) -> bool:
    """Whether each of the simulated values is the profile's own limit: then their mean is a setting and no result."""
    return all(v >= limit for v in values)
