"""What is wrong with a profile, in one line: pydantic's errors for somebody who has the YAML file before them."""

from __future__ import annotations

import typing
from typing import Any, Literal

from pydantic import BaseModel


def explain(error: dict[str, Any], profile: type[BaseModel]) -> str:
    """One pydantic error of a ``profile`` as ``key: what is wrong; what is allowed``."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "profile"
    match error["type"]:
        case "invalid_key":
            return f"{key}: unknown key; allowed: {', '.join(_block_at(location[:-1], profile).model_fields)}"
        case "extra_forbidden":
            return f"{key}: unknown key; allowed: {', '.join(_block_at(location[:-1], profile).model_fields)}"
        case "missing":
            return f"{key}: missing; {_allowed(_block_at(location[:-1], profile), location[-1])}"
        case "literal_error":
            return f"{key}: {error['input']!r} is not allowed; allowed: {error['ctx']['expected']}"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case _:
            allowed = _allowed(_block_at(location[:-1], profile), location[-1])
            return f"{key}: {error['msg'].lower()}, not {error['input']!r}; {allowed}"


def _block_at(location: list[str], block: type[BaseModel]) -> type[BaseModel]:
    parts = iter(location)
    for part in parts:
        inner = block.model_fields[part].annotation
        if typing.get_origin(inner) is dict:
            next(parts, None)  # a name of the reader's own
        block = next(t for t in (inner, *typing.get_args(inner)) if isinstance(t, type) and issubclass(t, BaseModel))
    return block


def _allowed(block: type[BaseModel], key: str) -> str:
    if key not in block.model_fields:  # the reader's own name for such a block
        return f"allowed: a block with {', '.join(block.model_fields)}"
    information = block.model_fields[key]
    annotation = information.annotation
    names = [getattr(t, "__name__", str(t)) for t in typing.get_args(annotation)] or [
        getattr(annotation, "__name__", str(annotation))
    ]
    if typing.get_origin(annotation) is Literal:
        names = [str(v) for v in typing.get_args(annotation)]
    bounds = [
        f"{sign} {getattr(m, name)}"
        for m in information.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if hasattr(m, name)
    ]
    names = ["null" if n == "NoneType" else n for n in names]
    return "allowed: " + " or ".join(names) + (" " + ", ".join(bounds) if bounds else "")
