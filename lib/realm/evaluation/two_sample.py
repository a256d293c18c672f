"""Can a classifier tell two sets of texts apart? One statistic, with its interval, its null, its floor.

The statistic is the area under the ROC curve (AUC) within each test fold of a 5-fold cross-validation, averaged over
folds and over random foldings; 0.5: they cannot be told apart. Conversations are folded, permuted and left out whole.
The classifier is ridge regression on standardized columns, a regularized linear discriminant. Its out-of-fold residuals
have a closed form, (M_FF)^-1 (M y)_F with M the residual matrix of all rows and F those of a fold (as leave-one-out in
Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 7.10), so that one inverse serves every folding,
every permutation and every conversation left out. How well the interval covers: ``python -m benchmarks.coverage``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realm.core.errors import TooFewError
from realm.core.progress import Bar
from realm.evaluation.intervals import Z, interval_within
from realm.evaluation.leaving_out import FOLDS, ONE, OTHER, Rows, Spread, fold_values, spread_of
from realm.evaluation.measure import Measure, floor

AT_LEAST = 2 * FOLDS  # conversations a side: one can be left out of a fold that keeps another


@dataclass(frozen=True)
class TwoSample:
    """Classifier two-sample test. ``auc.n``: conversations of both sides.

    ``null_mean``, ``null_high`` (95th percentile) and ``p_value`` (one-sided) come from permuted labels, each valued by
    the very procedure of ``auc``. ``spread``: what each conversation moves, for ``difference``.
    """

    auc: Measure
    null_mean: float
    null_high: float
    p_value: float
    spread: Spread


def two_sample(
    one: np.ndarray,
    other: np.ndarray,
    *,
    repeats: int,
    permutations: int,
    seed: int,
    groups: tuple[Sequence, Sequence] | None = None,
    desc: str = "two-sample test",
) -> TwoSample:
    """Tell ``one`` (n, d) from ``other`` (m, d): AUC over ``repeats`` foldings, its 95 % interval and its null.

    ``groups``: the conversation of each row, of one side and of the other (the same name on both sides is two
    conversations); without it each row is a conversation. Without permutations the null is NaN and the p value 1. The
    same ``seed`` folds the same ``one`` alike, whatever it is compared with: see ``difference``. Raises TooFewError for
    fewer than ten conversations a side.
    """
    rows, label = _joined(one, other, groups, desc)
    foldings = [folding(label, np.random.default_rng([seed, repeat])) for repeat in range(repeats)]
    spread = spread_of(rows, label, foldings)
    value = float(spread.values.mean())
    rng = np.random.default_rng([seed, repeats, permutations])
    null = []
    for _ in Bar(range(permutations), desc=desc, unit="permutations", disable=not permutations):
        permuted = rng.permutation(label)
        null.append(np.mean([fold_values(rows, permuted, folding(permuted, rng)) for _ in range(repeats)]))
    p_value = (1 + sum(v >= value for v in null)) / (1 + permutations)
    mean, high = (float(np.mean(null)), float(np.percentile(null, 95))) if null else (math.nan, math.nan)
    auc = Measure(value, *interval_within(value, spread.variance, int(np.bincount(label).min()), 0.0, 1.0), len(label))
    return TwoSample(auc, mean, high, p_value, spread)


def _joined(one: np.ndarray, other: np.ndarray, groups: tuple | None, desc: str) -> tuple[Rows, np.ndarray]:
    """The rows of both sides, and the side of each conversation, those of ``one`` first."""
    names = groups or (np.arange(len(one)), np.arange(len(other)))
    first, second = (np.unique(np.asarray(side), return_inverse=True)[1] for side in names)
    if (len(first), len(second)) != (len(one), len(other)):
        raise ValueError(f"{len(one)} and {len(other)} rows, but {len(first)} and {len(second)} names of conversations")
    counts = [int(side.max(initial=-1)) + 1 for side in (first, second)]
    if min(counts) < AT_LEAST:
        raise TooFewError(
            f"{desc}: {counts[0]} and {counts[1]} conversations, at least {AT_LEAST} a side are needed; "
            "raise simulator_realism.conversations"
        )
    rows = Rows.of(np.vstack([one, other]), np.concatenate([first, second + counts[0]]))
    return rows, np.repeat([ONE, OTHER], counts)


def folding(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fold for each conversation, as many of each side in every fold; a side is folded by a stream of its own."""
    folds = np.empty(len(label), int)
    for side, stream in zip((ONE, OTHER), rng.spawn(2), strict=True):
        places = np.flatnonzero(label == side)
        folds[stream.permutation(places)] = np.arange(len(places)) % FOLDS
    return folds


def difference(one: TwoSample, other: TwoSample) -> Measure:
    """AUC of ``one`` minus AUC of ``other``, two tests against the same humans by the same seed; paired interval.

    A human left out, and a folding, moves both. Raises ValueError if the humans or the foldings are not as many.
    """
    spread = one.spread.minus(other.spread)
    value, width = one.auc.value - other.auc.value, Z * math.sqrt(spread.variance)
    return Measure(value, value - width, value + width, len(spread.sides))


def human_floor(
    humans: np.ndarray,
    size: int,
    *,
    halvings: int = 20,
    repeats: int,
    seed: int,
    groups: Sequence | None = None,
) -> tuple[Measure, float]:
    """AUC of telling humans from humans: mean over random halvings, ``size`` conversations a side; standard deviation.

    ``humans``: (n, d), n rows of at least 2 * ``size`` conversations, else TooFewError. See ``measure.floor``.
    """
    names, member = np.unique(np.arange(len(humans)) if groups is None else np.asarray(groups), return_inverse=True)
    streams = iter(np.random.default_rng(seed).spawn(halvings))

    def auc(*halves: np.ndarray) -> float:
        sides, rng = [np.flatnonzero(np.isin(member, half)) for half in halves], next(streams)
        rows, label = _joined(*(humans[s] for s in sides), tuple(member[s] for s in sides), "human floor")
        return float(np.mean([fold_values(rows, label, folding(label, rng)) for _ in range(repeats)]))

    return floor(auc, len(names), size, halvings=halvings, seed=seed)
