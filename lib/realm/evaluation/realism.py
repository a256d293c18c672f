"""How human is the simulated user? Measures that need no judge, each with an interval and a human floor.

The floor is the same measure between two disjoint halves of the human test set: what a perfect simulator
would score. A measure without its floor says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import Conversation, Message
from realm.core.errors import TooFewError
from realm.core.seeds import turn_seed
from realm.evaluation.intervals import bootstrap, mean_interval
from realm.evaluation.measure import Measure
from realm.serving.client import Client
from realm.simulation.simulators import Simulator

WORD = re.compile(r"\w+")


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
