"""Where conversations end by the profile's own numbers: rounds, and the room that a context has.

Such an end is a view, not a fact: the same words end earlier under fewer rounds, and go on under more. So a journal
serves all of them, and a conversation of it may stand longer there than in the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from realm.conversations.conversation import Message
from realm.core.profile import Endpoint
from realm.dialogue.format import ChatFormat
from realm.simulation.endings import EndReason
from realm.simulation.simulators import Simulator


def speaker(said: Sequence[Message]) -> str:
    """Whose turn it is."""
    return "assistant" if said and said[-1].role == "user" else "user"


@dataclass(frozen=True)
class Limits:
    """``user`` is None where a script says the human's turns. ``count``: text -> tokens, by the serving tokenizer, of
    the model ``counted_by``."""

    max_rounds: int
    user: Endpoint | None
    responder: Endpoint
    simulator: Simulator
    format: ChatFormat
    count: Callable[[str], int]
    responder_system: str
    counted_by: str = ""
    elsewhere: frozenset[str] = frozenset()  # roles whose requests only their server can count, when it is there
    ends_at_cut: bool = False  # with a turn that stops in the middle

    def __str__(self) -> str:
        rooms = [f"{e.context_length}-{e.max_new_tokens}" if e else "script" for e in (self.user, self.responder)]
        text = f"rounds {self.max_rounds}, user {rooms[0]}, responder {rooms[1]}, tokens {self.counted_by}"
        return text + (", end at a cut turn" if self.ends_at_cut else "")

    def ending(self, said: Sequence[Message], cut_turns: Collection[int]) -> EndReason | None:
        """Why no further turn is asked for after ``said``; None if one is. ``cut_turns``: indices of those cut."""
        if self.ends_at_cut and len(said) - 1 in cut_turns:
            return EndReason.TURN_CUT
        if said and said[-1].role == "assistant" and sum(m.role == "user" for m in said) >= self.max_rounds:
            return EndReason.MAX_ROUNDS
        return None if self._fits(said) else EndReason.CONTEXT_FULL

    def _fits(self, said: Sequence[Message]) -> bool:
        room = self.room(speaker(said))
        # A script goes on whatever was said.
        unknown = room is None or speaker(said) in self.elsewhere
        return unknown or self.tokens(said) <= room

    def room(self, role: str) -> int | None:
        """Tokens that a request for a turn of this side may have; None where a script says it."""
        endpoint = self.user if role == "user" else self.responder
        return None if endpoint is None else endpoint.context_length - endpoint.max_new_tokens

    def cut(
        self, opening: Sequence[Message], turns: Sequence[Message], cut_turns: Collection[int]
    ) -> tuple[int, EndReason | None]:
        """How many of ``turns`` stand, and why no more do; (all of them, None) if the conversation may go on."""
        said, first = [*opening, *turns], len(opening)
        # What fits at the end fitted before: of each side the longest request is enough, and most need no more.
        fitted = all(self._fits(said[:n]) for n in range(max(first, len(said) - 1), len(said) + 1))
        for n in range(first, len(said) + 1):
            may_end = not fitted or (n and said[n - 1].role == "assistant") or n - 1 in cut_turns
            if may_end and (reason := self.ending(said[:n], cut_turns)):
                return n - first, reason
        return len(turns), None

    def request(self, said: Sequence[Message]) -> list[Message]:
        """What is sent for the next turn: always whole, its system prompt first.

        A system turn of the conversation's own, from its seed, is the responder's; a simulated user does not see it.
        """
        own = bool(said) and said[0].role == "system"
        if speaker(said) == "user":
            return self.simulator.messages(said[own:])
        return [*said] if own else [Message("system", self.responder_system), *said]

    def tokens(self, said: Sequence[Message]) -> int:
        """Tokens of that request, by the template that its server fills in."""
        if speaker(said) == "user" and self.simulator.flipped:
            spoken = [m for m in said if m.role != "system"]
            text, _ = self.format.render(spoken, self.simulator.system, reply_as="user")
        else:
            text, _ = self.format.render(self.request(said), None, reply_as="assistant")
        return self.count(text)
