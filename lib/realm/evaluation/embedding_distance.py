"""How far two sets of sentence embeddings lie apart, and how well one covers the other: no classifier, no judge.

The energy distance (Szekely, Rizzo 2013) sees any difference of the distributions; density and coverage (Naeem et al.
2020, arXiv 2002.09797) say which kind: turns where no human's lie, or humans that no turn comes near.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from realm.evaluation.intervals import interval_around, interval_within, jackknife_variance
from realm.evaluation.measure import Measure, floor


def embedding_distance(one: np.ndarray, other: np.ndarray) -> Measure:
    """Energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|; ``one`` (n, d), ``other`` (m, d), a row a conversation.

    Each row is paired with others alone, so that the mean over samples of one distribution is 0, and a value may fall
    below it. Interval: jackknife, less what pairs of rows count twice (exact: the statistic takes two rows at once).
    """
    within, beyond = (cdist(side, side) for side in (one, other)), cdist(one, other)
    first, second = within
    n, m = beyond.shape
    value = 2 * beyond.mean() - first.sum() / (n * (n - 1)) - second.sum() / (m * (m - 1))
    left, pairs = 0.0, float(np.sum((2 / (n * m) * _centred(beyond)) ** 2))
    for own, across in ((first, beyond), (second, beyond.T)):
        k, others = across.shape
        rest = 2 * (across.sum() - across.sum(axis=1)) / ((k - 1) * others)
        left += jackknife_variance(rest - (own.sum() - 2 * own.sum(axis=1)) / ((k - 1) * (k - 2)))
        double = _centred(own)
        np.fill_diagonal(double, 0.0)
        pairs += float(np.sum((2 / (k * (k - 1)) * double) ** 2)) / 2
    return Measure(float(value), *interval_around(float(value), max(left - pairs, pairs)), n + m)


def _centred(distances: np.ndarray) -> np.ndarray:
    return distances - distances.mean(axis=0) - distances.mean(axis=1)[:, None] + distances.mean()


def embedding_floor(humans: np.ndarray, size: int, *, halvings: int = 20, seed: int) -> tuple[Measure, float]:
    """Energy distance of humans from humans, ``size`` a side: mean and standard deviation over halvings."""
    distance = lambda a, b: embedding_distance(humans[a], humans[b]).value  # noqa: E731
    return floor(distance, len(humans), size, halvings=halvings, seed=seed)


def density_coverage(real: np.ndarray, simulated: np.ndarray, k: int = 5) -> tuple[Measure, Measure]:
    """Density: in how many balls a simulated turn lies, over ``k``; coverage: share of balls that hold one.

    A ball reaches from a real turn, ``real`` (n, d), to its ``k``-th nearest real one; ``simulated`` (m, d). At the
    same distribution density is 1 and coverage, with n = m, nearly 1 - 2^-k. Intervals: jackknife over both sides.
    """
    among, across = cdist(real, real), cdist(real, simulated)
    np.fill_diagonal(among, np.inf)
    n, m = across.shape
    order = np.argsort(among, axis=1)
    near = np.zeros((n, n))  # near[i, j]: j is one of the k nearest of i
    np.put_along_axis(near, order[:, :k], 1.0, axis=1)
    reach = np.take_along_axis(among, order[:, : k + 1], axis=1)
    inside, grown = across <= reach[:, k - 1 : k], across <= reach[:, k:]  # grown: one of the k nearest is left out
    held, held_grown = inside.sum(axis=1), grown.sum(axis=1)
    lost = held[:, None] - inside  # (n, m): held by each ball without a simulated one

    without_real = held.sum() - held + (held_grown - held) @ near
    variance = jackknife_variance(without_real / (k * m)) + jackknife_variance(lost.sum(axis=0) / (k * (m - 1)))
    value = float(held.sum() / (k * m))
    density = Measure(value, *interval_around(value, variance), n + m)

    any_held, any_grown = held > 0, held_grown > 0
    without_real = any_held.sum() - any_held + (any_grown.astype(float) - any_held) @ near
    variance = jackknife_variance(without_real / (n - 1)) + jackknife_variance((lost > 0).mean(axis=0))
    value = float(any_held.mean())
    return density, Measure(value, *interval_within(value, variance, min(n, m), 0.0, 1.0), n + m)
