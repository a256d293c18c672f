"""The journal of a simulation: every turn, every request and every ending, committed when it happens.

SQLite, one writer; in WAL mode where the file system can. A turn and the request that it came from are one transaction,
so that neither words nor costs are lost or counted twice, whenever the process dies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from realm.conversations.conversation import Message
from realm.core.locks import Busy, Lock
from realm.core.secrets import redact
from realm.serving.words import digest
from realm.simulation.database import open_database
from realm.simulation.endings import FAILED_ENDINGS_ASKED_AGAIN, FAILURES, Ending, EndReason, SimulationError
from realm.simulation.records import Attempt, Intervention, Reason, Rejected, Standing, Thought, Usage

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
    # Facts: a user who is done, a fault that stayed, a budget that was spent.
    "CREATE TABLE IF NOT EXISTS ends (conversation TEXT PRIMARY KEY, reason TEXT)",
    # Views: how many turns stand under which limits, and why no more; always to be had again from the other tables.
    "CREATE TABLE IF NOT EXISTS stops (conversation TEXT PRIMARY KEY, length INTEGER, reason TEXT, limits TEXT)",
    # Tables of their own, so that journals of earlier versions go on.
    "CREATE TABLE IF NOT EXISTS reasoning (conversation TEXT, position INTEGER, attempt INTEGER, tokens INTEGER,"
    " PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS gone_on (conversation TEXT, position INTEGER, attempt INTEGER, requests INTEGER,"
    " PRIMARY KEY (conversation, position, attempt))",
    "CREATE TABLE IF NOT EXISTS reasons (conversation TEXT, number INTEGER, reason TEXT, words TEXT, kind TEXT,"
    " PRIMARY KEY (conversation, number))",
)
# What was asked and paid, of rows grouped in some way: requests, tokens sent, tokens generated.
ASKED = "COUNT(*) + COALESCE(SUM(gone_on.requests), 0), SUM(prompt_tokens), SUM(new_tokens)"
REQUESTS = "requests LEFT JOIN gone_on USING (conversation, position, attempt)"
COLUMNS = {"turns": 4, "requests": 7, "rejected": 4, "ends": 2, "stops": 4, "reasoning": 4, "gone_on": 4, "reasons": 5}
PATIENCE = 2.0  # seconds for who only looks into a journal, or for the end of a process that was killed
ASIDE = "~replaced-"  # in the name of what another journal had more of
CHOSEN = "conversation IN (SELECT conversation FROM chosen)"


class Journal:
    """One file, one writer: opening it twice raises SimulationError, as does a file that is no journal."""

    def __init__(self, path: str | Path):
        self.path, self._of = Path(path), "1"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # SQLite would let two processes take turns, and each would pay for the same conversations.
            self._lock = Lock(self.path.with_suffix(".lock"), PATIENCE)
        except Busy as whose:
            raise SimulationError(f"{self.path}: another run writes here; wait for it or stop it{whose}") from None
        except OSError as error:
            raise SimulationError(f"{self.path}: cannot write here ({error.strerror}); check permissions") from error
        try:
            self._db = open_database(self.path, SCHEMA, alone=self._lock.kind == "owner")
        except BaseException:
            self._lock.close()
            raise

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
        *values, thought, gone_on = paid
        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        place = (paid.conversation, paid.position, paid.attempt)
        for table, number in (("reasoning", thought), ("gone_on", gone_on)):
            if number:
                self._db.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (*place, number))

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
            for table in ("ends", "stops"):
                self._db.executemany(f"DELETE FROM {table} WHERE conversation = ?", again)

    def stop(self, standings: Mapping[str, Standing], limits: str) -> None:
        """Note how conversations stand under ``limits``."""
        if not standings:
            return
        with self._together():
            rows = ((c, s.length, s.reason, limits) for c, s in standings.items())
            self._db.executemany("INSERT OR REPLACE INTO stops VALUES (?, ?, ?, ?)", rows)

    def forgive(self, conversations: Iterable[str]) -> None:
        """Forget the last ending of these, where a service was to blame: they go on, and it does not count as a try."""
        chosen = [(c,) for c in set(conversations) & self.last_words().keys()]
        last = "(SELECT MAX(number) FROM reasons AS later WHERE later.conversation = reasons.conversation)"
        with self._together():
            for table in ("ends", "stops"):
                self._db.executemany(f"DELETE FROM {table} WHERE conversation = ?", chosen)
            self._db.executemany(f"DELETE FROM reasons WHERE conversation = ? AND number = {last}", chosen)

    def absorb(self, path: str | Path, only: Collection[str] | None = None) -> None:
        """Take over what another journal of the same words holds of conversations that came further there. Repeatable.

        ``only``: of these alone; None: of all. What was said and paid here for them stays, under another name.
        Raises SimulationError if that journal is in use or is none.
        """
        with contextlib.closing(Journal(path)) as other:
            mine, theirs = self._progress(), other._progress()
            with self._together():
                for name in theirs:
                    wanted = only is None or name in only
                    if wanted and theirs[name] > mine.get(name, (False, 0, 0, False)):
                        self._keep_aside(name)
                        self._copy(other, name)

    def _progress(self) -> dict[str, tuple[bool, int, int, bool]]:
        """Conversation -> (ended for good, turns, answered requests, ended at all): more is further."""
        ended, turns = self.ended(), self.lengths()
        asked = dict(self._db.execute("SELECT conversation, COUNT(*) FROM requests GROUP BY conversation"))
        good = ended.keys() - self.asked_again()
        names = dict.fromkeys((*turns, *asked, *ended))
        return {c: (c in good, turns.get(c, 0), asked.get(c, 0), c in ended) for c in names if ASIDE not in c}

    def _keep_aside(self, name: str) -> None:
        # Left under its name, it would count as tries of later turns.
        number = self._db.execute(
            "SELECT COUNT(DISTINCT conversation) FROM requests WHERE substr(conversation, 1, ?) = ?",
            (len(name) + len(ASIDE), name + ASIDE),
        ).fetchone()[0]
        for table in COLUMNS.keys() - {"ends", "stops"}:
            self._db.execute(
                f"UPDATE {table} SET conversation = ? WHERE conversation = ?", (f"{name}{ASIDE}{number + 1}", name)
            )
        for table in ("ends", "stops"):
            self._db.execute(f"DELETE FROM {table} WHERE conversation = ?", (name,))

    def _copy(self, other: Journal, name: str) -> None:
        for table, columns in COLUMNS.items():
            rows = other._db.execute(f"SELECT * FROM {table} WHERE conversation = ?", (name,))
            self._db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)

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

    def stops(self, limits: str) -> dict[str, Standing]:
        """How conversations stand under ``limits``, as far as that was noted."""
        rows = self._db.execute("SELECT conversation, length, reason FROM stops WHERE limits = ?", (limits,))
        return {c: Standing(length, EndReason(reason)) for c, length, reason in rows}

    def lengths(self) -> dict[str, int]:
        """Conversation -> its turns."""
        return dict(self._db.execute("SELECT conversation, COUNT(*) FROM turns GROUP BY conversation"))

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
            f" AND {self._of} GROUP BY reason, words ORDER BY 3 DESC, 1, 2"
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
            f" WHERE {self._of} GROUP BY role ORDER BY role"
        )
        return {role: Thought(*numbers) for role, *numbers in rows}

    def count_turns(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM turns").fetchone()[0]

    def choose(self, conversations: Iterable[str]) -> None:
        """What ``usage``, ``interventions`` and ``rejected`` then tell of; before, of all."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (conversation TEXT PRIMARY KEY)")
        self._db.execute("DELETE FROM chosen")
        with self._together():
            self._db.executemany("INSERT OR IGNORE INTO chosen VALUES (?)", ((c,) for c in conversations))
        self._of = CHOSEN

    def usage(self) -> dict[str, Usage]:
        """role of the speaker -> what was asked of it, rejected answers included."""
        rows = self._db.execute(f"SELECT role, {ASKED} FROM {REQUESTS} WHERE {self._of} GROUP BY role")
        return {role: Usage(*numbers) for role, *numbers in rows}

    def interventions(self) -> list[Intervention]:
        """What the guardrails did, most frequent first: ``cut``, and each reason for which answers were rejected."""
        rows = self._db.execute(
            "SELECT outcome, COUNT(*), COUNT(DISTINCT conversation),"
            " COUNT(DISTINCT CASE WHEN reason = outcome THEN conversation END)"
            " FROM requests LEFT JOIN ends USING (conversation) WHERE outcome NOT IN (?, ?, ?, ?, ?)"
            f" AND {self._of}"
            " GROUP BY outcome ORDER BY 2 DESC, 1",
            (KEPT, UNFINISHED, EndReason.USER_ENDED, *NO_ANSWER),
        )
        return [Intervention(*row) for row in rows]

    def rejected(self, count: int) -> list[Rejected]:
        """The first ``count`` answers that were rejected, by conversation and turn, and what stands there instead."""
        rows = self._db.execute(
            "SELECT conversation, outcome, rejected.content, turns.content FROM rejected"
            " JOIN requests USING (conversation, position, attempt) LEFT JOIN turns USING (conversation, position)"
            f" WHERE outcome != ? AND {self._of} ORDER BY conversation, position, attempt LIMIT ?",
            (EndReason.USER_ENDED, count),
        )
        return [Rejected(*row) for row in rows]

    def close(self) -> None:
        self._db.close()
        self._lock.close()


def journal_path(folder: str | Path, identity: Mapping[str, Any], part: str = "") -> Path:
    """The journal of these very words: others get another file, nothing is mixed or overwritten."""
    return Path(folder) / f"journal-{digest(identity)}{part}.sqlite"
