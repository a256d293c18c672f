"""The engine: a simulated user talks with a responder, over the OpenAI protocol, and nothing said is lost.

Each conversation is an asynchronous task of its own. Every finished turn goes into a journal (SQLite, WAL)
before the next is asked for; an interrupted run goes on from the last turn of each conversation. Seeds of
the sampler derive from the conversation's id and turn, so order, concurrency, shards and restarts do not change them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from realm.conversations.conversation import Conversation, Message
from realm.core import profile
from realm.core.seeds import turn_seed
from realm.dialogue.format import ChatFormat
from realm.serving.client import Client, EndpointError, Reply, together
from realm.simulation import guardrails
from realm.simulation.breaker import DOWN_AFTER, Breaker
from realm.simulation.budget import Ledger
from realm.simulation.endings import EndReason, SimulationError
from realm.simulation.journal import Attempt, Journal, Standing
from realm.simulation.limits import Limits, speaker
from realm.simulation.plan import Start
from realm.simulation.simulators import Simulator
from realm.simulation.standing import exported, standings

RESPONDER_SYSTEM_PROMPT = "You are an artificial intelligence assistant."
FAILED = {"user": EndReason.USER_FAILED, "assistant": EndReason.RESPONDER_FAILED}
# Seconds before an endpoint that did not answer is asked again; as many as it takes to call it down.
PAUSES = tuple(min(2.0**i, 30.0) for i in range(DOWN_AFTER))


@dataclass
class Simulation:
    """Who talks with whom, and until when. ``user`` is None where every conversation has a script."""

    simulator: Simulator
    user: Client | None
    responder: Client
    journal: Journal
    max_rounds: int
    seed: int
    count_tokens: Any  # text -> tokens, by the serving tokenizer
    format: ChatFormat
    guardrails: profile.Guardrails
    budget: profile.Budget
    responder_system: str = RESPONDER_SYSTEM_PROMPT
    counted_by: str = ""  # the model whose tokens these are
    resumed_turns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._judge = guardrails.Judge(self.guardrails, self.format.reserved, self.simulator.falls_silent)
        self._clients = [c for c in (self.user, self.responder) if c is not None]
        self._breaker = Breaker()
        sides = [c and c.endpoint for c in (self.user, self.responder)]
        whose = (self.simulator, self.format, self.count_tokens, self.responder_system, self.counted_by)
        self.limits = Limits(self.max_rounds, *sides, *whose)

    async def run(self, starts: Sequence[Start]) -> list[Conversation]:
        """Hold every conversation to its end; conversations that ended before are taken from the journal.

        Raises SimulationError when an endpoint is gone or refuses: what was said is kept, and the next call
        goes on from there, also of what an earlier budget cut short.
        """
        self.resumed_turns = self.journal.count_turns()
        self.journal.reopen([EndReason.BUDGET_SPENT])
        self._ledger = Ledger(self.budget, self.journal.usage())
        # More would only wait, and all would be cut short when the budget is: these keep both sides busy.
        self._room = asyncio.Semaphore(sum(c.endpoint.concurrency for c in self._clients))
        standing = standings(self.journal, starts, self.limits)
        waiting = [s for s in starts if standing[s.key].reason is None]
        with tqdm(total=len(starts), initial=len(starts) - len(waiting), desc="conversations", unit="conv") as bar:
            try:
                reasons = await together(self._hold(start, bar) for start in waiting)
            except EndpointError as error:
                raise self._stopped(error) from None
            except sqlite3.Error as error:
                raise SimulationError(
                    f"{self.journal.path}: {error}; make room there, or take the run folder to another disk "
                    "(REALM_RUNS), and run again: what was said is kept"
                ) from error
        spent = [s.key for s, reason in zip(waiting, reasons, strict=True) if reason == EndReason.BUDGET_SPENT]
        self.journal.end(spent, EndReason.BUDGET_SPENT)
        return exported(self.journal, starts, self.limits, self.simulator.name)

    def _stopped(self, error: EndpointError) -> SimulationError:
        # Those that failed while the endpoint was down did not fail by themselves.
        self.journal.reopen(FAILED.values(), self._breaker.victims())
        return SimulationError(f"{error}. {self.journal.count_turns()} turns are kept; run again to go on")

    async def _hold(self, start: Start, bar: tqdm) -> EndReason:
        async with self._room:
            said = [*start.opening, *self.journal.turns(start.key)]
            while (reason := self.limits.ending(said)) is None:
                message = await self._next_turn(start, said)
                if isinstance(message, EndReason):
                    reason = message
                    if reason != EndReason.BUDGET_SPENT:  # these are few transactions, not one each
                        self.journal.end([start.key], reason)
                    break
                said.append(message)
                bar.set_postfix_str(str(self._ledger), refresh=False)
            if reason != EndReason.BUDGET_SPENT:
                self.journal.stop({start.key: Standing(len(said) - len(start.opening), reason)}, str(self.limits))
        bar.update()
        return reason

    def _client(self, role: str) -> Client | None:
        return self.user if role == "user" else self.responder

    async def _next_turn(self, start: Start, said: list[Message]) -> Message | EndReason:
        role = speaker(said)
        if role == "user" and start.script is not None:
            return self._replayed(start, said)
        faults = self.journal.faults(start.key, len(said))
        while not self._judge.gives_up(faults):
            reply = await self._ask(start, said, len(faults))
            if isinstance(reply, EndReason):
                return reply
            message, outcome = self._judge.judge(role, reply.text, said)
            paid = Attempt(start.key, len(said), len(faults), role, *self._counted(reply, said), outcome)
            self._ledger.add(role, paid.prompt_tokens, paid.new_tokens)
            if not isinstance(outcome, EndReason):
                self.journal.add_turn(start.key, len(said), message, paid)
                return message
            self.journal.reject(paid, message.content)
            faults.append(outcome)
        return faults[-1]

    def _replayed(self, start: Start, said: list[Message]) -> Message | EndReason:
        turn = sum(m.role == "user" for m in said)
        if turn == len(start.script):
            return EndReason.USER_ENDED
        message = Message("user", start.script[turn])
        self.journal.add_turn(start.key, len(said), message)
        return message

    def _counted(self, reply: Reply, said: Sequence[Message]) -> tuple[int, int]:
        """Tokens sent and generated; our own count where the server sends none, or a budget would never be spent."""
        return reply.prompt_tokens or self.limits.tokens(said), reply.completion_tokens or self.count_tokens(reply.text)

    async def _ask(self, start: Start, said: list[Message], attempt: int) -> Reply | EndReason:
        """One answer, or why there is none. Raises EndpointError where asking on is of no use to anybody."""
        role, request = speaker(said), self.limits.request(said)
        client = self._client(role)
        seed = turn_seed(start.id, len(said), self.seed, attempt)
        for pause in PAUSES:
            if not self._ledger.open():
                return EndReason.BUDGET_SPENT
            self._ledger.in_flight += 1
            try:
                reply = await client.complete(request, seed, conversation=start.id)
            except EndpointError as error:
                if error.kind == "refused":
                    raise
                if error.kind != "context" and self._breaker.failed(role, start.key):
                    raise EndpointError(error.kind, f"{error}; {DOWN_AFTER} times in a row") from None
                if error.kind != "unreachable":
                    return EndReason.CONTEXT_FULL if error.kind == "context" else FAILED[role]
            else:
                self._breaker.worked(role)
                return reply
            finally:
                self._ledger.in_flight -= 1
            await asyncio.sleep(pause)
        return FAILED[role]
