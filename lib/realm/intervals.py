"""Bootstrap intervals over conversations: every headline figure carries one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2_000
LEVEL = 0.95


def bootstrap(
    samples: Sequence[Sequence[float]], statistic: Callable[..., float], seed: int, *, vectorized: bool = True
) -> tuple[float, float]:
    """Percentile interval (95 %) of ``statistic(*samples, axis=-1)``, resampling the rows of all samples together.

    ``samples``: one or more arrays of length n, paired by position (row i is conversation i in each).
    Raises ValueError for fewer than two rows: no interval can be told from one conversation.
    """
    arrays = [np.asarray(s, dtype=float) for s in samples]
    if len(arrays[0]) < 2:
        raise ValueError("a bootstrap interval needs at least two conversations")
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


def perplexity_of(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(total negative log-likelihood in nats / total tokens): perplexity over a set of conversations."""
    return np.exp(ratio_of_sums(nll, tokens, axis))


def perplexity_difference(
    nll_before: np.ndarray, nll_after: np.ndarray, tokens: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Perplexity after minus before, on the same tokens: the paired statistic."""
    return perplexity_of(nll_after, tokens, axis) - perplexity_of(nll_before, tokens, axis)
