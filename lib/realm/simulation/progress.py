"""How far a simulation has come, seen from outside: while shards are at work, and without any lock of theirs."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realm.core.profile import Profile
from realm.simulation.budget import Ledger, dollars
from realm.simulation.endings import FAILURES, SimulationError
from realm.simulation.journal import ASKED, REQUESTS, SCHEMA, Journal
from realm.simulation.plan import Shard
from realm.simulation.records import Usage
from realm.simulation.run import Work
from realm.simulation.standing import standings

TRIES = 5  # to copy a journal between two moments at which its writer moves pages about
FAILED = tuple(str(reason) for reason in FAILURES)


@dataclass(frozen=True)
class Progress:
    """Of one corpus. ``ended``: conversations, ``failed`` ones among them; what was asked and paid counts rejected
    answers and earlier runs too. ``dollars``: None where nothing has a price."""

    planned: int
    ended: int
    failed: int
    turns: int
    spent: str
    dollars: float | None


def progress(chosen: Profile, seed: int, folder: Path, corpus: str | None = None) -> Progress:
    """From the journals of the whole run and of all shards. Raises SimulationError as ``Work.of`` does, and where a
    journal cannot be read now."""
    work = Work.of(chosen, seed, folder, corpus=corpus)
    planned = {s.key for s in work.starts}
    turns: dict[str, int] = {}
    ended: dict[str, str] = {}
    paid: dict[tuple[str, str], Usage] = {}
    for path in [p for p in (work.path(), *work.others()) if p.exists()]:
        with _copied(path) as database:
            for name, count in database.execute("SELECT conversation, COUNT(*) FROM turns GROUP BY conversation"):
                turns[name] = max(count, turns.get(name, 0))
            ended |= dict(database.execute("SELECT conversation, reason FROM stops"))
            ended |= dict(database.execute("SELECT conversation, reason FROM ends"))
            # A journal that took over what another holds has it twice: of each conversation the fullest counts.
            of_each = database.execute(f"SELECT conversation, role, {ASKED} FROM {REQUESTS} GROUP BY 1, 2")
            for name, role, *used in of_each:
                paid[name, role] = max(Usage(*used), paid.get((name, role), Usage()))
    usage: dict[str, Usage] = {}
    for (_, role), used in paid.items():
        usage[role] = Usage(*(a + b for a, b in zip(used, usage.get(role, Usage()), strict=True)))
    over = {name: reason for name, reason in ended.items() if name in planned}
    budget = work.chosen.simulation.budget
    return Progress(
        len(planned),
        len(over),
        sum(reason in FAILED for reason in over.values()),
        sum(count for name, count in turns.items() if name in planned),
        str(Ledger(budget, usage)),
        dollars(budget, usage),
    )


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal as it is now, its log included. What is read is a copy: SQLite's log is not to be shared between
    machines, and a reader's lock would make a writer wait."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        log = path.with_name(f"{path.name}-wal")
        for _ in range(TRIES):
            before = path.stat().st_mtime_ns
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(log, copy.with_name(log.name))
            shutil.copyfile(path, copy)
            if path.stat().st_mtime_ns == before:
                break
        try:
            with contextlib.closing(sqlite3.connect(copy)) as database:
                for table in SCHEMA:  # one of an earlier version lacks some
                    database.execute(table)
                yield database
        except sqlite3.DatabaseError as error:
            raise SimulationError(f"{path}: cannot be read at this moment ({error}); ask again") from error


def open_shards(chosen: Profile, seed: int, folder: Path, of: int) -> tuple[int, ...]:
    """Which of ``of`` shards have something left to say, in RealChat or in a corpus beside it; nobody may be at work.

    Raises SimulationError as ``Work.of`` does, or where a journal is in use.
    """
    shards = [Shard(number, of) for number in range(1, of + 1)]
    left: set[int] = set()
    for corpus in (None, *chosen.corpora()):
        work = Work.of(chosen, seed, folder, corpus=corpus)
        with (
            tempfile.TemporaryDirectory() as place,
            contextlib.closing(Journal(Path(place) / "all.sqlite")) as journal,
        ):
            for path in [p for p in (work.path(), *work.others()) if p.exists()]:
                journal.absorb(path)
            standing, again = standings(journal, work.starts, work.limits), journal.asked_again()
        waiting = [s for s in work.starts if standing[s.key].reason is None or s.key in again]
        left |= {shard.number for shard in shards for start in waiting if shard.holds(start)}
    return tuple(sorted(left))
