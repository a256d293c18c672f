"""What of an endpoint shapes its words: who answers, and how it samples. The rest is pace, patience and price.

Whatever is kept of answers (a simulation's journal, MT-Bench's answers and judgments) belongs to an endpoint of the
same words and to no other. It stands here, on a low floor, because wings above ``serving`` keep answers, and wings
import downwards only; which *stage may be skipped* is another question, with another hash: ``pipeline.identity``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from realm.core.errors import OneLineError
from realm.core.files import ArtefactError, read_json, text_sha256, write_json
from realm.core.profile import Endpoint
from realm.models.weights import weights_of

SAMPLING = ("temperature", "top_p", "max_new_tokens")
WHO = ("engine", "model", "base_url")
# Pace, patience, where the key is and how a server is run. How long a conversation may be decides where it ends, not
# what is said until then.
NO_WORDS = {"api_key_env", "concurrency", "requests_per_minute", "timeout_seconds", "max_retries", "context_length"}
# Headers say who asks, and a limit has the same size by either name.
NO_WORDS |= {"environment", "gpu_memory_share", "tensor_parallel", "start_seconds", "patience_seconds", "headers"}
NO_WORDS |= {"token_limit"}


class KeptError(OneLineError, ValueError):
    """A file of kept answers that cannot be read; the message names it and the fix."""


def endpoint_words(endpoint: Endpoint, run_folder: Path | None = None) -> dict[str, Any]:
    """What shapes the words of an endpoint: of a service its address and model name, of a local one the engine and the
    hash of its weights; and how it samples. Whatever else a profile sets counts too, unless it is known not to."""
    values: dict[str, Any] = {name: getattr(endpoint, name) for name in SAMPLING}
    if endpoint.engine == "api":
        values |= {"address": _address(endpoint.base_url or ""), "model": endpoint.model}
    else:
        # Weights that are not there have no content yet: until then the name stands for them.
        values |= {"engine": endpoint.engine, "weights": weights_of(endpoint.model, run_folder) or endpoint.model}
    others = endpoint.model_dump(mode="json", exclude_defaults=True, exclude={*SAMPLING, *WHO, *NO_WORDS})
    return {**values, **others}


def _address(url: str) -> str:
    """Without a user or password in it, and without the last slash."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/")).geturl()


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{before}{key}.") if inner else {f"{before}{key}": value}
    return found


def digest(words: Mapping[str, Any]) -> str:
    """Ten characters that stand for these words in a file's name."""
    return text_sha256(json.dumps(words, sort_keys=True, default=str))[:10]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed, a phrase each: ``responder.temperature 0.7 -> 0.9``; long values go without saying."""
    before, after = flat(json.loads(json.dumps(old, default=str))), flat(json.loads(json.dumps(new, default=str)))
    return [
        _change(key, before.get(key), after.get(key))
        for key in dict.fromkeys((*after, *before))
        if before.get(key) != after.get(key)
    ]


def _change(key: str, old: Any, new: Any) -> str:
    both = f"{old} -> {new}"
    return key if len(both) > 80 or "\n" in both else f"{key} {both}"


def in_few(phrases: list[str], most: int = 4) -> str:
    """The first of them, and how many there are more."""
    rest = len(phrases) - most
    return "; ".join(phrases[:most]) + (f"; and {rest} more" if rest > 0 else "")


def note_words(path: Path, words: Mapping[str, Any], siblings: Iterable[Path]) -> str:
    """Write beside ``path``, a file of kept answers, what they belong to; where ``path`` is new and others stand
    beside it, one line that says why they are not gone on with, else nothing.

    ``siblings``: the notes (``.json``) of the others. Raises ArtefactError if it cannot be written.
    """
    note = path.with_suffix(".json")
    if note.exists():
        return ""
    others = sorted((p for p in siblings if p != note), key=lambda p: p.stat().st_mtime)
    write_json(note, dict(words))
    if path.exists() or not others:
        return ""
    try:
        changed = differences(read_json(others[-1]), words)
    except ArtefactError:
        changed = []
    why = in_few(changed) or "other words"
    return f"{path.name} is new: what {others[-1].with_suffix(path.suffix).name} keeps was said otherwise ({why})"
