"""What all blocks of a profile have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """Typed values of one part of a profile; none unknown, none converted, none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def require_name(name: str, taken: Sequence[str]) -> None:
    """Raise ValueError for a name under a ``beside`` that cannot be one of a file and a part of a metric's name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in taken:
        others = f"{', '.join(taken[:-1])} or {taken[-1]}"
        raise ValueError(f"beside: {name!r} is no name here; lower-case letters, digits and _, not {others}")
