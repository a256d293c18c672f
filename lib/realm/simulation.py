"""RealChat: a simulated user talks with a responder, over the OpenAI protocol, and nothing said is lost.

Each conversation is an asynchronous task of its own. Every finished turn goes into a journal (SQLite, WAL)
before the next is asked for; an interrupted run goes on from the last turn of each conversation. Seeds of
the sampler derive from the conversation's id and turn, so order, concurrency and restarts do not change them.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tqdm import tqdm

from realm.cleaning import unit_hash
from realm.conversation import Conversation, Message
from realm.endpoint import Client, EndpointError, together
from realm.provenance import text_sha256
from realm.template import USER_SYSTEM_PROMPT, ChatFormat

RESPONDER_SYSTEM_PROMPT = "You are an artificial intelligence assistant."
SEED_MODULUS = 2**31


class EndReason(StrEnum):
    """Why a conversation ended; each is counted."""

    MAX_ROUNDS = "max_rounds"
    CONTEXT_FULL = "context_full"
    REPEATED_TURN = "repeated_turn"
    EMPTY_TURN = "empty_turn"
    RESPONDER_FAILED = "responder_failed"


class SimulationError(RuntimeError):
    """A simulation that cannot start or go on; the message says why and how to resume."""


# ---------------------------------------------------------------- simulated users


@dataclass(frozen=True)
class Simulator:
    """A way to get the human's next turn out of a chat model: API roles are swapped, the reply is the human's.

    ``opening``: what is said to the model when nothing was said yet; None where its template opens by itself.
    """

    name: str
    system: str
    opening: str | None = None

    def messages(self, said: Sequence[Message]) -> list[Message]:
        """The request that asks for the next human turn after ``said``."""
        swapped = [Message("assistant" if m.role == "user" else "user", m.content) for m in said]
        if self.opening and not (swapped and swapped[0].role == "user"):
            swapped.insert(0, Message("user", self.opening))
        return [Message("system", self.system), *swapped]


USERGPT = Simulator("usergpt", USER_SYSTEM_PROMPT)
# The way of Baize and UltraChat: an assistant told to play the user. The wording is ours.
ROLEPLAY = Simulator(
    "roleplay",
    "Play a curious human who is using an AI assistant. Write only what the human says next: a question or a "
    "request in the human's own words. Never answer it and never speak as the assistant.",
    "Hello, I am the AI assistant. What would you like to ask?",
)


def turn_seed(conversation_id: str, turn: int, seed: int) -> int:
    """The sampler's seed for one turn: the same whatever ran before."""
    return int(unit_hash(f"{seed}:{conversation_id}:{turn}") * SEED_MODULUS)


# ---------------------------------------------------------------- journal


class Journal:
    """Finished turns and endings, each committed when it happens. One file, one writer."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS turns (conversation TEXT, position INTEGER, role TEXT, content TEXT,"
                " prompt_tokens INTEGER, completion_tokens INTEGER, PRIMARY KEY (conversation, position))"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS ends (conversation TEXT PRIMARY KEY, reason TEXT)")
        except sqlite3.Error as error:
            raise SimulationError(f"{self.path}: not a usable journal ({error}); move it away to start anew") from error

    def add_turn(self, conversation: str, position: int, message: Message, prompt_tokens: int, new_tokens: int) -> None:
        row = (conversation, position, message.role, message.content, prompt_tokens, new_tokens)
        self._db.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)", row)

    def end(self, conversation: str, reason: EndReason) -> None:
        self._db.execute("INSERT INTO ends VALUES (?, ?)", (conversation, reason))

    def turns(self, conversation: str) -> list[Message]:
        rows = self._db.execute(
            "SELECT role, content FROM turns WHERE conversation = ? ORDER BY position", (conversation,)
        )
        return [Message(role, content) for role, content in rows]

    def ended(self) -> dict[str, EndReason]:
        return {c: EndReason(r) for c, r in self._db.execute("SELECT conversation, reason FROM ends")}

    def count_turns(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM turns").fetchone()[0]

    def usage(self) -> dict[str, tuple[int, int]]:
        """role of the speaker -> (prompt tokens, new tokens), summed over all turns."""
        rows = self._db.execute("SELECT role, SUM(prompt_tokens), SUM(completion_tokens) FROM turns GROUP BY role")
        return {role: (prompt, new) for role, prompt, new in rows}

    def close(self) -> None:
        self._db.close()


# ---------------------------------------------------------------- the engine


@dataclass(frozen=True)
class Start:
    """A conversation to be: its id, mode (``free`` or ``seeded``) and opening messages."""

    id: str
    mode: str
    opening: tuple[Message, ...] = ()


def plan(free: int, seeded: int, seeds: Sequence[Conversation]) -> list[Start]:
    """Starts with stable ids. A seed gives its first round: a single-turn question and answer.

    Raises SimulationError if there are fewer usable seeds than asked for.
    """
    starts = [Start(f"free-{i:05d}", "free") for i in range(free)]
    pairs = [(c.id, c.messages[:2]) for c in seeds if [m.role for m in c.messages[:2]] == ["user", "assistant"]]
    if seeded > len(pairs):
        raise SimulationError(
            f"{seeded} seeded conversations asked for, {len(pairs)} of {len(seeds)} seeds have a first round"
        )
    return starts + [Start(f"seeded-{i:05d}-{name}", "seeded", pair) for i, (name, pair) in enumerate(pairs[:seeded])]


@dataclass
class Simulation:
    """Who talks with whom, and until when."""

    simulator: Simulator
    user: Client
    responder: Client
    journal: Journal
    max_rounds: int
    seed: int
    count_tokens: Any  # text -> tokens, by the serving tokenizer
    format: ChatFormat
    responder_system: str = RESPONDER_SYSTEM_PROMPT
    resumed_turns: int = field(default=0, init=False)

    async def run(self, starts: Sequence[Start]) -> list[Conversation]:
        """Hold every conversation to its end; conversations that ended before are taken from the journal.

        Raises SimulationError when an endpoint is gone or refuses: what was said is kept, and the next call
        goes on from there.
        """
        self.resumed_turns = self.journal.count_turns()
        done = self.journal.ended()
        waiting = [s for s in starts if s.id not in done]
        bar = tqdm(total=len(starts), initial=len(starts) - len(waiting), desc="conversations", unit="conv")
        with bar:
            try:
                await together(self._hold(start, bar) for start in waiting)
            except EndpointError as error:
                kept = self.journal.count_turns()
                raise SimulationError(f"{error}. {kept} turns are kept; run again to go on") from None
        ended = self.journal.ended()
        return [self._export(start, ended[start.id]) for start in sorted(starts, key=lambda s: s.id)]

    async def _hold(self, start: Start, bar: tqdm) -> None:
        said = [*start.opening, *self.journal.turns(start.id)]
        while (reason := self._ending(said)) is None:
            role = "user" if not said or said[-1].role == "assistant" else "assistant"
            message = await self._next_turn(start.id, said, role)
            if isinstance(message, EndReason):
                reason = message
                break
            said.append(message)
        self.journal.end(start.id, reason)
        bar.update()

    def _ending(self, said: list[Message]) -> EndReason | None:
        """Reasons that can be seen before anything is sent."""
        if said and said[-1].role == "assistant" and sum(m.role == "user" for m in said) >= self.max_rounds:
            return EndReason.MAX_ROUNDS
        limit = min(c.endpoint.context_length - c.endpoint.max_new_tokens for c in (self.user, self.responder))
        text, _ = self.format.render(said, self.simulator.system, reply_as="user")
        if self.count_tokens(text) > limit:
            return EndReason.CONTEXT_FULL
        return None

    async def _next_turn(self, conversation: str, said: list[Message], role: str) -> Message | EndReason:
        if role == "user":
            client, request = self.user, self.simulator.messages(said)
        else:
            client, request = self.responder, [Message("system", self.responder_system), *said]
        position = len(said)
        try:
            reply = await client.complete(request, turn_seed(conversation, position, self.seed))
        except EndpointError as error:
            if error.kind == "context":
                return EndReason.CONTEXT_FULL
            if error.kind == "failed" and role == "assistant":
                return EndReason.RESPONDER_FAILED
            raise
        message = Message(role, self._without_reserved(reply.text).strip())
        if not message.content:
            return EndReason.EMPTY_TURN if role == "user" else EndReason.RESPONDER_FAILED
        if role == "user" and message in said:
            return EndReason.REPEATED_TURN
        self.journal.add_turn(conversation, position, message, reply.prompt_tokens, reply.completion_tokens)
        return message

    def _without_reserved(self, text: str) -> str:
        """A template token that the model spells as plain text would break the template; none may be left."""
        while found := [t for t in self.format.reserved if t in text]:
            for token in found:
                text = text.replace(token, "")
        return text

    def _export(self, start: Start, reason: EndReason) -> Conversation:
        messages = (*start.opening, *self.journal.turns(start.id))
        meta = {"mode": start.mode, "end_reason": str(reason), "simulator": self.simulator.name}
        return Conversation(start.id, messages, meta)


def journal_path(folder: str | Path, identity: dict[str, Any]) -> Path:
    """The journal of these very settings: other settings get another file, nothing is mixed or overwritten."""
    digest = text_sha256(json.dumps(identity, sort_keys=True, default=str))[:10]
    return Path(folder) / f"journal-{digest}.sqlite"


def end_reasons(conversations: Sequence[Conversation]) -> Counter[str]:
    return Counter(c.meta["end_reason"] for c in conversations)
