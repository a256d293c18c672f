"""One writer at a time, also on file systems of clusters that take no locks.

``flock`` where it works, then POSIX record locks, then a file that names its owner. Only what says "somebody else has
it" counts as busy: a file system without locks is no other run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from realm.core.errors import OneLineError, note

BUSY = (errno.EAGAIN, errno.EWOULDBLOCK)
BUSY_RECORD = (*BUSY, errno.EACCES)  # how POSIX lets a record lock say it
PAUSE = 0.05  # seconds
PATIENCE_FOR_A_TURN = 3_600.0  # seconds


class Busy(Exception):
    """Another process has the lock; the message says whose it is, where that is known."""


class TakesTooLong(OneLineError, RuntimeError):
    """What another process makes is not there after an hour; the message names it."""


class Lock:
    """Held from its making until ``close`` or the end of the process. Raises Busy after ``patience`` seconds.

    ``kind``: ``flock``, ``record`` or ``owner``. OSError is raised where the file itself cannot be made.
    """

    def __init__(self, path: Path, patience: float = 0.0):
        self.path, self.kind = path, "flock"
        self._owner = path.with_name(f"{path.name}.owner")
        self._handle: IO[str] | None = path.open("a")
        deadline = time.monotonic() + patience
        while True:
            try:
                self._take()
                return
            except Busy:
                if time.monotonic() >= deadline:
                    self._handle.close()
                    raise
            time.sleep(PAUSE)

    def _take(self) -> None:
        if self._locked(fcntl.flock, BUSY):
            return
        self.kind = "record"
        if self._locked(fcntl.lockf, BUSY_RECORD):
            return
        self.kind = "owner"
        self._own()

    def _locked(self, take: Callable[[IO[str], int], None], busy: tuple[int, ...]) -> bool:
        """False where the file system has no such locks."""
        try:
            take(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in busy:
                raise Busy("") from None
            return False
        return True

    def _own(self) -> None:
        me = f"{socket.gethostname()} {os.getpid()} {_born(os.getpid())}"
        try:
            with self._owner.open("x") as handle:
                handle.write(me)
        except FileExistsError:
            if not self._forsaken():
                raise Busy(f" (its owner is named in {self._owner}; remove that file if the process is gone)") from None
            # Only one of several who see this can rename it.
            with contextlib.suppress(FileNotFoundError):
                gone = self._owner.with_name(f"{self._owner.name}.{os.getpid()}")
                self._owner.rename(gone)
                gone.unlink()
            self._own()
            return
        note(f"{self.path}: this file system takes no locks; {self._owner.name} beside it keeps other runs away")

    def _forsaken(self) -> bool:
        """Whether the owner was a process of this machine that is no more."""
        try:
            host, pid, born = self._owner.read_text().split()
        except (OSError, ValueError):
            return False  # being written
        return host == socket.gethostname() and _born(int(pid)) != born

    def close(self) -> None:
        if self._handle is None:
            return
        if self.kind == "owner":
            self._owner.unlink(missing_ok=True)
        self._handle.close()
        self._handle = None


@contextlib.contextmanager
def in_turn(target: Path) -> Iterator[None]:
    """Whoever makes ``target`` makes it alone: tasks of a job array that come second wait, and find it made.

    Where the folder takes no file there is no lock, and who writes there says so better. Raises TakesTooLong.
    """
    try:
        lock = Lock(target.with_name(f".{target.name}.lock"), PATIENCE_FOR_A_TURN)
    except Busy as whose:
        raise TakesTooLong(f"{target}: another process makes it for an hour now; see what it does{whose}") from None
    except OSError:
        yield
        return
    with contextlib.closing(lock):
        yield


def _born(pid: int) -> str:
    """When a process started, in ticks since the machine did: a number may be given out again. Nothing if it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"
