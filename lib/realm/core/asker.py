"""Who asks in a corpus beside RealChat: the part of a profile by which such corpora differ, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from realm.core.block import Block
from realm.core.endpoint import Endpoint


class Asker(Block):
    """One corpus of ``simulation.beside``. What is null is as in ``simulation`` itself; what is replayed is never free.

    ``seed_source`` ``train`` or ``test``: sessions of these splits of notebook 01 from their first turn on, one
    conversation each.
    """

    simulator: Literal["usergpt", "roleplay", "replay"]
    user: Endpoint | None
    seed_source: str | None = None
    free: int | None = Field(default=None, ge=0)
    seeded: int | None = Field(default=None, ge=0)
    max_rounds: int | None = Field(default=None, ge=1)

    def differs(self) -> dict[str, Any]:
        """The values of a simulation that are this corpus's own."""
        given = {key: value for key, value in self if value is not None}
        return {"user": None} | ({"free": 0} if self.simulator == "replay" else {}) | given
