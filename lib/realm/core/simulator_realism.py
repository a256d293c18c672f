"""The part of a profile that says whose openings are held beside humans', and how."""

from __future__ import annotations

from pydantic import Field, model_validator

from realm.core.block import Block
from realm.core.endpoint import Endpoint


class SimulatorRealism(Block):
    """Notebook 06. Who opens: ``usergpt``, the untrained ``base`` under the flipped template, the base told to play a
    user (``roleplay``), and a stronger model told so (``responder``, or null).

    ``conversations``: openings of each simulator, and of each of two groups of humans; the second group is the floor.
    ``sizes``: conversations a side that a classifier learns from, since its area under the curve grows with them; the
    first is the headline. ``compared_tokens``: where texts that a classifier compares are cut; lengths are not.
    """

    usergpt: Endpoint
    base: Endpoint
    roleplay: Endpoint
    responder: Endpoint | None = None
    embedder: str
    conversations: int = Field(ge=10)
    sizes: list[int] = Field(min_length=1)
    compared_tokens: int = Field(ge=8)
    repeats: int = Field(ge=1, description="cross-validation splits of the two-sample test")
    permutations: int = Field(ge=0, description="label permutations that calibrate it")

    @property
    def simulators(self) -> dict[str, Endpoint]:
        """Name -> who opens, those that are not null."""
        asked = {name: getattr(self, name) for name in ("usergpt", "base", "roleplay", "responder")}
        return {name: endpoint for name, endpoint in asked.items() if endpoint is not None}

    @model_validator(mode="after")
    def _sizes_are_there(self) -> SimulatorRealism:
        if self.sizes != sorted(set(self.sizes)) or self.sizes[0] < 10 or self.sizes[-1] > self.conversations:
            raise ValueError(f"sizes must rise, from 10 at least to conversations, {self.conversations}, at most")
        return self
