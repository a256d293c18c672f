"""What is asked of Slurm, by its own commands: to take a job, and how jobs stand."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from realm.core.errors import OneLineError

PATIENCE_SECONDS = 60
# As squeue and sacct word it; whatever else they say is of a job that is still to come or at work.
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)


class SlurmError(OneLineError, RuntimeError):
    """What Slurm refuses or does not answer; the message has its own words."""


class State(NamedTuple):
    """How a job, or a task of an array, stands: Slurm's word for it, why it waits, for how long it ran, and where."""

    word: str
    reason: str
    elapsed: str
    node: str

    @property
    def ended(self) -> bool:
        return self.word in ENDED


def submit(script: Path, after: Sequence[str]) -> str:
    """The number of the new job, which starts when all of ``after`` have ended well. Raises SlurmError."""
    words = ["sbatch", "--parsable", *([f"--dependency=afterok:{':'.join(after)}"] if after else []), str(script)]
    return _asked(words).strip().partition(";")[0]


def states(jobs: Iterable[str]) -> dict[str, State]:
    """Number of a job, or ``number_task``, -> its state; without those of which Slurm knows no more.

    The queue remembers ended jobs for some minutes, the accounting, where a cluster has one, for ever.
    Raises SlurmError.
    """
    wanted = list(jobs)
    if not wanted:
        return {}
    queue = _read(_asked(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%M|%N"]))
    ended: dict[str, State] = {}
    with contextlib.suppress(SlurmError):  # not every cluster has an accounting
        words = ["sacct", "--noheader", "--allocations", "--parsable2", "--jobs", ",".join(wanted)]
        told = _read(_asked([*words, "--format=JobID,State,Reason,Elapsed,NodeList"]))
        ended = {name: state for name, state in told.items() if state.ended}
    return {name: state for name, state in {**ended, **queue}.items() if name.partition("_")[0] in wanted}


def _read(listing: str) -> dict[str, State]:
    parts = [line.split("|") for line in listing.splitlines() if line.count("|") == 4]
    return {name: State(word.partition(" ")[0], *rest) for name, word, *rest in parts}


def _asked(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        raise SlurmError(f"{words[0]}: not found; --slurm is for a machine from which Slurm takes jobs") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer within {PATIENCE_SECONDS} s") from None
    if done.returncode:
        raise SlurmError(
            f"{words[0]}: {' '.join((done.stderr or done.stdout).split()) or f'exit code {done.returncode}'}"
        )
    return done.stdout
