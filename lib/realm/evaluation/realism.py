"""How human is the simulated user? Measures that need no judge, each with an interval and a human floor.

The floor is the same measure between two disjoint halves of the human test set: what a perfect simulator
would score. A measure without its floor says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import Conversation, Message
from realm.core.errors import TooFewError
from realm.core.seeds import turn_seed
from realm.evaluation.intervals import auc_interval, bootstrap, drawn_within_classes, mean_interval
from realm.serving.client import Client
from realm.simulation.simulators import Simulator

FOLDS = 5
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval; ``n`` counts conversations."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def opening_turns(conversations: Sequence[Conversation], at_most: int, seed: int) -> list[str]:
    """Opening human turns, one a session, in a seeded order: no session counts twice."""
    openings: dict[str, str] = {}
    for conversation in filter(lambda c: c.opens_session, conversations):
        openings.setdefault(conversation.session, conversation.turns("user")[0])
    sessions = sorted(openings)
    order = np.random.default_rng(seed).permutation(len(sessions))
    return [openings[sessions[i]] for i in order[:at_most]]


def two_human_groups(conversations: Sequence[Conversation], size: int, seed: int) -> tuple[list[str], list[str]]:
    """Opening turns of two disjoint groups of ``size`` sessions: whom simulators are compared with, and the floor.

    Raises TooFewError if there are fewer sessions.
    """
    found = opening_turns(conversations, 2 * size, seed)
    if len(found) < 2 * size:
        raise TooFewError(
            f"two groups of {size} human openings asked for, {len(found)} sessions of the test split show theirs; "
            "lower simulator_realism.conversations (to 10 at least) or raise data_inspection.test_share"
        )
    return found[:size], found[size:]


async def simulated_first_turns(client: Client, simulator: Simulator, count: int, seed: int) -> list[str]:
    """``count`` independent opening turns of a simulator; empty replies stay in, as empty texts."""
    request: list[Message] = simulator.messages([])
    requests = [(request, turn_seed(f"opening-{i}", 0, seed)) for i in range(count)]
    replies = await client.complete_all(requests, f"openings of {simulator.name}")
    return [r.text.strip() for r in replies]


def first_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[str]:
    """Each text cut after ``limit`` tokens, so that none is told by its length; "(empty)" where nothing is left."""
    ids = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [tokenizer.decode(i[:limit]).strip() or "(empty)" for i in ids]


def embed(texts: Sequence[str], model_folder: Path) -> np.ndarray:
    """Unit-length sentence embeddings, shape (n, d), by sentence-transformers."""
    from sentence_transformers import SentenceTransformer  # seconds to import

    model = SentenceTransformer(str(model_folder), device=None, trust_remote_code=False)
    return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=32)


def words(text: str) -> int:
    return len(WORD.findall(text))


def length_distance(one: Sequence[str], other: Sequence[str], seed: int) -> Measure:
    """Wasserstein distance between the distributions of turn length, in words (0: the same)."""
    a, b = np.array([words(t) for t in one], float), np.array([words(t) for t in other], float)
    rng = np.random.default_rng(seed)
    draws = [stats.wasserstein_distance(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(1_000)]
    value = stats.wasserstein_distance(a, b)
    # Resampling both sides adds a distance of its own; the draws are moved back by that, and none is negative.
    centred = np.maximum(0, np.array(draws) - (np.mean(draws) - value))
    low, high = np.percentile(centred, [2.5, 97.5])
    return Measure(value, min(low, value), max(high, value), len(a))


def mean_words(texts: Sequence[str], seed: int) -> Measure:
    counts = [float(words(t)) for t in texts]
    return Measure(float(np.mean(counts)), *mean_interval(counts, seed), len(counts))


def first_turn_diversity(texts: Sequence[str], seed: int) -> Measure:
    """1 − mean pairwise unigram Jaccard, x100 ("Flipping the Dialogue", arXiv 2510.06552); 100: no word shared."""
    sets = [frozenset(w.lower() for w in WORD.findall(t)) for t in texts]
    similarity = np.zeros((len(sets), len(sets)))
    for i, j in combinations(range(len(sets)), 2):
        union = len(sets[i] | sets[j])
        similarity[i, j] = similarity[j, i] = len(sets[i] & sets[j]) / union if union else 1.0
    return _pairwise_diversity(similarity, seed, 100.0)


def topic_diversity(embeddings: np.ndarray, seed: int) -> Measure:
    """Mean pairwise cosine distance, each text with the others only; ``embeddings`` (n, d) of unit length."""
    return _pairwise_diversity(embeddings @ embeddings.T, seed, 1.0)


def _pairwise_diversity(similarity: np.ndarray, seed: int, scale: float) -> Measure:
    """scale * (1 − mean off-diagonal similarity), bootstrapped over texts; a text is never paired with itself."""
    n = len(similarity)

    def diversity(index: np.ndarray) -> float:
        index = index.astype(int)
        different = index[:, None] != index[None, :]
        return scale * (1 - similarity[np.ix_(index, index)][different].mean())

    interval = bootstrap([np.arange(n)], diversity, seed, vectorized=False)
    return Measure(diversity(np.arange(n)), *interval, n)


@dataclass(frozen=True)
class TwoSample:
    """Classifier two-sample test: AUC of telling two sets of texts apart (0.5: cannot), and its null.

    ``null_mean`` and ``null_high`` (95th percentile) come from permuted labels: at small n cross-validated
    AUC is biased, and only the null says what "cannot tell apart" looks like.
    """

    auc: Measure
    null_mean: float
    null_high: float


def two_sample_auc(
    one: np.ndarray, other: np.ndarray, repeats: int, permutations: int, seed: int, desc: str = "two-sample test"
) -> TwoSample:
    """Logistic regression on embeddings (n, d), 5-fold, averaged over ``repeats`` random foldings.

    Rows must come from different conversations: then no conversation stands in train and test folds.
    """
    features = np.vstack([one, other])
    labels = np.repeat([0, 1], [len(one), len(other)])
    rng = np.random.default_rng(seed)
    bar = tqdm(total=repeats + permutations, desc=desc, unit="fit")
    with bar:
        scores = []
        for _ in range(repeats):
            scores.append(_out_of_fold(features, labels, rng))
            bar.update()
        null = []
        for _ in range(permutations):
            shuffled = rng.permutation(labels)
            null.append(roc_auc_score(shuffled, _out_of_fold(features, shuffled, rng)))
            bar.update()
    value = float(np.mean([roc_auc_score(labels, s) for s in scores]))
    ranks = np.mean([stats.rankdata(s) for s in scores], axis=0)
    low, high = auc_interval(ranks, labels == 1, drawn_within_classes(labels == 1, rng))
    null_mean, null_high = (float(np.mean(null)), float(np.percentile(null, 95))) if null else (0.5, 0.5)
    return TwoSample(Measure(value, min(low, value), max(high, value), len(labels)), null_mean, null_high)


def _out_of_fold(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return cross_val_predict(model, features, labels, cv=folds, method="decision_function")
