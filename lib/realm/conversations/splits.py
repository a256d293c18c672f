"""Train, seeds, valid and test without leaks: by session, near-duplicate cluster and first turn; stable by hashing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from realm.conversations.conversation import Conversation
from realm.core.errors import TooFewError
from realm.core.fine_tunes import OwnSplit
from realm.core.seeds import unit_hash

SIDES = ("train", "seeds", "valid", "test")


@dataclass(frozen=True)
class Sides:
    """``seeds`` open RealChat's seeded conversations, so that nothing evaluated is trained on in between.
    ``leaking``: held-out segments whose first turn also opens a segment of another side, taken out."""

    train: list[Conversation]
    seeds: list[Conversation]
    valid: list[Conversation]
    test: list[Conversation]
    leaking: list[Conversation]

    def items(self) -> list[tuple[str, list[Conversation]]]:
        return [(side, getattr(self, side)) for side in SIDES]


def split_sides(conversations: Sequence[Conversation], shares: Mapping[str, float], seed: int, cluster: str) -> Sides:
    """Whole groups go to one side: ``shares`` name those of test, valid and seeds, the rest is train. A group holds the
    sessions that share a near-duplicate cluster (named in ``meta[cluster]``) or the first turn of the session, directly
    or by way of others.

    A group's side is a hash of its smallest session name and the seed: data that are added move only the
    groups they join. Segments from within a session may still open alike on two sides ("continue"): those
    held out are set apart.
    """
    drawn: dict[str, list[Conversation]] = {side: [] for side in SIDES}
    group = session_groups(conversations, cluster)
    for conversation in conversations:
        position = unit_hash(f"{seed}:{group[conversation.session]}")
        drawn[_side_at(position, shares)].append(conversation)
    opened = {first_turn(c) for c in drawn["train"]}
    kept, leaking = {"train": drawn["train"]}, []
    for side in ("test", "valid", "seeds"):
        leaking += [c for c in drawn[side] if first_turn(c) in opened]
        kept[side] = [c for c in drawn[side] if first_turn(c) not in opened]
        opened |= {first_turn(c) for c in kept[side]}
    return Sides(**kept, leaking=leaking)


def require_training(sides: Sides) -> None:
    """Raise TooFewError if all went to the other sides."""
    if not sides.train:
        counts = ", ".join(f"{side}: {len({c.session for c in members})}" for side, members in sides.items())
        raise TooFewError(
            f"split: 0 sessions are left to train on ({counts}); lower data_inspection.test_share or give more "
            "conversations in data_inspection.source"
        )


def _side_at(position: float, shares: Mapping[str, float]) -> str:
    for side in ("test", "valid", "seeds"):
        if position < shares[side]:
            return side
        position -= shares[side]
    return "train"


def session_groups(conversations: Sequence[Conversation], cluster: str) -> dict[str, str]:
    """Session -> the smallest session name of its group."""
    marks: dict[Hashable, list[str]] = defaultdict(list)
    for conversation in conversations:
        if cluster in conversation.meta:
            marks["cluster", conversation.meta[cluster]].append(conversation.session)
        if conversation.opens_session:
            marks["turn", first_turn(conversation)].append(conversation.session)
    leader = {c.session: c.session for c in conversations}

    def find(session: str) -> str:
        while leader[session] != session:
            leader[session] = session = leader[leader[session]]
        return session

    for together in marks.values():
        for session in together[1:]:
            low, high = sorted((find(together[0]), find(session)))
            leader[high] = low
    return {session: find(session) for session in leader}


def first_turn(conversation: Conversation) -> str:
    """The first human turn without regard to case and blanks; the first turn where no human speaks."""
    turns = conversation.turns("user") or [conversation.messages[0].content]
    return " ".join(turns[0].lower().split())


def one_per_session(conversations: Sequence[Conversation], seed: int) -> list[Conversation]:
    """The first segment of each session, in a seeded order: rows that are independent of each other."""
    first: dict[str, Conversation] = {}
    for conversation in conversations:
        first.setdefault(conversation.session, conversation)
    return sorted(first.values(), key=lambda c: unit_hash(f"order:{seed}:{c.session}"))


def apart(
    conversations: Sequence[Conversation], split: OwnSplit | None
) -> tuple[list[Conversation], list[Conversation]]:
    """(trained on, validated on): all and none where ``split`` is null, else shuffled and cut.

    For the same conversations in the same order it gives the sides of the authors' datasets.py of the response model:
    NumPy's legacy generator, 95 % of a permutation by seed 125, rounded down.
    """
    if split is None:
        return list(conversations), []
    order = np.random.RandomState(split.seed).permutation(len(conversations))
    cut = int(len(order) * split.train_share)
    return [conversations[i] for i in order[:cut]], [conversations[i] for i in order[cut:]]
