"""Simulated users: ways to get the human's next turn out of a chat model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from realm.conversations.conversation import Message
from realm.dialogue.format import USER_SYSTEM_PROMPT


@dataclass(frozen=True)
class Simulator:
    """A way to get the human's next turn out of a chat model: API roles are swapped, the reply is the human's.

    ``opening``: what is said to the model when nothing was said yet; None where its template opens by itself.
    ``falls_silent``: it learned to say nothing when it is done (profile value ``learn_ending``).
    """

    name: str
    system: str
    opening: str | None = None
    falls_silent: bool = False

    @property
    def flipped(self) -> bool:
        """Whether its server's template takes the swapped roles back."""
        return self.opening is None

    def messages(self, said: Sequence[Message]) -> list[Message]:
        """The request that asks for the next human turn after ``said``."""
        swapped = [Message("assistant" if m.role == "user" else "user", m.content) for m in said]
        if self.opening and not (swapped and swapped[0].role == "user"):
            swapped.insert(0, Message("user", self.opening))
        return [Message("system", self.system), *swapped]


USERGPT = Simulator("usergpt", USER_SYSTEM_PROMPT)
# The way of Baize and UltraChat: an assistant told to play the user. The wording is ours.
ROLEPLAY = Simulator(
    "roleplay",
    "Play a curious human who is using an AI assistant. Write only what the human says next: a question or a "
    "request in the human's own words. Never answer it and never speak as the assistant.",
    "Hello, I am the AI assistant. What would you like to ask?",
)
# Real human turns as they stand: no model is asked, so it says what it says by the conversation's script.
REPLAY = Simulator("replay", USER_SYSTEM_PROMPT)
SIMULATORS = {s.name: s for s in (USERGPT, ROLEPLAY, REPLAY)}
