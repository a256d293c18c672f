"""Whether a model knows when the human is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from realm.core.errors import TooFewError
from realm.core.metrics import Metrics
from realm.evaluation.intervals import auc, auc_interval, bootstrap, drawn_by_group
from realm.evaluation.user_turns import TurnScores


@dataclass(frozen=True)
class Termination:
    """F1 of telling, after each answer, that the human is done; ``always``: of a guesser that says so every time,
    the best that a constant rate can do; ``auc``: of ranking the answers by how likely it is, 0.5 by chance.
    Each with a 95 % interval over sessions; ``n`` sessions, ``places`` answers of known outcome."""

    f1: float
    f1_interval: tuple[float, float]
    always: float
    gain: float
    gain_interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]
    n: int
    places: int
    base_rate: float


def termination(scores: TurnScores, seed: int) -> Termination:
    """The threshold on the probability of an ending is chosen on one half of the sessions and used on the
    other, both ways round. Raises TooFewError if no held-out session shows its end, or all places are ends, or
    one half has none."""
    after_answer = scores.number > 0
    row, truth, score = scores.row[after_answer], scores.over[after_answer], scores.end_logp[after_answer]
    half = row % 2 == 0
    if not truth.any() or truth.all() or half.all() or not half.any():
        raise TooFewError(
            f"{truth.sum()} of {len(truth)} known places are ends of sessions: to judge endings takes both kinds, in "
            "more sessions; raise usergpt_sft.test_conversations"
        )
    says = np.zeros(len(row), dtype=bool)
    for fit, use in ((half, ~half), (~half, half)):
        says[use] = score[use] >= _best_threshold(score[fit], truth[fit])
    counts = [np.bincount(row, hit) for hit in (truth & says, says != truth, truth, ~truth)]
    present = np.bincount(row) > 0
    hits, misses, ends, goes_on = (c[present] for c in counts)
    f1 = lambda a, b, axis=-1: _f1(a.sum(axis), b.sum(axis))  # noqa: E731
    gain = lambda a, b, c, d, axis=-1: f1(a, b, axis) - f1(c, d, axis)  # noqa: E731
    return Termination(
        f1=float(f1(hits, misses)),
        f1_interval=bootstrap([hits, misses], f1, seed),
        always=float(f1(ends, goes_on)),
        gain=float(gain(hits, misses, ends, goes_on)),
        gain_interval=bootstrap([hits, misses, ends, goes_on], gain, seed),
        auc=auc(score, truth),
        auc_interval=auc_interval(score, truth, drawn_by_group(row, seed)),
        n=int(present.sum()),
        places=len(row),
        base_rate=float(truth.mean()),
    )


def _f1(hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN)."""
    return 2 * hits / np.maximum(2 * hits + misses, 1)


def _best_threshold(score: np.ndarray, truth: np.ndarray) -> float:
    thresholds = np.unique(score)
    return float(max(thresholds, key=lambda t: _f1((truth & (score >= t)).sum(), (truth != (score >= t)).sum())))


def add_termination(metrics: Metrics, found: Termination) -> None:
    metrics.add("termination_f1", found.f1, ci=found.f1_interval, n=found.n, unit="F1 of telling where sessions end")
    metrics.add("termination_f1_always", found.always, n=found.n, unit="F1 of always saying that it is over")
    metrics.add("termination_f1_gain", found.gain, ci=found.gain_interval, n=found.n, unit="F1, paired difference")
    metrics.add("termination_auc", found.auc, ci=found.auc_interval, n=found.n, unit="area under the ROC curve")
    metrics.add("termination_base_rate", found.base_rate, n=found.places, unit="share of answers that end a session")
