"""The journal of a simulation: every turn, every request and every ending, committed when it happens.

SQLite in WAL mode, one writer. A turn and the request that it came from are one transaction, so that neither words
nor costs are lost or counted twice, whenever the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from realm.conversations.conversation import Message
from realm.core.files import text_sha256
from realm.simulation.endings import EndReason, SimulationError

KEPT, CUT = "kept", "cut"  # outcomes of a request whose words became a turn
EXCERPT = 500  # characters kept of words that were rejected
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS turns (conversation TEXT, position INTEGER, role TEXT, content TEXT,"
    " PRIMARY KEY (conversation, position))",
    "CREATE TABLE IF NOT EXISTS requests (conversation TEXT, position INTEGER, attempt INTEGER, role TEXT,"
    " prompt_tokens INTEGER, new_tokens INTEGER, outcome TEXT, PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS rejected (conversation TEXT, position INTEGER, attempt INTEGER, content TEXT,"
    " PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS ends (conversation TEXT PRIMARY KEY, reason TEXT)",
)
COLUMNS = {"turns": 4, "requests": 7, "rejected": 4, "ends": 2}


class Usage(NamedTuple):
    """What was asked of one side: answered requests, tokens sent, tokens generated."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Attempt(NamedTuple):
    """One answered request for a turn; ``outcome`` is ``kept``, ``cut``, or the reason it was rejected for."""

    conversation: str
    position: int
    attempt: int
    role: str
    prompt_tokens: int
    new_tokens: int
    outcome: str


class Intervention(NamedTuple):
    """What one guardrail did: answers it cut or rejected, in how many conversations, and how many of these ended so."""

    outcome: str
    answers: int
    conversations: int
    ended: int

    @property
    def went_on(self) -> int:
        return self.conversations - self.ended


class Rejected(NamedTuple):
    """Words that did not become a turn, cut after 500 characters; ``instead``: those that did, None if none did."""

    conversation: str
    outcome: str
    words: str
    instead: str | None


class Journal:
    """One file, one writer: opening it twice raises SimulationError, as does a file that is no journal."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            for statement in SCHEMA:
                self._db.execute(statement)
        except sqlite3.Error as error:
            self._lock.close()
            raise SimulationError(f"{self.path}: not a usable journal ({error}); move it away to start anew") from error

    def _locked(self) -> Any:
        # SQLite would let two processes take turns, and each would pay for the same conversations.
        handle = self.path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise SimulationError(f"{self.path}: another run writes here; wait for it or stop it") from None
        return handle

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ------------------------------------------------------------ writing

    def add_turn(self, conversation: str, position: int, message: Message, paid: Attempt | None = None) -> None:
        """A turn, with the request it came from; none where a real human's turn is replayed."""
        with self._together():
            self._db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?)", (conversation, position, message.role, message.content)
            )
            if paid:
                self._pay(paid)

    def reject(self, paid: Attempt, words: str) -> None:
        """A request whose answer did not become a turn."""
        with self._together():
            self._pay(paid)
            place = (paid.conversation, paid.position, paid.attempt)
            self._db.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", (*place, words[:EXCERPT]))

    def _pay(self, paid: Attempt) -> None:
        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", paid)

    def end(self, conversations: Iterable[str], reason: EndReason) -> None:
        with self._together():
            self._db.executemany("INSERT OR REPLACE INTO ends VALUES (?, ?)", ((c, reason) for c in conversations))

    def reopen(self, reasons: Iterable[EndReason], conversations: Iterable[str] | None = None) -> None:
        """Forget endings for ``reasons``, of some conversations or of all: they go on from their last turn."""
        ended = self.ended()
        chosen = ended if conversations is None else set(conversations) & ended.keys()
        again = [(c,) for c in chosen if ended[c] in set(reasons)]
        with self._together():
            self._db.executemany("DELETE FROM ends WHERE conversation = ?", again)

    def absorb(self, path: str | Path) -> None:
        """Take over what another journal of the same settings holds of conversations not ended here. Repeatable.

        Raises SimulationError if that journal is in use or is none.
        """
        with contextlib.closing(Journal(path)) as other:
            mine, theirs = self.ended(), other.ended()
            ours = {c for c, reason in mine.items() if reason != EndReason.BUDGET_SPENT}
            with self._together():
                for (name,) in other._db.execute(
                    "SELECT DISTINCT conversation FROM turns UNION SELECT conversation FROM ends"
                ):
                    if name not in ours:
                        self._copy(other, name, theirs.get(name))

    def _copy(self, other: Journal, name: str, reason: EndReason | None) -> None:
        # Also what was paid here for words that are replaced: left behind, it would count as tries of later turns.
        for table in COLUMNS:
            self._db.execute(f"DELETE FROM {table} WHERE conversation = ?", (name,))
        for table in COLUMNS.keys() - {"ends"}:
            rows = other._db.execute(f"SELECT * FROM {table} WHERE conversation = ?", (name,))
            values = ", ".join("?" * COLUMNS[table])
            self._db.executemany(f"INSERT INTO {table} VALUES ({values})", rows)
        if reason:
            self._db.execute("INSERT INTO ends VALUES (?, ?)", (name, reason))

    # ------------------------------------------------------------ reading

    def turns(self, conversation: str) -> list[Message]:
        rows = self._db.execute(
            "SELECT role, content FROM turns WHERE conversation = ? ORDER BY position", (conversation,)
        )
        return [Message(role, content) for role, content in rows]

    def faults(self, conversation: str, position: int) -> list[EndReason]:
        """Why answers for this turn were rejected so far, in order."""
        rows = self._db.execute(
            "SELECT outcome FROM requests WHERE conversation = ? AND position = ? ORDER BY attempt",
            (conversation, position),
        )
        return [EndReason(outcome) for (outcome,) in rows]

    def ended(self) -> dict[str, EndReason]:
        return {c: EndReason(r) for c, r in self._db.execute("SELECT conversation, reason FROM ends")}

    def count_turns(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM turns").fetchone()[0]

    def usage(self) -> dict[str, Usage]:
        """role of the speaker -> what was asked of it, rejected answers included."""
        rows = self._db.execute(
            "SELECT role, COUNT(*), SUM(prompt_tokens), SUM(new_tokens) FROM requests GROUP BY role"
        )
        return {role: Usage(*numbers) for role, *numbers in rows}

    def interventions(self) -> list[Intervention]:
        """What the guardrails did, most frequent first: ``cut``, and each reason for which answers were rejected."""
        rows = self._db.execute(
            "SELECT outcome, COUNT(*), COUNT(DISTINCT conversation),"
            " COUNT(DISTINCT CASE WHEN reason = outcome THEN conversation END)"
            " FROM requests LEFT JOIN ends USING (conversation) WHERE outcome NOT IN (?, ?)"
            " GROUP BY outcome ORDER BY 2 DESC, 1",
            (KEPT, EndReason.USER_ENDED),
        )
        return [Intervention(*row) for row in rows]

    def rejected(self, count: int) -> list[Rejected]:
        """The first ``count`` answers that were rejected, by conversation and turn, and what stands there instead."""
        rows = self._db.execute(
            "SELECT conversation, outcome, rejected.content, turns.content FROM rejected"
            " JOIN requests USING (conversation, position, attempt) LEFT JOIN turns USING (conversation, position)"
            " WHERE outcome != ? ORDER BY conversation, position, attempt LIMIT ?",
            (EndReason.USER_ENDED, count),
        )
        return [Rejected(*row) for row in rows]

    def close(self) -> None:
        self._db.close()
        self._lock.close()


def journal_path(folder: str | Path, identity: dict[str, Any], part: str = "") -> Path:
    """The journal of these very settings: other settings get another file, nothing is mixed or overwritten."""
    digest = text_sha256(json.dumps(identity, sort_keys=True, default=str))[:10]
    return Path(folder) / f"journal-{digest}{part}.sqlite"
