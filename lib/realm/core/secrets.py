"""Keys come from the environment and reach no output, log, manifest or journal."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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
    values = {v for k, v in os.environ.items() if k.upper().endswith(SECRET_SUFFIXES)} | _REGISTERED
    values |= {v.strip() for v in values}  # a key from a file brings its line break, which is not sent
    return sorted((v for v in values if len(v) >= SHORTEST_SECRET), key=len, reverse=True)


def redact(text: str) -> str:
    """``text`` with every secret of the environment replaced by ``[redacted]``."""
    return _without(text, secrets())


# ---------------------------------------------------------------- profiles hold names of secrets, never secrets

# OPENAI_API_KEY is a name; sk-…, gsk_… and long runs of letters and figures may be keys.
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]{0,15}(?:_[A-Z0-9]{1,15})*")
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|cookie|credential|sig(?:nature)?$", re.IGNORECASE)


def require_variable_name(name: str) -> str:
    """``name`` if it can be that of an environment variable. Raises ValueError, which does not show it."""
    if _VARIABLE.fullmatch(name) or name in os.environ:
        return name
    raise ValueError(
        "expected the name of an environment variable, such as OPENAI_API_KEY; what stands there is none that is set, "
        "and is not shown, since it may be the key itself"
    )


def require_plain_address(url: str) -> str:
    """``url`` if it is an HTTP address that holds no secret. Raises ValueError, which does not show it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port is None or parts.port >= 0 else None  # a port that is none raises
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise ValueError("expected an address such as https://api.openai.com/v1")
    if parts.password is not None or parts.username is not None:
        raise ValueError(
            "holds a user name or a password, which would reach manifests; put it into an environment variable and "
            'name that in headers, for example headers: {Authorization: "Basic $MY_TOKEN"}'
        )
    if secret := next((n for n, _ in parse_qsl(parts.query) if _SECRET_NAME.search(n)), None):
        raise ValueError(f"holds a secret ({secret}=...), which would reach manifests; use api_key_env or headers")
    return url


def require_plain_headers(headers: dict[str, str]) -> dict[str, str]:
    """``headers`` if secret ones come from the environment. Raises ValueError, which shows no value."""
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError("holds a name that no header can have")
        if "$" not in value and _SECRET_NAME.search(name):
            raise ValueError(
                f"the value of {name} belongs into an environment variable; write its name, for example {name}: $MY_KEY"
            )
    return headers


def require_plain_lines(lines: list[str]) -> list[str]:
    """``lines`` of a shell if none gives a secret as it is. Raises ValueError, which does not show it."""
    for line in lines:
        for name, value in re.findall(r"(\w+)=(\S+)", line):
            if _SECRET_NAME.search(name) and not re.match(r"[\"']?[$`]", value):
                raise ValueError(
                    f"the value of {name} would stand in every script; read it from a file, {name}=$(cat ~/my-key) say"
                )
    return lines
