"""The circuit breaker: tells an endpoint that is down, or fails everybody, from one that failed somebody once.

What may pass is waited out by the clock: sixteen requests that fail at one moment tell no more than one of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

FAILS_EVERYBODY = 8  # final failures in a row, of requests that were asked one after the other


@dataclass
class _Side:
    silent_since: float | None = None
    signs: int = 0
    last_sign: float = 0.0
    failed: list[str] = field(default_factory=list)  # conversations, since it last worked
    silenced: set[str] = field(default_factory=set)  # conversations that got no answer since then
    worked_at: float = float("-inf")


class Breaker:
    """What each endpoint did since it last answered. ``now``: seconds by any clock that only goes forward."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sides: dict[str, _Side] = defaultdict(_Side)

    def worked(self, endpoint: str) -> None:
        self._sides[endpoint] = _Side(worked_at=self._now())

    def worked_since(self, endpoint: str, moment: float) -> bool:
        return self._sides[endpoint].worked_at > moment

    def silent(self, endpoint: str, conversation: str) -> float:
        """Note that it did not answer in a way that may pass; for how many seconds nothing has come from it now."""
        side = self._sides[endpoint]
        side.silenced.add(conversation)
        if side.silent_since is None:
            side.silent_since = self._now()
            return 0.0
        return self._now() - side.silent_since

    def alone(self, endpoint: str, conversation: str) -> bool:
        """Whether it did not answer this conversation and nobody else asked: either may be to blame.

        It counts as failed: if the next one gets no answer either, it was the endpoint.
        """
        side = self._sides[endpoint]
        if side.silenced != {conversation}:
            return False
        side.failed.append(conversation)
        return True

    def failed(self, endpoint: str, conversation: str, asked_at: float) -> bool:
        """Note that a conversation ends by a failure of its request. True when the endpoint fails everybody.

        ``asked_at``: when that was sent. Requests that were in flight together are one sign.
        """
        side = self._sides[endpoint]
        side.failed.append(conversation)
        if asked_at >= side.last_sign:
            side.signs, side.last_sign = side.signs + 1, self._now()
        return side.signs >= FAILS_EVERYBODY

    def victims(self) -> set[str]:
        """Conversations that failed since their endpoint last worked: not their fault, if it fails everybody."""
        return {c for side in self._sides.values() for c in side.failed}
