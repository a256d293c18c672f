"""Opening turns: those of humans, one a session, and those of simulators, sampled, kept, and never asked for twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import Conversation
from realm.core.errors import TooFewError
from realm.core.progress import Bar
from realm.core.seeds import turn_seed
from realm.evaluation.kept import Kept
from realm.serving.client import together
from realm.serving.reply import Reply
from realm.simulation.simulators import ROLEPLAY, USERGPT, Simulator

# Who is asked in which way; the endpoints have the same names in the profile.
WAYS = {"usergpt": USERGPT, "base": USERGPT, "roleplay": ROLEPLAY, "responder": ROLEPLAY}


def opening_turns(conversations: Sequence[Conversation], at_most: int, seed: int) -> list[str]:
    """Opening human turns, one a session, in a seeded order: no session counts twice."""
    openings: dict[str, str] = {}
    for conversation in filter(lambda c: c.opens_session, conversations):
        openings.setdefault(conversation.session, conversation.turns("user")[0])
    sessions = sorted(openings)
    order = np.random.default_rng(seed).permutation(len(sessions))
    return [openings[sessions[i]] for i in order[:at_most]]


def two_human_groups(conversations: Sequence[Conversation], size: int, seed: int) -> list[str]:
    """Opening turns of two groups of ``size`` sessions, one after the other: the first is whom simulators are compared
    with, and both give the floor.

    Raises TooFewError if there are fewer sessions.
    """
    found = opening_turns(conversations, 2 * size, seed)
    if len(found) < 2 * size:
        raise TooFewError(
            f"two groups of {size} human openings asked for, {len(found)} sessions of the test split show theirs; "
            "lower simulator_realism.conversations (to 10 at least) or raise data_inspection.test_share"
        )
    return found


async def simulated(kept: Kept, simulator: Simulator, count: int, seed: int) -> list[Reply]:
    """``count`` independent opening turns of a simulator; empty replies stay in, as empty texts.

    What was answered before is not asked for again. Raises EndpointError.
    """
    bar = Bar(total=count, desc=f"openings of {kept.client.role}", unit="turns")

    async def one(number: int) -> Reply:
        seed_of_it = turn_seed(f"opening-{number}", 0, seed)
        came = await kept.complete(simulator.messages([]), seed_of_it, temperature=kept.client.endpoint.temperature)
        bar.update()
        return came.reply

    with bar:
        return await together(one(i) for i in range(count))


def first_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[str]:
    """Each text cut after ``limit`` tokens, so that none is told by its length; "(empty)" where nothing is left."""
    ids = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [tokenizer.decode(i[:limit]).strip() or "(empty)" for i in ids]


def embed(texts: Sequence[str], model_folder: Path) -> np.ndarray:
    """Unit-length sentence embeddings, shape (n, d), by sentence-transformers."""
    from sentence_transformers import SentenceTransformer  # seconds to import
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading: one more line of noise
    model = SentenceTransformer(str(model_folder), device=None, trust_remote_code=False)
    with Bar(total=len(texts), desc="embedding", unit="texts") as bar:
        model[0].register_forward_hook(lambda _, given, out: bar.update(len(out["token_embeddings"])) and None)
        return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=32)


def embed_turns(
    samples: Sequence[Mapping[str, Sequence[Sequence[str]]]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    model_folder: Path,
) -> list[dict[str, list[np.ndarray]]]:
    """Of each sample, by source, an array (turns, d) a conversation of its turns, each cut after ``limit`` tokens.

    No text is embedded twice.
    """
    every = list(dict.fromkeys(t for turns in samples for talks in turns.values() for talk in talks for t in talk))
    cut = dict(zip(every, first_tokens(every, tokenizer, limit) if every else (), strict=True))
    distinct = list(dict.fromkeys(cut.values()))
    vectors = dict(zip(distinct, embed(distinct, model_folder) if distinct else (), strict=True))
    array = lambda talk: np.array([vectors[cut[t]] for t in talk])  # noqa: E731
    return [{who: [array(talk) for talk in talks] for who, talks in turns.items()} for turns in samples]
