"""Opening a journal's database, also where a file system takes no locks or shares no memory.

SQLite's write-ahead log needs both. Where a cluster's file system refuses one of them, the same file is used without
that log, by this process alone: slower, as safe, and said in one line. A journal is called broken only if SQLite says
that the file is none; a file system that fails is no reason to give up what was paid for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from realm.core.errors import note
from realm.simulation.endings import SimulationError

# How SQLite words what a file system refused: no locks, no shared memory, calls that are not there.
REFUSED = ("locking protocol", "disk i/o error", "not implemented", "no locks available", "large file support")
BROKEN = ("file is not a database", "malformed")


def open_database(path: Path, schema: Sequence[str], *, alone: bool) -> sqlite3.Connection:
    """The database at ``path`` with the tables of ``schema``. ``alone``: the file system is known to take no locks.

    Raises SimulationError, one line.
    """
    refusals: list[str] = []
    for way in (_with_log, _without_log, _without_locks):
        try:
            database = way(path)
            for statement in schema:
                database.execute(statement)
        except sqlite3.Error as error:
            if not _refused(error, alone):
                raise _unusable(path, error) from error
            refusals.append(str(error))
            continue
        if refusals:
            note(f"{path}: {refusals[0]}: this file system has no write-ahead log; going on without one, more slowly")
        return database
    raise SimulationError(
        f"{path}: this file system lets SQLite neither lock nor share ({refusals[-1]}); nothing is lost: "
        "take the run folder to another disk (REALM_RUNS) and run again"
    )


def _with_log(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    return _in_mode(database, "WAL")


def _without_log(path: Path) -> sqlite3.Connection:
    """Alone, so that no memory is shared: a log that was left behind is read in, and closed."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    return _in_mode(database, "TRUNCATE")


def _without_locks(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?nolock=1", isolation_level=None, uri=True)
    return _in_mode(database, "TRUNCATE")


def _in_mode(database: sqlite3.Connection, mode: str) -> sqlite3.Connection:
    try:
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("PRAGMA temp_store=MEMORY")
        # Taking the lock now, and giving it back: where there are none, this is where it shows.
        database.execute("BEGIN IMMEDIATE")
        database.execute("COMMIT")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _refused(error: sqlite3.Error, alone: bool) -> bool:
    words = str(error).lower()
    # "locked" is another program's doing, unless nothing can be locked here.
    return any(r in words for r in REFUSED) or (alone and ("locked" in words or "unable to open" in words))


def _unusable(path: Path, error: sqlite3.Error) -> SimulationError:
    if path.is_dir() or any(b in str(error).lower() for b in BROKEN):
        return SimulationError(f"{path}: not a usable journal ({error}); move it away to start anew")
    return SimulationError(
        f"{path}: the journal cannot be opened here ({error}); nothing of it is lost: close what else uses it, "
        "check permissions and space, and run again"
    )
