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
from realm.core.secrets import redact
from realm.simulation.endings import FAILED_ENDINGS_ASKED_AGAIN, FAILURES, Ending, EndReason, SimulationError

# Outcomes of a request whose words became a turn: whole, cut by a guardrail, cut at a limit of tokens.
KEPT, CUT, UNFINISHED = "kept", "cut", "unfinished"
NO_ANSWER = (EndReason.CONTENT_FILTER, EndReason.REASONING_ONLY)  # paid all the same; no guardrail's doing
EXCERPT = 500  # characters kept of words that were rejected
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS turns (conversation TEXT, position INTEGER, role TEXT, content TEXT,"
    " PRIMARY KEY (conversation, position))",
    "CREATE TABLE IF NOT EXISTS requests (conversation TEXT, position INTEGER, attempt INTEGER, role TEXT,"
    " prompt_tokens INTEGER, new_tokens INTEGER, outcome TEXT, PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS rejected (conversation TEXT, position INTEGER, attempt INTEGER, content TEXT,"
    " PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS ends (conversation TEXT PRIMARY KEY, reason TEXT)",
    # Tables of their own, so that journals of earlier versions go on.
    "CREATE TABLE IF NOT EXISTS reasoning (conversation TEXT, position INTEGER, attempt INTEGER, tokens INTEGER,"
    " PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS reasons (conversation TEXT, number INTEGER, reason TEXT, words TEXT, kind TEXT,"
    " PRIMARY KEY (conversation, number))",
)
COLUMNS = {"turns": 4, "requests": 7, "rejected": 4, "ends": 2, "reasoning": 4, "reasons": 5}


class Usage(NamedTuple):
    """What was asked of one side: answered requests, tokens sent, tokens generated."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Attempt(NamedTuple):
    """One answered request for a turn; ``outcome``: ``kept``, ``cut``, ``unfinished``, or why it was rejected."""

    conversation: str
    position: int
    attempt: int
    role: str
    prompt_tokens: int
    new_tokens: int
    outcome: str
    reasoning_tokens: int = 0  # of the new tokens; kept in a table of their own


class Thought(NamedTuple):
    """How many answers of one side came with reasoning, and its tokens, which are among those generated."""

    answers: int
    tokens: int


class Reason(NamedTuple):
    """Why conversations ended as they did, in the service's words or ours, and how many."""

    reason: str
    words: str
    conversations: int


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
        *values, thought = paid
        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        if thought:
            place = (paid.conversation, paid.position, paid.attempt)
            self._db.execute("INSERT INTO reasoning VALUES (?, ?, ?, ?)", (*place, thought))

    def end(self, conversations: Iterable[str], ending: Ending) -> None:
        """Note that these ended so, with the words that a service, or we, had for it."""
        reason, words, kind = ending
        number = "(SELECT COUNT(*) FROM reasons WHERE conversation = ?)"
        with self._together():
            for name in conversations:
                self._db.execute("INSERT OR REPLACE INTO ends VALUES (?, ?)", (name, reason))
                if words:
                    values = (name, name, reason, redact(words)[:EXCERPT], kind)
                    self._db.execute(f"INSERT INTO reasons VALUES (?, {number}, ?, ?, ?)", values)

    def reopen(self, reasons: Iterable[EndReason], conversations: Iterable[str] | None = None) -> None:
        """Forget endings for ``reasons``, of some conversations or of all: they go on from their last turn."""
        ended = self.ended()
        chosen = ended if conversations is None else set(conversations) & ended.keys()
        again = [(c,) for c in chosen if ended[c] in set(reasons)]
        with self._together():
            self._db.executemany("DELETE FROM ends WHERE conversation = ?", again)

    def forgive(self, conversations: Iterable[str]) -> None:
        """Forget the last ending of these, where a service was to blame: they go on, and it does not count as a try."""
        chosen = [(c,) for c in set(conversations) & self.last_words().keys()]
        last = "(SELECT MAX(number) FROM reasons AS later WHERE later.conversation = reasons.conversation)"
        with self._together():
            self._db.executemany("DELETE FROM ends WHERE conversation = ?", chosen)
            self._db.executemany(f"DELETE FROM reasons WHERE conversation = ? AND number = {last}", chosen)

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

    def cut_turns(self, conversation: str) -> list[int]:
        """Positions of turns that stop in the middle: at a limit of tokens, or where a guardrail cut them."""
        rows = self._db.execute(
            "SELECT position FROM requests WHERE conversation = ? AND outcome IN (?, ?) ORDER BY position",
            (conversation, CUT, UNFINISHED),
        )
        return [position for (position,) in rows]

    def faults(self, conversation: str, position: int) -> list[EndReason]:
        """Why answers for this turn were rejected so far, in order."""
        rows = self._db.execute(
            "SELECT outcome FROM requests WHERE conversation = ? AND position = ? ORDER BY attempt",
            (conversation, position),
        )
        return [EndReason(outcome) for (outcome,) in rows]

    def ended(self) -> dict[str, EndReason]:
        return {c: EndReason(r) for c, r in self._db.execute("SELECT conversation, reason FROM ends")}

    def asked_again(self) -> set[str]:
        """Ended conversations with which the next run goes on: cut short by a budget, or failed a few times only."""
        counts = self.failures()
        open_again = lambda c: counts.get(c, 0) < FAILED_ENDINGS_ASKED_AGAIN  # noqa: E731
        return {
            c
            for c, reason in self.ended().items()
            if reason == EndReason.BUDGET_SPENT or (reason in FAILURES and open_again(c))
        }

    def failures(self) -> dict[str, int]:
        """conversation -> how often it ended by a failure of a service."""
        marks = ", ".join("?" * len(FAILURES))
        query = f"SELECT conversation, COUNT(*) FROM reasons WHERE reason IN ({marks}) GROUP BY conversation"
        return dict(self._db.execute(query, FAILURES))

    def reasons(self) -> list[Reason]:
        """Why conversations ended that did not end by themselves, most frequent first."""
        rows = self._db.execute(
            "SELECT reason, words, COUNT(*) FROM ends JOIN reasons USING (conversation, reason) WHERE number ="
            " (SELECT MAX(number) FROM reasons AS later WHERE later.conversation = ends.conversation)"
            " GROUP BY reason, words ORDER BY 3 DESC, 1, 2"
        )
        return [Reason(*row) for row in rows]

    def last_words(self) -> dict[str, str]:
        """conversation -> the words with which it ended, of those that a service's failure or refusal ended."""
        rows = self._db.execute(
            "SELECT conversation, words FROM ends JOIN reasons USING (conversation, reason)"
            " WHERE kind != '' ORDER BY number"
        )
        return dict(rows.fetchall())

    def answered(self) -> set[str]:
        """Roles of which some request became a turn."""
        rows = self._db.execute(
            "SELECT DISTINCT role FROM requests WHERE outcome IN (?, ?, ?)", (KEPT, CUT, UNFINISHED)
        )
        return {role for (role,) in rows}

    def thoughts(self) -> dict[str, Thought]:
        """role of the speaker -> its reasoning; roles that did not reason are not there."""
        rows = self._db.execute(
            "SELECT role, COUNT(*), SUM(tokens) FROM reasoning JOIN requests USING (conversation, position, attempt)"
            " GROUP BY role ORDER BY role"
        )
        return {role: Thought(*numbers) for role, *numbers in rows}

    def count_cut(self) -> dict[str, int]:
        """role of the speaker -> how many of its turns stop in the middle, at a limit of tokens."""
        rows = self._db.execute("SELECT role, COUNT(*) FROM requests WHERE outcome = ? GROUP BY role", (UNFINISHED,))
        return dict(rows)

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
            " FROM requests LEFT JOIN ends USING (conversation) WHERE outcome NOT IN (?, ?, ?, ?, ?)"
            " GROUP BY outcome ORDER BY 2 DESC, 1",
            (KEPT, UNFINISHED, EndReason.USER_ENDED, *NO_ANSWER),
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
