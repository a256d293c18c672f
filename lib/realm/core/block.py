"""What all blocks of a profile have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """Typed values of one part of a profile; none unknown, none converted, none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
