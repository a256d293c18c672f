"""How work grows with its input: a ratio within one run, so that a slow machine is no failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SMALL, TIMES = 4_000, 4
# Of TIMES as much: 4 if linear, 16 if quadratic. Between them stands what noise may add.
LINEAR_AT_MOST = 9


def growth(work: Callable[[Any], Any], make: Callable[[int], Any]) -> float:
    """CPU time of ``work(make(TIMES * SMALL))`` over that of ``work(make(SMALL))``, the best of several each."""
    return _seconds(work, make(TIMES * SMALL)) / _seconds(work, make(SMALL))


def _seconds(work: Callable[[Any], Any], given: Any) -> float:
    best, rounds = float("inf"), 0
    began = time.thread_time()
    while rounds < 3 or (rounds < 200 and time.thread_time() - began < 0.02):
        start = time.thread_time()
        work(given)
        best, rounds = min(best, time.thread_time() - start), rounds + 1
    return best
