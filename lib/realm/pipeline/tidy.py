"""Taking leave of what was set aside: listed with sizes, removed after a yes and not before."""

from __future__ import annotations

import sys
from pathlib import Path

from realm.core.set_aside import remove, set_aside_so_far


def tidy(folder: Path, *, yes: bool) -> None:
    """List what was set aside in a run folder; remove it if ``yes``, or if the reader at the terminal says so."""
    found = set_aside_so_far(folder)
    if not found:
        print(f"{folder}: nothing was set aside")
        return
    for place, size in found.items():
        print(f"{in_units(size):>10}  {place}")
    total = in_units(sum(found.values()))
    if not yes and not _agrees(f"Remove all of it, {total}? [y/N] "):
        print(f"{total} kept; --tidy --yes removes it")
        return
    remove(found)
    print(f"{total} removed")


def _agrees(question: str) -> bool:
    """Nobody at the terminal is no yes."""
    if not sys.stdin.isatty():
        return False
    return input(question).strip().lower() in ("y", "yes")


def in_units(size: float) -> str:
    """Bytes as a reader takes them in."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
