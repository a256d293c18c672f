"""What is wrong with a profile, in one line: pydantic's errors for somebody who has the YAML file before them."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel

# What stands at these keys may be a secret in the wrong place, and is not shown.
MAY_BE_SECRET = {"headers", "extra_body", "api_key_env", "base_url", "setup"}


def explain(error: dict[str, Any], profile: type[BaseModel]) -> str:
    """One pydantic error of a ``profile`` as ``key: what is wrong; what is allowed``."""
    location = _within_blocks([str(part) for part in error["loc"]], profile)
    key = ".".join(location) or "profile"
    if error["type"] not in ("value_error", "missing", "extra_forbidden") and MAY_BE_SECRET & set(location):
        return f"{key}: {error['msg'].lower()}"
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
            named = [part for part in location if not part.isdigit()]  # an item of a list is what its key allows
            allowed = _allowed(_block_at(named[:-1], profile), named[-1])
            return f"{key}: {error['msg'].lower()}, not {error['input']!r}; {allowed}"


def _within_blocks(location: list[str], block: type[BaseModel]) -> list[str]:
    """Of where pydantic found fault, what stands in the file: keys and places in lists, not the kinds that it tried."""
    for i, part in enumerate(location):
        inner = getattr(block.model_fields.get(part), "annotation", None)
        kinds = (inner, *typing.get_args(inner))
        if typing.get_origin(inner) is dict or inner is None:
            return location
        blocks = [t for t in kinds if isinstance(t, type) and issubclass(t, BaseModel)]
        if not blocks:
            return location[: i + 1] + [p for p in location[i + 1 :] if p.isdigit()]
        block = blocks[0]
    return location


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
    names = [_name_of(t) for t in typing.get_args(annotation)] or [_name_of(annotation)]
    if typing.get_origin(annotation) is Literal:
        names = [str(v) for v in typing.get_args(annotation)]
    bounds = _bounds(information.metadata)
    names = ["null" if n == "NoneType" else n for n in names]
    return "allowed: " + " or ".join(names) + (" " + ", ".join(bounds) if bounds else "")


def _name_of(kind: Any) -> str:
    """``int >= 1`` of an annotated one."""
    if typing.get_origin(kind) is Annotated:
        kind, *marks = typing.get_args(kind)
        bounds = [b for mark in marks for b in _bounds(getattr(mark, "metadata", ()))]
        return " ".join([_name_of(kind), *bounds])
    return getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)


def _bounds(marks: Iterable[Any]) -> list[str]:
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    return [f"{sign} {getattr(m, name)}" for m in marks for name, sign in signs if hasattr(m, name)]
