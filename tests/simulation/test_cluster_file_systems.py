"""Journals where a file system takes no locks or shares no memory: a good one is never given up."""

import errno
import fcntl
import sqlite3

import pytest

from realm.conversations.conversation import Message
from realm.simulation import database
from realm.simulation.endings import SimulationError
from realm.simulation.journal import Journal
from realm.simulation.records import Attempt


@pytest.fixture
def good(tmp_path):
    """A journal with one turn that was paid for."""
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_turn("a", 0, Message("user", "Hello?"), Attempt("a", 0, 0, "user", 1, 1, "kept"))
    journal.close()
    return tmp_path / "journal.sqlite"


class Refusing(sqlite3.Connection):
    """SQLite on a file system that refuses: ``fails`` says what of which connection."""

    words, fails = "", staticmethod(lambda uri, statement: False)

    def execute(self, statement, *values):
        if self.fails(self.uri, statement):
            raise sqlite3.OperationalError(self.words)
        return super().execute(statement, *values)


@pytest.fixture
def refusing(monkeypatch):
    connect = sqlite3.connect

    def make(words, fails):
        kind = type("Kind", (Refusing,), {"words": words, "fails": staticmethod(fails)})

        def connected(path, **values):
            made = connect(path, factory=kind, **values)
            made.uri = str(path)
            return made

        monkeypatch.setattr(database.sqlite3, "connect", connected)

    return make


def without_log(uri, statement):
    return statement == "PRAGMA journal_mode=WAL"


def without_locks(uri, statement):
    return "nolock" not in uri and (statement.startswith("BEGIN IMMEDIATE") or "journal_mode" in statement)


@pytest.mark.parametrize("words", ["locking protocol", "disk I/O error"])
@pytest.mark.parametrize("fails", [without_log, without_locks])
def test_a_new_journal_is_kept_without_a_log_or_locks_and_says_so(tmp_path, refusing, words, fails, capsys):
    refusing(words, fails)
    path = tmp_path / "journal.sqlite"
    for position in (0, 1):
        journal = Journal(path)
        journal.add_turn("a", position, Message("user", "Hello?"), Attempt("a", position, 0, "user", 1, 1, "kept"))
        assert journal.count_turns() == position + 1
        journal.close()
    assert f"{words}: this file system has no write-ahead log; going on without one" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["locking protocol", "disk I/O error"])
def test_a_good_journal_that_was_written_with_a_log_is_gone_on_with(good, refusing, words):
    refusing(words, without_log)
    journal = Journal(good)
    assert journal.count_turns() == 1
    journal.close()


@pytest.mark.parametrize("words", ["locking protocol", "disk I/O error", "database is locked", "unable to open"])
def test_a_good_journal_is_never_to_be_moved_away(good, refusing, words):
    refusing(words, lambda uri, statement: "journal_mode" in statement)
    before = good.read_bytes()
    with pytest.raises(SimulationError) as refused:
        Journal(good)
    assert "move it away" not in str(refused.value) and "nothing" in str(refused.value)
    assert "\n" not in str(refused.value) and good.read_bytes() == before


def test_a_journal_without_flock_is_written_by_one(good, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    journal = Journal(good)
    assert "this file system takes no locks" in capsys.readouterr().err
    with pytest.raises(SimulationError, match="another run writes here"):
        Journal(good)
    journal.close()
    Journal(good).close()


def test_a_log_that_a_killed_run_left_is_read_in(tmp_path, refusing):
    first = Journal(tmp_path / "journal.sqlite")
    first.add_turn("a", 0, Message("user", "Hello?"), Attempt("a", 0, 0, "user", 1, 1, "kept"))
    (tmp_path / "killed").mkdir()
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        (tmp_path / "killed" / name).write_bytes((tmp_path / name).read_bytes())
    first.close()
    assert (tmp_path / "killed" / "journal.sqlite-wal").stat().st_size > 0
    refusing("locking protocol", without_log)
    journal = Journal(tmp_path / "killed" / "journal.sqlite")
    assert journal.count_turns() == 1
    journal.close()
