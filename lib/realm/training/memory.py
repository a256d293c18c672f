"""Memory that the allocator keeps: given back now and then, or a process would hold several times what it needs."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable

# Steps, or batches, between two times. After each one it would take a tenth of the processor time: what was given back
# comes again page by page.
EVERY = 8


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; None under another C library."""
    name = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None


def give_back() -> None:
    """Return freed memory to the system, a matter of milliseconds.

    Batches of ever new lengths leave holes that glibc keeps: 3.1 GiB where 1.0 were in use, after training on 24 rows.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
