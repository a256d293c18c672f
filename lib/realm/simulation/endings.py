"""How a conversation ends, and how a simulation fails."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from realm.core.errors import OneLineError


class EndReason(StrEnum):
    """Why a conversation ended; each is counted."""

    MAX_ROUNDS = "max_rounds"
    CONTEXT_FULL = "context_full"
    REPEATED_TURN = "repeated_turn"
    EMPTY_TURN = "empty_turn"
    ANSWERS_AS_ASSISTANT = "answers_as_assistant"
    USER_ENDED = "user_ended"
    TURN_CUT = "turn_cut"
    CONTENT_FILTER = "content_filter"
    REASONING_ONLY = "reasoning_only"
    USER_FAILED = "user_failed"
    RESPONDER_FAILED = "responder_failed"
    BUDGET_SPENT = "budget_spent"


# Those of services, not of conversations: the next call asks again, a few times.
FAILURES = (EndReason.USER_FAILED, EndReason.RESPONDER_FAILED, EndReason.REASONING_ONLY)
FAILED_ENDINGS_ASKED_AGAIN = 3


class Ending(NamedTuple):
    """How one conversation ends; ``words``: of the service, or ours, where it did not end by itself.

    ``kind``: of the EndpointError that ended it; empty where an answer came and was no turn.
    """

    reason: EndReason
    words: str = ""
    kind: str = ""


class SimulationError(OneLineError, RuntimeError):
    """A simulation that cannot start or go on; the message says why and how to resume."""
