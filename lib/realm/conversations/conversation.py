"""The record: one conversation, an ordered list of turns.

On disk it is the Hub's and OpenAI's chat layout, one JSON object a line:
``{"id": ..., "messages": [{"role": "user"|"assistant", "content": ...}], "meta": {...}}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from realm.core.errors import OneLineError

CONTEXT = "context"  # in meta: so many turns at the beginning only show what came before, cut, and teach nothing
CUT_TURNS = "cut_turns"  # in meta: which turns, counted from 0, stop in the middle; their ends teach nothing
ENDS_SESSION = "ends_session"  # in meta, true: the last turn is known to be the last of its session
MAX_TURN_BYTES = 1_000_000


class ConversationFileError(OneLineError, ValueError):
    """A file that cannot be read as conversations; the message names file, place and fix."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An ordered list of turns; ``meta`` travels with it and is never trained on."""

    id: str
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def session(self) -> str:
        """The ShareGPT session: ids are ``SESSION_N``, N being the segment."""
        return str(self.meta.get("session") or split_segment_id(self.id)[0])

    @property
    def opens_session(self) -> bool:
        """Whether its first turn is the first of its session, as far as the id tells."""
        whole, _, part = self.id.partition("/")
        return split_segment_id(whole)[1] in (0, None) and part in ("", "0") and self.messages[0].role == "user"

    def turns(self, role: str) -> list[str]:
        return [m.content for m in self.messages if m.role == role]

    @property
    def rounds(self) -> int:
        """User turns that were answered."""
        return sum(a.role == "user" and b.role == "assistant" for a, b in pairwise(self.messages))

    def to_record(self) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return {"id": self.id, "messages": messages, "meta": self.meta}


def split_segment_id(conversation_id: str) -> tuple[str, int | None]:
    """``"abc_3"`` -> ``("abc", 3)``; an id without a segment number -> ``(id, None)``."""
    session, _, segment = conversation_id.rpartition("_")
    if session and segment.isascii() and segment.isdigit():
        return session, int(segment)
    return conversation_id, None
