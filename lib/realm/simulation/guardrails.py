"""Guardrails: what is made of a reply before it becomes a turn, or why it does not become one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from realm.conversations.conversation import MAX_TURN_BYTES, Message
from realm.core.profile import Guardrails
from realm.simulation.endings import EndReason
from realm.simulation.journal import CUT, KEPT

# How assistants open, and humans do not. Only the opening is looked at, behind a greeting or an apology: further on,
# such words are as likely a quotation. "I am an AI researcher" and "As an AI, what do you think?" are human.
_BEFORE = (
    r"(?:(?:hello|hi|hey|sure|certainly|absolutely|of course|i(?:'m| am) sorry|sorry|thanks?)\b"
    r"[^.!?,\n]{0,20}[.,!]*\s*(?:but\s+)?)?"
)
_AI = r"an? (?:ai|artificial intelligence)(?: language)?"
_ASSISTANT_OPENS = (
    rf"(?:i am|i'm) (?:just |only )?{_AI}(?: (?:assistant|model|chatbot)\b|\s*[.,!])",
    r"(?:i am|i'm) (?:just |only )?an? (?:large )?language model\b",
    rf"as (?:{_AI}|an? (?:large )?language model)(?: (?:assistant|model|chatbot))?,? (?:i|my)\b",
    r"how (?:can|may|could) i (?:help|assist) you\b",
    r"what can i (?:do for|help) you\b",
    r"(?:i am|i'm) (?:always )?here to (?:help|assist)\b",
    r"(?:i would|i'd|i will|i'll|i am|i'm) (?:be )?(?:more than )?(?:happy|glad) to (?:help|assist)\b",
    r"is there anything else i can\b",
    r"you(?:'re| are) (?:very |most )?welcome\b",
    r"thank you for (?:your question|asking|reaching out)\b",
)
_DRIFT = re.compile(rf"\W*{_BEFORE}(?:{'|'.join(_ASSISTANT_OPENS)})", re.IGNORECASE)
_OFFER = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely)\b[!,. ]+here(?:'s| is| are) (?:an?|some|your)\b", re.IGNORECASE
)


def answers_as_assistant(turn: str) -> bool:
    """Whether a human turn opens as an assistant's does: an offer of help, "as an AI, I", "Sure, here is".

    A heuristic for English: it misses an assistant who comes straight to the point.
    """
    plain = turn[:300].replace("’", "'")
    return bool(_DRIFT.match(plain) or _OFFER.match(plain))


@dataclass(frozen=True)
class Judge:
    """Turns a reply into a message, by the profile's rules. ``reserved``: tokens of the template.

    ``falls_silent``: this user says nothing when it is done; for others an empty turn is a fault.
    """

    rules: Guardrails
    reserved: Sequence[str]
    falls_silent: bool

    def judge(self, role: str, text: str, said: Sequence[Message]) -> tuple[Message, str]:
        """(message, outcome): ``kept``, ``cut``, or the EndReason for which it cannot be a turn."""
        limit = self.rules.max_turn_characters
        content = self._clean(text)
        whole = limit is None or len(content) <= limit
        message = Message(role, content if whole else content[:limit].rstrip())
        fault = self._user_fault(message, said) if role == "user" else self._answer_fault(message)
        return message, fault or (KEPT if whole else CUT)

    def gives_up(self, faults: Sequence[EndReason], more: int = 0) -> bool:
        """Whether the last fault ends the conversation, after these in order; ``more``: tries that it has besides."""
        final = (EndReason.USER_ENDED, EndReason.CONTENT_FILTER)
        return bool(faults) and (faults[-1] in final or len(faults) > self.rules.resample_tries + more)

    def _user_fault(self, message: Message, said: Sequence[Message]) -> EndReason | None:
        if not message.content:
            return EndReason.USER_ENDED if said and self.falls_silent else EndReason.EMPTY_TURN
        if len(message.content.encode()) > MAX_TURN_BYTES:
            return EndReason.USER_FAILED
        if message in said:
            return EndReason.REPEATED_TURN
        if self.rules.role_drift and answers_as_assistant(message.content):
            return EndReason.ANSWERS_AS_ASSISTANT
        return None

    def _answer_fault(self, message: Message) -> EndReason | None:
        # Our own reader takes no longer turn: it would make the whole export unreadable.
        unusable = not message.content or len(message.content.encode()) > MAX_TURN_BYTES
        return EndReason.RESPONDER_FAILED if unusable else None

    def _clean(self, text: str) -> str:
        # Half a surrogate pair and NUL can come out of JSON, but cannot be written to a file that we would read.
        text = text.encode("utf-8", "replace").decode().replace("\x00", "")
        # A template token that the model spells as plain text would break the template; none may be left.
        while found := [t for t in self.reserved if t in text]:
            for token in found:
                text = text.replace(token, "")
        return text.strip()
