"""How a conversation ends, and how a simulation fails."""

from __future__ import annotations

from enum import StrEnum

from realm.core.errors import OneLineError


class EndReason(StrEnum):
    """Why a conversation ended; each is counted."""

    MAX_ROUNDS = "max_rounds"
    CONTEXT_FULL = "context_full"
    REPEATED_TURN = "repeated_turn"
    EMPTY_TURN = "empty_turn"
    ANSWERS_AS_ASSISTANT = "answers_as_assistant"
    USER_ENDED = "user_ended"
    USER_FAILED = "user_failed"
    RESPONDER_FAILED = "responder_failed"
    BUDGET_SPENT = "budget_spent"


class SimulationError(OneLineError, RuntimeError):
    """A simulation that cannot start or go on; the message says why and how to resume."""
