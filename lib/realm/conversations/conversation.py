"""The record: one conversation, an ordered list of turns.

On disk it is the Hub's and OpenAI's chat layout, one JSON object a line:
``{"id": ..., "messages": [{"role": "user"|"assistant", "content": ...}], "meta": {...}}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from realm.core.errors import OneLineError

SESSION = "session"  # in meta: the name of the session that it is a part of, or the whole of
PLACE = "place_in_session"  # in meta: how many turns of its session stand before its own, as far as is known
CONTEXT = "context_turns"  # in meta: so many turns at the beginning only show what came before, cut, and teach nothing
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
        """The session as ``meta`` names it; by itself a conversation is a session of its own. Ids tell nothing."""
        named = self.meta.get(SESSION)
        return self.id if named in (None, "") else str(named)

    @property
    def opens_session(self) -> bool:
        """Whether a human opens the session with its first turn: nothing of the session stands before it."""
        first = next((m.role for m in self.messages if m.role != "system"), None)
        return first == "user" and not self.meta.get(PLACE)

    @property
    def cut_turns(self) -> set[int]:
        """Indices of the turns that stop in the middle, at a limit of tokens or by a guardrail."""
        marked = self.meta.get(CUT_TURNS)
        return {i for i in marked if type(i) is int} if isinstance(marked, (list, tuple)) else set()

    def turns(self, role: str) -> list[str]:
        return [m.content for m in self.messages if m.role == role]

    @property
    def rounds(self) -> int:
        """User turns that were answered."""
        return sum(a.role == "user" and b.role == "assistant" for a, b in pairwise(self.messages))

    def with_turns(self, kept: Sequence[int], before: Sequence[Message] = ()) -> Conversation:
        """The turns of these indices, after others that stand ``before``; marks of cut turns go along."""
        own = {place: new for new, place in enumerate(kept, len(before))}
        cut = [new for place, new in own.items() if place in self.cut_turns]
        meta = {k: v for k, v in self.meta.items() if k != CUT_TURNS} | ({CUT_TURNS: cut} if cut else {})
        return replace(self, messages=(*before, *(self.messages[i] for i in kept)), meta=meta)

    def to_record(self) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return {"id": self.id, "messages": messages, "meta": self.meta}
