"""A launcher of processes as a child: its bars show here as they come, and its last words where it fails."""

from __future__ import annotations

import collections
import io
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from realm.core.secrets import redact
from realm.training.base import TrainingError

KEPT_LINES = 4_000  # tracebacks of all processes, and the launcher's account of them
LONGEST_WORDS = 600
ADVICE = "lower batch_size or dialogue.max_length, set gradient_checkpointing: true, or use more GPUs"


def run_child(command: list[str]) -> None:
    """Run ``command`` as a child that cannot outlive this process. Raises TrainingError with its last words."""
    last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        [sys.executable, "-m", "realm.serving.child", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            # A bar moves by carriage returns: they end a line too, or nothing would show until it is full.
            for line in io.TextIOWrapper(child.stderr, errors="replace", newline=""):
                last.append(line.strip("\r\n"))
                sys.stderr.write(redact(line))
        finally:
            child.stdin.close()
    if child.returncode:
        raise TrainingError(redact(last_words(last, child.returncode)))


def last_words(lines: Sequence[str], code: int) -> str:
    """One line of what a failed launcher and its processes wrote: who ended how, and the last error it named itself.

    ``code``: the launcher's exit code. Where it names the first process that failed, that one's rank, exit code and
    words count: the others fail because it is gone.
    """
    lines, rank = list(lines), None
    cause = next((i for i, line in enumerate(lines) if line.startswith("Root Cause")), None)
    if cause is not None:
        account = "\n".join(lines[cause:])
        if found := re.search(r"rank\s*: (\d+)", account):
            rank = int(found[1])
        if found := re.search(r"exitcode\s*: (-?\d+)", account):
            code = int(found[1])
    end = _signal_of(code)
    words = _error_of(lines, rank, killed=bool(end)) or "it left no message"
    if end == "SIGKILL":
        words += f"; systems short of memory do this: {ADVICE}"
    elif "OutOfMemoryError" in words:
        words += f"; {ADVICE}"
    who = ([f"rank {rank}"] if rank is not None else []) + [f"exit code {code}" + (f", {end}" if end else "")]
    return f"a launched process failed ({', '.join(who)}): {words}"


def _signal_of(code: int) -> str | None:
    """-9, and what becomes of it on its way through a shell (137) or a parent (247)."""
    number = -code if code < 0 else 256 - code if code >= 192 else code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _error_of(lines: list[str], rank: int | None, killed: bool) -> str | None:
    """The line that was meant for the reader; else the last exception's; else the last line that the process wrote."""
    meant = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if meant and not killed:
        return _short(meant[0])
    prefix = f"[rank{rank}]:"
    own = [line.removeprefix(prefix).removeprefix(" ") for line in lines if line.startswith(prefix)]
    # Before processes know their ranks, and by the launcher, lines are written without one.
    bare = [line for line in lines if not re.match(r"\[rank\d+\]:", line)]
    theirs = [] if killed and rank is not None else _exceptions(bare)
    own_end = _exceptions(own) or [line for line in own if line.strip()]
    found = own_end or [e for e in theirs if "ChildFailedError" not in e]
    if not found and rank is None:
        found = theirs or [line for line in bare if line.strip()]
    return _short(found[-1]) if found else None


def _exceptions(lines: list[str]) -> list[str]:
    """The line after each traceback's frames: ``Kind: message``."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    rest = [(line for line in lines[i + 1 :] if line.strip() and not line.startswith(" ")) for i in starts]
    return [found for found in (next(after, None) for after in rest) if found]


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= LONGEST_WORDS else words[: LONGEST_WORDS - 1] + "…"
