"""The circuit breaker: an endpoint that fails many times in a row is down, and asking it once more helps nobody."""

from __future__ import annotations

from collections import defaultdict

DOWN_AFTER = 8  # failures in a row, over all conversations; each is one after the client's own retries


class Breaker:
    """Counts failures in a row for each endpoint."""

    def __init__(self) -> None:
        self.streaks: dict[str, list[str]] = defaultdict(list)  # endpoint -> conversations, in order of failing

    def worked(self, endpoint: str) -> None:
        self.streaks[endpoint].clear()

    def failed(self, endpoint: str, conversation: str) -> bool:
        """Note a failure; True when the endpoint counts as down."""
        self.streaks[endpoint].append(conversation)
        return len(self.streaks[endpoint]) >= DOWN_AFTER

    def victims(self) -> set[str]:
        """Conversations that failed in the running streaks: not their fault, if the endpoint was down."""
        return {c for streak in self.streaks.values() for c in streak}
