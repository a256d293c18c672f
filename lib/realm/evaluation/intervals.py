"""Bootstrap intervals over conversations: every headline figure carries one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

RESAMPLES = 2_000
LEVEL = 0.95


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
