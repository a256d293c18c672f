"""Held out means held out: what was trained on is read from the manifests, and nothing of it may be evaluated.

Three kinds of overlap count: a session, a cluster of near-duplicates, and a turn that stands in both, of either side.
Turns of fewer than ``TELLING_WORDS`` words do not: people and assistants repeat them ("go on", "you are welcome").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from realm.cleaning.duplicates import CLUSTER
from realm.conversations.conversation import Conversation
from realm.conversations.readers import load_conversations
from realm.core.errors import OneLineError, TooFewError
from realm.core.files import ArtefactError, file_sha256, read_json
from realm.core.manifest import TRAINED_ON

TELLING_WORDS = 8


class LeakError(OneLineError, ValueError):
    """What is to be evaluated was trained on; the message names the first of them and the kind of overlap."""


@dataclass
class Seen:
    """What training saw: sessions, clusters of near-duplicates, and digests of turns; each with where it stands."""

    sessions: dict[str, str] = field(default_factory=dict)
    clusters: dict[str, str] = field(default_factory=dict)
    turns: dict[bytes, str] = field(default_factory=dict)

    def add(self, conversations: Iterable[Conversation], where: str) -> None:
        for conversation in conversations:
            self.sessions.setdefault(conversation.session, where)
            if CLUSTER in conversation.meta:
                self.clusters.setdefault(str(conversation.meta[CLUSTER]), where)
            for turn in _telling(conversation):
                self.turns.setdefault(_digest(turn), where)

    def overlap(self, conversation: Conversation) -> str:
        """In words how a conversation was seen, nothing if it was not."""
        if conversation.session in self.sessions:
            return f"its session {conversation.session} is in {self.sessions[conversation.session]}"
        cluster = str(conversation.meta.get(CLUSTER, ""))
        if cluster in self.clusters:
            return f"a near-duplicate of it is in {self.clusters[cluster]} (cluster {cluster})"
        for turn in _telling(conversation):
            if _digest(turn) in self.turns:
                return f"its turn {turn[:60]!r} is in {self.turns[_digest(turn)]}"
        return ""


def _telling(conversation: Conversation) -> Iterable[str]:
    for message in conversation.messages:
        words = message.content.lower().split()
        if len(words) >= TELLING_WORDS:
            yield " ".join(words)


def _digest(turn: str) -> bytes:
    """The turns of a training split would fill memory a second time."""
    return hashlib.blake2b(turn.encode("utf-8"), digest_size=16).digest()


def seen_by_training(run_folder: Path, stages: Sequence[str]) -> Seen:
    """What the finished ``stages`` (folders of the run) were trained on, by their manifests.

    Raises ArtefactError for a stage without a manifest, and for a file that is no longer the one it was trained on.
    """
    seen = Seen()
    for stage in stages:
        written = run_folder / stage / "manifest.json"
        if not written.exists():
            raise ArtefactError(f"{written}: missing; run the stage that writes it first, notebooks/{stage}.ipynb")
        for name, digest in read_json(written).get(TRAINED_ON, {}).items():
            path = run_folder / name
            if not path.exists() or file_sha256(path) != digest:
                raise ArtefactError(f"{path}: not the file that {stage} was trained on; run that stage again")
            seen.add(load_conversations(path), name)
    return seen


def held_out(conversations: Sequence[Conversation], seen: Seen) -> tuple[list[Conversation], int]:
    """The conversations that training did not see in any of the three ways, and how many were left out.

    Raises LeakError if a session of theirs was seen: then the split is broken, and counting would hide it.
    """
    kept = []
    for conversation in conversations:
        why = seen.overlap(conversation)
        if why.startswith("its session"):
            raise LeakError(f"{conversation.id}: {why}; the splits of notebook 01 do not hold")
        if not why:
            kept.append(conversation)
    return kept, len(conversations) - len(kept)


def require_some(conversations: Sequence[Conversation], key: str) -> None:
    """Raise TooFewError, naming the profile's ``key``, where nothing is held out that could be evaluated."""
    if not conversations:
        raise TooFewError(
            f"{key}: the test split holds 0 conversations to evaluate; raise data_inspection.test_share "
            "or give more conversations in data_inspection.source"
        )


def require_held_out(conversations: Iterable[Conversation], seen: Seen) -> None:
    """Raise LeakError, naming conversation and overlap, if one of them was seen by training."""
    for conversation in conversations:
        if why := seen.overlap(conversation):
            raise LeakError(f"{conversation.id}: {why}; it must not be evaluated")
