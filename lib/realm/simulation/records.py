"""What a journal tells: what was asked and paid, how conversations stand, what the guardrails did, why some ended."""

from __future__ import annotations

from typing import NamedTuple

from realm.simulation.endings import EndReason


class Usage(NamedTuple):
    """What was asked of one side: answered requests, tokens sent, tokens generated."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Attempt(NamedTuple):
    """One answer that was to be a turn; ``outcome``: ``kept``, ``cut``, ``unfinished``, or why it was rejected."""

    conversation: str
    position: int
    attempt: int
    role: str
    prompt_tokens: int
    new_tokens: int
    outcome: str
    reasoning_tokens: int = 0  # of the new tokens; kept in a table of their own, as is the next
    gone_on: int = 0  # requests after the first, for an answer that had stopped in the middle


class Thought(NamedTuple):
    """How many answers of one side came with reasoning, and its tokens, which are among those generated."""

    answers: int
    tokens: int


class Reason(NamedTuple):
    """Why conversations ended as they did, in the service's words or ours, and how many."""

    reason: str
    words: str
    conversations: int


class Intervention(NamedTuple):
    """What one guardrail did: answers it cut or rejected, in how many conversations, and how many of these ended so."""

    outcome: str
    answers: int
    conversations: int
    ended: int

    @property
    def went_on(self) -> int:
        return self.conversations - self.ended


class Rejected(NamedTuple):
    """Words that did not become a turn, cut after 500 characters; ``instead``: those that did, None if none did."""

    conversation: str
    outcome: str
    words: str
    instead: str | None


class Standing(NamedTuple):
    """How many turns of the journal count, and why no more are asked for; None while more may be."""

    length: int
    reason: EndReason | None
