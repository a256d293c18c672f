"""Numbers that depend on names alone, so that order, concurrency, shards and restarts change no draw."""

from __future__ import annotations

import hashlib

SEED_MODULUS = 2**31


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()) / 2**64


def turn_seed(conversation_id: str, turn: int, seed: int, attempt: int = 0) -> int:
    """The sampler's seed for one turn: the same whatever ran before. Each further attempt has another."""
    again = f":{attempt}" if attempt else ""
    return int(unit_hash(f"{seed}:{conversation_id}:{turn}{again}") * SEED_MODULUS)
