"""Keys come from the environment and reach no output, log, manifest or journal."""

from __future__ import annotations

import os
from typing import Any

SECRET_SUFFIXES = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
# Shorter values (EMPTY, none) are placeholders, and replacing them would mangle ordinary text.
SHORTEST_SECRET = 6
_REGISTERED: set[str] = set()


def redacted(value: Any) -> Any:
    """Strings redacted before they are serialized: escaping would hide a secret, numbers are no text."""
    return _without(value, secrets())


def _without(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, "[redacted]")
        return value
    if isinstance(value, dict):
        return {_without(k, known): _without(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(v, known) for v in value]
    return value


def register_secret(value: str | None) -> None:
    """Have ``value`` redacted too: a key from a variable whose name does not show that it holds one."""
    if value and len(value) >= SHORTEST_SECRET:
        _REGISTERED.add(value)


def secrets() -> list[str]:
    """Values of environment variables that hold keys, and registered ones, longest first."""
    values = {v for k, v in os.environ.items() if k.upper().endswith(SECRET_SUFFIXES) and len(v) >= SHORTEST_SECRET}
    return sorted(values | _REGISTERED, key=len, reverse=True)


def redact(text: str) -> str:
    """``text`` with every secret of the environment replaced by ``[redacted]``."""
    return _without(text, secrets())
