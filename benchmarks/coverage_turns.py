"""What ``python -m benchmarks.coverage`` simulates beside the two-sample test: perplexities, shares, words, endings.

Perplexities are drawn from real ones: nats and tokens of held-out conversations under models of the run ``cpu-long``
(``results/turn_nll.csv`` and ``results/teaching_nll.csv``; numbers, no text), so that their long tails are the real
ones; what an interval should hold is the value of all of them. Words and scores are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from realm.evaluation import levels, wording
from realm.evaluation.intervals import auc, auc_interval, bootstrap, drawn_by_group, mean_interval, share_interval
from realm.evaluation.lessons import human_gain_share
from realm.evaluation.levels import Level
from realm.evaluation.measure import Measure
from realm.evaluation.perplexity import difference_row, perplexity_difference, perplexity_of, perplexity_row

RESULTS = Path(__file__).parent / "results"
WORDS = np.array([f"w{i}" for i in range(20_000)])
ZIPF = 1 / np.arange(1, len(WORDS) + 1) ** 1.05
PLACES, GOING_ON = 4, 0.3  # answers a conversation of which it is known what came next; share that a human ends
SCORE = (1.2, 0.9)  # of the Beta distribution that made scores have, on 1 to 10: most are high, some very low


@dataclass(frozen=True)
class Way:
    """``run(rng, n, value of the setting)`` simulates once. ``settings``: n -> name -> value. ``truth``: what the
    interval should hold, where that is known other than as the mean over simulations."""

    run: Callable[[np.random.Generator, int, float], Measure]
    settings: Mapping[int, Mapping[str, float]]
    truth: Callable[[int, float], float] | None = None


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


# ---------------------------------------------------------------- perplexities


def real(name: str) -> pd.DataFrame:
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run `python -m benchmarks.coverage_nll runs/cpu-long` first")
    return pd.read_csv(path)


def _drawn(name: str, rng: np.random.Generator, n: int) -> pd.DataFrame:
    table = real(name)
    return table.iloc[rng.integers(0, len(table), n)]


def perplexity(rng: np.random.Generator, n: int, _: float) -> Measure:
    table = _drawn("turn_nll", rng, n)
    row = perplexity_row(table.usergpt.to_numpy(), table.tokens.to_numpy(), _seed(rng))
    return Measure(row["perplexity"], row["ci_low"], row["ci_high"], n)


def trained(rng: np.random.Generator, n: int, _: float) -> Measure:
    table = _drawn("turn_nll", rng, n)
    tokens = table.tokens.to_numpy()
    row = difference_row(table.usergpt.to_numpy(), tokens, table.base.to_numpy(), tokens, _seed(rng))
    return Measure(row["difference"], row["difference_low"], row["difference_high"], n)


def share_of_gain(rng: np.random.Generator, n: int, _: float) -> Measure:
    table = _drawn("teaching_nll", rng, n)
    sample = [table[name].to_numpy() for name in ("base", "realchat", "humans", "tokens")]
    return Measure(float(human_gain_share(*sample)), *bootstrap(sample, human_gain_share, _seed(rng)), n)


def _all_perplexity(_: int, __: float) -> float:
    table = real("turn_nll")
    return float(perplexity_of(table.usergpt.to_numpy(), table.tokens.to_numpy()))


def _all_trained(_: int, __: float) -> float:
    table = real("turn_nll")
    tokens = table.tokens.to_numpy()
    return float(perplexity_difference(table.usergpt.to_numpy(), tokens, table.base.to_numpy(), tokens))


def _all_share(_: int, __: float) -> float:
    table = real("teaching_nll")
    return float(human_gain_share(*(table[name].to_numpy() for name in ("base", "realchat", "humans", "tokens"))))


# ---------------------------------------------------------------- what is counted in conversations


def mean_length(rng: np.random.Generator, n: int, _: float) -> Measure:
    """Tokens a conversation: a mean with a long tail."""
    values = _drawn("turn_nll", rng, n).tokens.to_numpy(float)
    return Measure(float(values.mean()), *mean_interval(values, _seed(rng)), n)


def gap_of_means(rng: np.random.Generator, n: int, shift: float) -> Measure:
    """The distance of two means; ``shift`` in standard deviations."""
    sides = (rng.normal(size=n), rng.normal(size=n) + shift)
    return levels.gap(*(levels.mean_level(side, _seed(rng)).measure for side in sides))


def _spoken(rng: np.random.Generator, n: int) -> list[list[str]]:
    """Words of ``n`` openings: lengths as real ones have, by Zipf, each opening with a subject that it repeats."""
    lengths = np.maximum(3, _drawn("turn_nll", rng, n).tokens.to_numpy() // 2).clip(max=200)
    chances, said = ZIPF / ZIPF.sum(), []
    for length in lengths:
        words = rng.choice(WORDS, length, p=chances)
        own = rng.random(length) < 0.2
        words[own] = rng.choice(rng.choice(WORDS, 3), own.sum())
        said.append(words.tolist())
    return said


def diversity_of(measure: Callable[[list[str]], float]) -> Callable[[np.random.Generator, int, float], Measure]:
    def run(rng: np.random.Generator, n: int, _: float) -> Measure:
        return levels.pooled_level(_spoken(rng, n), measure, _seed(rng)).measure

    return run


def pairs(rng: np.random.Generator, n: int, _: float) -> Measure:
    """One minus the mean cosine of two openings, a tenth of them of one subject."""
    vectors = rng.normal(size=(n, 384))
    vectors[rng.random(n) < 0.1] += 2 * rng.normal(size=384)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Level = levels.pairwise_level(vectors @ vectors.T, 1.0, _seed(rng))
    return found.measure


def share(rng: np.random.Generator, n: int, chance: float) -> Measure:
    hits = int(rng.binomial(n, chance))
    return Measure(hits / n, *share_interval(hits, n), n)


def mean_score(rng: np.random.Generator, n: int, _: float) -> Measure:
    """The mean of two turns' scores of ``n`` questions; those of one question are alike."""
    hard = rng.beta(*SCORE, n)
    scores = np.rint(1 + 9 * np.clip(hard[:, None] + 0.1 * rng.normal(size=(n, 2)), 0, 1)).mean(axis=1)
    return Measure(float(scores.mean()), *mean_interval(scores, _seed(rng)), n)


def endings(rng: np.random.Generator, n: int, strength: float) -> Measure:
    """Area of telling endings: ``n`` sessions, some answers each, whose scores go together."""
    row = np.repeat(np.arange(n), PLACES)
    truth = rng.random(len(row)) < GOING_ON
    scores = strength * truth + rng.normal(size=len(row)) + 0.5 * rng.normal(size=n)[row]
    return Measure(auc(scores, truth), *auc_interval(scores, truth, drawn_by_group(row, _seed(rng))), n)


def _is_shift(_: int, shift: float) -> float:
    return shift


WAYS = {
    "perplexity": Way(perplexity, {49: {"real": 0}, 300: {"real": 0}}, _all_perplexity),
    "difference of two perplexities, paired": Way(trained, {49: {"real": 0}, 300: {"real": 0}}, _all_trained),
    "share of the human gain": Way(share_of_gain, {49: {"real": 0}, 100: {"real": 0}}, _all_share),
    "mean length": Way(mean_length, {20: {"real": 0}, 128: {"real": 0}}),
    "distance of two means": Way(gap_of_means, {64: {"alike": 0.0, "half a deviation": 0.5}}, _is_shift),
    "HD-D of pooled words": Way(diversity_of(wording.hdd), {64: {"made": 0}}),
    "MATTR of pooled words": Way(diversity_of(wording.mattr), {64: {"made": 0}}),
    "MTLD of pooled words": Way(diversity_of(wording.mtld), {64: {"made": 0}}),
    "diversity by pairs": Way(pairs, {64: {"made": 0}}),
    "share": Way(share, {20: {"one in twenty": 0.05, "a half": 0.5}, 128: {"one in twenty": 0.05}}, _is_shift),
    "mean MT-Bench score": Way(mean_score, {8: {"made": 0}, 80: {"made": 0}}),
    "area of telling endings": Way(endings, {60: {"by chance": 0.0, "well": 1.0}}),
}
