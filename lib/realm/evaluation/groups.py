"""The four groups of measures on the realism card, each a list of rows: asked, said, goes on, remembers.

Turns come as ``Turns``: source -> a list a conversation of its turns. Openings are conversations of one turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from realm.core.metrics import Metrics
from realm.evaluation import card, going_on, levels, memory, wording
from realm.evaluation.card import FLOOR, GROUPS, HUMANS, SIMULATORS, Row
from realm.evaluation.embedding_distance import density_coverage, embedding_distance
from realm.evaluation.going_on import Talk
from realm.evaluation.measure import Measure
from realm.evaluation.several import holm
from realm.evaluation.two_sample import TwoSample, difference, human_floor, two_sample

Turns = Mapping[str, Sequence[Sequence[str]]]
ASKED, SAID, GOES_ON, REMEMBERS = GROUPS
POOLED = 20  # words
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


def told_table(told: Told) -> pd.DataFrame:
    """A line a simulator, and the floor: AUC with limits, n, null, adjusted p-value, difference from UserGPT's."""
    adjusted = holm({who: test.p_value for who, test in told.tests.items()})
    lines = []
    for who, test in told.tests.items():
        nearer = difference(test, told.tests["usergpt"]) if "usergpt" in told.tests and who != "usergpt" else None
        lines.append(
            {
                "against humans": SIMULATORS[who],
                "AUC": test.auc.value,
                "ci_low": test.auc.ci_low,
                "ci_high": test.auc.ci_high,
                "n": test.auc.n,
                "null mean": test.null_mean,
                "null, 95th percentile": test.null_high,
                "p (Holm)": adjusted[who],
                "minus UserGPT's": card.shown(nearer) if nearer else "",
            }
        )
    floor = {"against humans": f"humans (mean over halvings, sd {told.floor_sd:.3f})", "AUC": told.floor.value}
    limits = {"ci_low": told.floor.ci_low, "ci_high": told.floor.ci_high, "n": told.floor.n}
    return pd.DataFrame([*lines, {**floor, **limits}]).fillna("")


def nearness(vectors: Mapping[str, Sequence[np.ndarray]], size: int, seed: int) -> list[Row]:
    """How far the embeddings of ``size`` openings lie from those of as many humans': energy distance, density (1 where
    the distributions are the same) and coverage. ``vectors``: an array (1, d) an opening."""
    stacked = {who: np.vstack(v) for who, v in vectors.items() if len(v) >= size}
    humans = stacked.pop(HUMANS)
    floor = lambda of: levels.mean_of_halvings(lambda a, b: of(humans[a], humans[b]), len(humans), size, seed)  # noqa: E731
    both = {who: density_coverage(humans[:size], v[:size]) for who, v in stacked.items()}
    apart = {who: embedding_distance(humans[:size], v[:size]) for who, v in stacked.items()}
    density, coverage = ({who: pair[i] for who, pair in both.items()} for i in (0, 1))
    rows = (
        (
            "embedding_distance",
            "distance of embeddings",
            "energy distance",
            apart,
            lambda a, b: embedding_distance(a, b),
        ),
        ("density", "lie where humans' do (density)", "1: alike", density, lambda a, b: density_coverage(a, b)[0]),
        ("coverage", "humans that some lie near (coverage)", "share", coverage, lambda a, b: density_coverage(a, b)[1]),
    )
    return [
        Row(ASKED, key, words, unit, gaps, gaps, floor(lambda a, b, of=of: of(a, b).value))
        for key, words, unit, gaps, of in rows
        if gaps
    ]


def diversity(texts: Mapping[str, Sequence[str]], vectors: Mapping[str, Sequence[np.ndarray]], seed: int) -> list[Row]:
    """First-turn diversity (arXiv 2510.06552) and topic diversity of openings, all cut alike; ``vectors``: an array
    (1, d) an opening."""
    words = {who: levels.pairwise_level(word_overlap(t), 100.0, seed) for who, t in texts.items()}
    stacked = {who: np.vstack(v) for who, v in vectors.items()}
    topics = {who: levels.pairwise_level(v @ v.T, 1.0, seed) for who, v in stacked.items()}
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


def said(turns: Turns, seed: int, suffix: str = "") -> list[Row]:
    """Length, marks of style, and lexical diversity. Of a conversation the first 20 words are pooled: one pasted text
    would fill the pool, and who says less brings in more subjects a word."""
    by_key = {}
    for key, (words, of) in wording.MARKS.items():
        values = {who: [wording.mean_over(t, of) for t in talks] for who, talks in turns.items()}
        key, words = _of(key, words, suffix)
        by_key[key] = (words, "mean over conversations", values)
    rows: list[Row | None] = [*card.mean_rows(SAID, by_key, seed)]
    pools = {who: [_first_words(talk) for talk in talks] for who, talks in turns.items()}
    for key, (words, of) in wording.LEXICAL.items():
        found = {who: levels.pooled_level(pool, of, seed) for who, pool in pools.items()}
        unit = f"of the first {POOLED} words of each, in a row"
        rows.append(card.level_row(SAID, *_of(key, words, suffix), unit, found))
    lengths = {who: np.array([wording.mean_over(t, wording.length) for t in talks]) for who, talks in turns.items()}
    for key, words, unit, of in (
        ("length_distance", "distance of lengths (Wasserstein)", "words", stats.wasserstein_distance),
        ("length_ks", "distance of lengths (Kolmogorov-Smirnov)", "0: the same", _ks),
    ):
        rows.append(card.distance_row(SAID, *_of(key, words, suffix), unit, lengths, of, seed))
    return [row for row in rows if row]


def surprised(nats: Mapping[str, Sequence[float]], seed: int) -> list[Row]:
    """What the base model makes of openings; ``nats``: by source, of each, as ``surprisal.surprisal`` gives it."""
    unit = "nats a token, mean over openings"
    return card.mean_rows(SAID, {"surprisal": ("surprise of the untrained base model", unit, nats)}, seed)


def _first_words(turns: Sequence[str]) -> list[str]:
    return [w for t in turns for w in wording.words_of(t)][:POOLED]


def _ks(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.ks_2samp(one, other).statistic)


# ---------------------------------------------------------------- how it goes on


def goes_on(
    talks: Mapping[str, Sequence[Talk]],
    followed: Mapping[str, Sequence[tuple[Talk, np.ndarray]]],
    rounds: int,
    seed: int,
) -> list[Row]:
    """Rounds, repeats, entrainment, drift, turns that answer as the assistant; over the first ``rounds`` rounds.

    ``followed``: talks with an embedding (turns, d) of each. Rounds of a simulator that ended no conversation by itself
    are the profile's, and none of its results.
    """
    by_key = {
        key: (words, "mean over conversations", {who: [of(t) for t in some] for who, some in talks.items()})
        for key, (words, of) in going_on.BY_TALK.items()
    }
    drifts = {who: [going_on.drift(t, v) for t, v in some] for who, some in followed.items()}
    by_key["drift"] = ("change of subject from turn to turn", "cosine distance, mean over conversations", drifts)
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
        found = {
            who: [_mean_of([of(training.shared(t)) for t in talk]) for talk in talks] for who, talks in turns.items()
        }
        key, words = _of(key, words, suffix)
        by_key[key] = (words, f"{unit}, mean over conversations", found)
    return card.mean_rows(REMEMBERS, by_key, seed)


def _copied(shared: memory.Shared) -> float:
    return math.nan if shared.copied is None else float(shared.copied)


def _mean_of(values: Sequence[float]) -> float:
    kept = [v for v in values if not math.isnan(v)]
    return float(np.mean(kept)) if kept else math.nan
