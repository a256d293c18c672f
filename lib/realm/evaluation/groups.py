"""The four groups of measures on the realism card, each a list of rows: asked, said, goes on, remembers.

Turns come as ``Turns``: source -> a list a conversation of its turns. Openings are conversations of one turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from realm.core.metrics import Metrics
from realm.evaluation import card, going_on, levels, memory, wording
from realm.evaluation.card import FLOOR, GROUPS, HUMANS, SIMULATORS, Row
from realm.evaluation.going_on import Talk
from realm.evaluation.measure import Measure
from realm.evaluation.two_sample import TwoSample, difference, holm, human_floor, two_sample

Turns = Mapping[str, Sequence[Sequence[str]]]
ASKED, SAID, GOES_ON, REMEMBERS = GROUPS
LATER = "_later"  # at the end of a metric's key: of later turns, not of openings


def _of(key: str, words: str, suffix: str) -> tuple[str, str]:
    return (key + suffix, f"{words}, later turns") if suffix == LATER else (key, words)


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Told:
    """Two-sample tests by simulator, at ``size`` conversations a side, with the humans' floor and its spread."""

    size: int
    tests: Mapping[str, TwoSample]
    floor: Measure
    floor_sd: float


def told_apart(
    vectors: Mapping[str, Sequence[np.ndarray]], size: int, repeats: int, permutations: int, seed: int
) -> Told | None:
    """The test of each simulator against the same ``size`` human conversations; None for fewer than 20 humans.

    ``vectors``: by source, humans among them, an array (turns, d) a conversation; simulators of fewer than ``size``
    conversations are left out.
    """
    humans = vectors[HUMANS]
    if len(humans) < 2 * max(size, card.LEAST):
        return None
    options = {"repeats": repeats, "seed": seed}
    ours, our_groups = _stacked(humans[:size])
    tests = {}
    for who, theirs in vectors.items():
        if who != HUMANS and len(theirs) >= size:
            rows, groups = _stacked(theirs[:size])
            tests[who] = two_sample(
                ours, rows, permutations=permutations, groups=(our_groups, groups), desc=f"humans or {who}", **options
            )
    every, groups = _stacked(humans)
    return Told(size, tests, *human_floor(every, size, groups=groups, **options))


def _stacked(vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All rows, and the conversation of each."""
    return np.vstack(vectors), np.repeat(np.arange(len(vectors)), [len(v) for v in vectors])


def told_row(told: Told, suffix: str = "") -> Row | None:
    """The row of the areas under the curve."""
    if not told.tests:
        return None
    key, words = _of("two_sample_auc", "told from humans by a classifier", suffix)
    areas = {who: test.auc for who, test in told.tests.items()}
    return Row(ASKED, key, words, "AUC, 0.5: cannot be told apart", areas, areas, told.floor.value)


def add_told(metrics: Metrics, told: Told, suffix: str = "", at: str = "") -> None:
    """Areas, null, p-values by Holm, the floor and its spread, and what each simulator's area is above UserGPT's.

    ``at``: "_at_400", say, at the end of the names of a second number of conversations.
    """
    unit = f"AUC, {told.size} a side, 0.5: cannot be told apart"
    add = lambda name, m, unit: metrics.add(name + at, m.value, ci=(m.ci_low, m.ci_high), n=m.n, unit=unit)  # noqa: E731
    add(f"two_sample_auc{suffix}_{FLOOR}", told.floor, unit)
    metrics.add(f"two_sample_auc{suffix}_{FLOOR}_sd{at}", told.floor_sd, n=told.floor.n, unit="AUC, over halvings")
    adjusted = holm({who: test.p_value for who, test in told.tests.items()})
    for who, test in told.tests.items():
        add(f"two_sample_auc{suffix}_{who}", test.auc, unit)
        if math.isfinite(test.null_high):
            null = f"two_sample_null_95{suffix}_{who}{at}"
            metrics.add(null, test.null_high, n=test.auc.n, unit="AUC, 95th percentile under permuted labels")
            name = f"two_sample_p{suffix}_{who}{at}"
            metrics.add(name, adjusted[who], n=test.auc.n, unit="p-value by permutation, Holm over simulators")
        if who != "usergpt" and "usergpt" in told.tests:
            gap = difference(test, told.tests["usergpt"])
            add(f"two_sample_difference{suffix}_{who}", gap, "AUC minus UserGPT's, paired; above 0: UserGPT is nearer")


def diversity(texts: Mapping[str, Sequence[str]], vectors: Mapping[str, np.ndarray], seed: int) -> list[Row]:
    """First-turn diversity (arXiv 2510.06552) and topic diversity of openings; texts cut alike, ``vectors`` (n, d)."""
    words = {who: levels.pairwise_level(word_overlap(t), 100.0, seed) for who, t in texts.items()}
    topics = {who: levels.pairwise_level(v @ v.T, 1.0, seed) for who, v in vectors.items()}
    rows = [
        card.level_row(ASKED, "first_turn_diversity", "first-turn diversity", "100: no shared words", words),
        card.level_row(ASKED, "topic_diversity", "topic diversity", "mean cosine distance", topics),
    ]
    return [row for row in rows if row]


def word_overlap(texts: Sequence[str]) -> np.ndarray:
    """Unigram Jaccard similarity of each pair, (n, n); two texts without words are alike."""
    sets = [frozenset(wording.words_of(t)) for t in texts]
    ids = {w: i for i, w in enumerate(sorted(frozenset().union(*sets)))}
    has = np.zeros((len(sets), max(1, len(ids))), dtype=np.float32)
    for i, own in enumerate(sets):
        has[i, [ids[w] for w in own]] = 1
    both, size = (has @ has.T).astype(float), has.sum(1).astype(float)
    either = size[:, None] + size[None, :] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


# ---------------------------------------------------------------- how it is said


def said(turns: Turns, cut: Turns, seed: int, suffix: str = "") -> list[Row]:
    """Length, marks of style, and lexical diversity; ``cut``: the same turns, all cut at the same number of tokens,
    for the pooled words, which one pasted text would fill."""
    by_key = {}
    for key, (words, of) in wording.MARKS.items():
        values = {who: [wording.mean_over(t, of) for t in talks] for who, talks in turns.items()}
        key, words = _of(key, words, suffix)
        by_key[key] = (words, "mean over conversations", values)
    rows: list[Row | None] = [*card.mean_rows(SAID, by_key, seed)]
    for key, (words, of) in wording.LEXICAL.items():
        pooled = {
            who: levels.pooled_level([[w for t in talk for w in wording.words_of(t)] for talk in talks], of, seed)
            for who, talks in cut.items()
        }
        rows.append(card.level_row(SAID, *_of(key, words, suffix), "of all words in a row", pooled))
    lengths = {who: np.array([wording.mean_over(t, wording.length) for t in talks]) for who, talks in turns.items()}
    for key, words, unit, of in (
        ("length_distance", "distance of lengths (Wasserstein)", "words", stats.wasserstein_distance),
        ("length_ks", "distance of lengths (Kolmogorov-Smirnov)", "0: the same", _ks),
    ):
        rows.append(card.distance_row(SAID, *_of(key, words, suffix), unit, lengths, of, seed))
    return [row for row in rows if row]


def _ks(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.ks_2samp(one, other).statistic)


# ---------------------------------------------------------------- how it goes on


def goes_on(
    talks: Mapping[str, Sequence[Talk]], vectors: Mapping[str, Sequence[np.ndarray]], rounds: int, seed: int
) -> list[Row]:
    """Rounds, repeats, entrainment, drift, turns that answer as the assistant; over the first ``rounds`` rounds.

    ``vectors``: an array (turns, d) a talk. Rounds of a simulator that ended no conversation by itself are the
    profile's, and none of its results.
    """
    by_key = {
        key: (words, "mean over conversations", {who: [of(t) for t in some] for who, some in talks.items()})
        for key, (words, of) in going_on.BY_TALK.items()
    }
    drifts = {who: [going_on.drift(t, v) for t, v in zip(talks[who], vectors[who], strict=True)] for who in talks}
    by_key["drift"] = ("from turn to turn", "cosine distance, mean over conversations", drifts)
    ends = {who: _rounds_level(some, rounds, seed) for who, some in talks.items() if any(t.ended for t in some)}
    asked = card.level_row(GOES_ON, "rounds", "rounds", f"expected, of {rounds} at most", ends)
    return [*card.mean_rows(GOES_ON, by_key, seed), *([asked] if asked else [])]


def _rounds_level(talks: Sequence[Talk], rounds: int, seed: int) -> levels.Level:
    of = lambda index: going_on.expected_rounds(talks, index, rounds)  # noqa: E731
    return levels.Level(len(talks), of, lambda seed: levels.jackknife(of, len(talks), seed), seed)


def fixed_rounds(talks: Mapping[str, Sequence[Talk]], rounds: int) -> str:
    """One line on the simulators whose rounds the profile fixed; nothing where there is none."""
    fixed = [SIMULATORS[who] for who, some in talks.items() if who in SIMULATORS and not any(t.ended for t in some)]
    why = f"ended no conversation by themselves within {rounds} rounds: how many they have is the profile's doing"
    return f"No result: {', '.join(fixed)} {why}." if fixed else ""


# ---------------------------------------------------------------- what it remembers


def remembers(turns: Turns, training: memory.TrainingTurns, seed: int, suffix: str = "") -> list[Row]:
    """Runs of words shared with the human turns of the training split."""
    by_key: dict[str, tuple[str, str, dict[str, list[float]]]] = {}
    for key, words, unit, of in (
        ("shared_runs", f"runs of {memory.RUN} words that stand in training", "share", lambda s: s.share),
        ("longest_shared_run", "longest run that stands in training", "words", lambda s: float(s.longest)),
        ("copied_turns", "turns copied from training", f"share of those of {memory.TELLING} words", _copied),
    ):
        found = {who: [_mean_of([of(training.shared(t)) for t in talk]) for talk in talks] for who, talks in turns.items()}
        key, words = _of(key, words, suffix)
        by_key[key] = (words, f"{unit}, mean over conversations", found)
    return card.mean_rows(REMEMBERS, by_key, seed)


def _copied(shared: memory.Shared) -> float:
    return math.nan if shared.copied is None else float(shared.copied)


def _mean_of(values: Sequence[float]) -> float:
    kept = [v for v in values if not math.isnan(v)]
    return float(np.mean(kept)) if kept else math.nan
