"""The engine: a simulated user talks with a responder, over the OpenAI protocol, and nothing said is lost.

Each conversation is an asynchronous task of its own. Every finished turn goes into a journal (SQLite, WAL)
before the next is asked for; an interrupted run goes on from the last turn of each conversation. Seeds of
the sampler derive from the conversation's id and turn, so order, concurrency, shards and restarts do not change them.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from realm.conversations.conversation import Conversation, Message
from realm.core import profile
from realm.core.progress import Bar
from realm.core.seeds import turn_seed
from realm.core.stopping import Stopped, stop_is_asked
from realm.dialogue.format import ChatFormat
from realm.serving.client import Client, together
from realm.serving.counting import TokenCounter
from realm.serving.faults import EndpointError
from realm.serving.reply import Reply
from realm.simulation import guardrails
from realm.simulation.breaker import FAILS_EVERYBODY, Breaker
from realm.simulation.budget import Ledger
from realm.simulation.endings import FAILURES, Ending, EndReason, SimulationError
from realm.simulation.journal import KEPT, UNFINISHED, Journal
from realm.simulation.limits import Limits, speaker
from realm.simulation.plan import Start
from realm.simulation.records import Attempt, Standing
from realm.simulation.simulators import Simulator
from realm.simulation.standing import exported, nobody_answered, standings

RESPONDER_SYSTEM_PROMPT = "You are an artificial intelligence assistant."
FAILED = {"user": EndReason.USER_FAILED, "assistant": EndReason.RESPONDER_FAILED}
# kind of an EndpointError -> how it ends the conversation; the others fail it
ENDINGS = {
    "context": EndReason.CONTEXT_FULL,
    "filtered": EndReason.CONTENT_FILTER,
    "reasoning": EndReason.REASONING_ONLY,
}
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before an endpoint that did not answer is asked again; the last for ever


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
    cut_turns: str = "mark"
    counters: Mapping[str, TokenCounter] = field(default_factory=dict)  # role -> of a server with its own tokenizer
    resumed_turns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._judge = guardrails.Judge(self.guardrails, self.format.reserved, self.simulator.falls_silent)
        self._clients = [c for c in (self.user, self.responder) if c is not None]
        self._breaker = Breaker()
        self._unpaid: set[str] = set()  # conversations that failed in this run at no cost
        sides = [c and c.endpoint for c in (self.user, self.responder)]
        whose = (self.simulator, self.format, self.count_tokens, self.responder_system, self.counted_by)
        # What a server counts by its own tokenizer is not for us to count.
        self.limits = Limits(self.max_rounds, *sides, *whose, frozenset(self.counters), self.cut_turns == "end")

    async def run(self, starts: Sequence[Start]) -> list[Conversation]:
        """Hold every conversation to its end; conversations that ended before are taken from the journal.

        Raises SimulationError when an endpoint is gone or refuses, and Stopped where that was asked for: what was said
        is kept, and the next call goes on from there, also of what an earlier budget cut short.
        """
        self.resumed_turns = self.journal.count_turns()
        self.journal.reopen([EndReason.BUDGET_SPENT, *FAILURES], self.journal.asked_again())
        self._ledger = Ledger(self.budget, self.journal.usage())
        # More would only wait, and all would be cut short when the budget is: these keep both sides busy.
        self._room = asyncio.Semaphore(sum(c.endpoint.concurrency for c in self._clients))
        standing = standings(self.journal, starts, self.limits)
        waiting = [s for s in starts if standing[s.key].reason is None]
        with Bar(total=len(starts), initial=len(starts) - len(waiting), desc="simulation", unit="conversations") as bar:
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
        self.journal.end(spent, Ending(EndReason.BUDGET_SPENT))
        if left := reasons.count(None):
            turns = self.journal.count_turns()
            raise Stopped(f"asked to stop: {left} conversations are open, {turns} turns are kept; run again to go on")
        if failed := nobody_answered(self.journal, starts):
            self.journal.forgive(self._unpaid)  # what cost nothing is asked again, however often
            raise SimulationError(f"{failed}; run again to go on")
        return exported(self.journal, starts, self.limits, self.simulator.name)

    def _stopped(self, error: EndpointError) -> SimulationError:
        # Those that failed while the endpoint was down did not fail by themselves.
        self.journal.forgive(self._breaker.victims())
        return SimulationError(f"{error}. {self.journal.count_turns()} turns are kept; run again to go on")

    async def _hold(self, start: Start, bar: Bar) -> EndReason | None:
        """Why it ended; None where it is left open because somebody asked to stop."""
        async with self._room:
            said = [*start.opening, *self.journal.turns(start.key)]
            while (ending := await self._ending(start, said)) is None:
                try:
                    message = await self._next_turn(start, said)
                except Stopped:  # each closes the turn that it is at, so none that is paid is lost
                    return None
                if isinstance(message, Ending):
                    ending = message
                    if ending.reason != EndReason.BUDGET_SPENT:  # these are few transactions, not one each
                        self.journal.end([start.key], ending)
                    break
                said.append(message)
                bar.note(str(self._ledger))
            if ending.reason != EndReason.BUDGET_SPENT:
                stands = Standing(len(said) - len(start.opening), ending.reason)
                self.journal.stop({start.key: stands}, str(self.limits))
        bar.update()
        return ending.reason

    async def _ending(self, start: Start, said: list[Message]) -> Ending | None:
        """Reasons that can be seen before anything is sent."""
        cut_turns = self.journal.cut_turns(start.key) if self.limits.ends_at_cut else ()
        reason = self.limits.ending(said, cut_turns)
        counter = self.counters.get(speaker(said))
        if reason is None and counter is not None:
            counted = await counter(self.limits.request(said))
            length = self.limits.tokens(said) if counted is None else counted
            reason = EndReason.CONTEXT_FULL if length > self.limits.room(speaker(said)) else None
        return None if reason is None else Ending(reason)

    def _client(self, role: str) -> Client | None:
        return self.user if role == "user" else self.responder

    async def _next_turn(self, start: Start, said: list[Message]) -> Message | Ending:
        role = speaker(said)
        if role == "user" and start.script is not None:
            return self._replayed(start, said)
        faults = self.journal.faults(start.key, len(said))
        ending = Ending(faults[-1]) if faults else None
        # What an earlier run lost to a service is no try of this one.
        lost = sum(fault in FAILURES for fault in faults)
        while not self._judge.gives_up(faults, lost):
            answer = await self._ask(start, said, len(faults))
            if isinstance(answer, Ending):
                return answer
            if isinstance(answer, Reply) and answer.cut and self.cut_turns == "continue":
                answer = await self._gone_on(start, said, answer, len(faults))
            reply = answer.paid if isinstance(answer, EndpointError) else answer
            message, outcome = self._judged(role, answer, said)
            counted = self._counted(reply, said)
            apart = (self.count_tokens(reply.reasoning), reply.requests - 1)
            paid = Attempt(start.key, len(said), len(faults), role, *counted, outcome, *apart)
            self._ledger.add(paid)
            if not isinstance(outcome, EndReason):
                self.journal.add_turn(start.key, len(said), message, paid)
                return message
            self.journal.reject(paid, message.content)
            faults.append(outcome)
            ending = _ending_by(answer, message, outcome)
        return ending

    def _judged(self, role: str, answer: Reply | EndpointError, said: list[Message]) -> tuple[Message, str]:
        """(message, outcome) of an answer that was paid, of use or not."""
        if isinstance(answer, EndpointError):
            return Message(role, answer.paid.text), ENDINGS.get(answer.kind) or FAILED[role]
        message, outcome = self._judge.judge(role, answer.text, said)
        return message, UNFINISHED if outcome == KEPT and answer.cut else outcome

    def _replayed(self, start: Start, said: list[Message]) -> Message | Ending:
        turn = sum(m.role == "user" for m in said)
        if turn == len(start.script):
            return Ending(EndReason.USER_ENDED)
        message = Message("user", start.script[turn])
        self.journal.add_turn(start.key, len(said), message)
        return message

    def _counted(self, reply: Reply, said: Sequence[Message]) -> tuple[int, int]:
        """Tokens sent and generated; our own count where the server sends none, or a budget would never be spent."""
        made = reply.completion_tokens or self.count_tokens(reply.reasoning) + self.count_tokens(reply.text)
        return reply.prompt_tokens or self.limits.tokens(said), made

    async def _gone_on(self, start: Start, said: list[Message], begun: Reply, attempt: int) -> Reply:
        """A cut reply and what comes after it, as one; the cut one alone where its engine cannot go on, or fails."""
        role = speaker(said)
        client, seed = self._client(role), turn_seed(start.id, len(said), self.seed, attempt)
        if not (client.goes_on and begun.text):
            return begun
        request = [*self.limits.request(said), Message("assistant", begun.text)]
        with self._ledger.asking():  # what was begun: it is entered with what comes after it
            if not self._ledger.open():
                return begun
            try:
                with self._ledger.asking():
                    return begun.joined(await client.complete(request, seed, conversation=start.id))
            except EndpointError:
                return begun

    async def _ask(self, start: Start, said: list[Message], attempt: int) -> Reply | EndpointError | Ending:
        """One answer, what was paid for none, or why there is none.

        Raises EndpointError where asking on is of no use to anybody, Stopped before it asks where that was asked for.
        """
        role, request = speaker(said), self.limits.request(said)
        client = self._client(role)
        seed = turn_seed(start.id, len(said), self.seed, attempt)
        first_failure = None
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            if stop_is_asked():
                raise Stopped("asked to stop")
            if not self._ledger.open():
                return Ending(EndReason.BUDGET_SPENT)
            asked_at = time.monotonic()
            try:
                with self._ledger.asking():
                    reply = await client.complete(request, seed, conversation=start.id)
            except EndpointError as caught:
                error = caught
            else:
                self._breaker.worked(role)
                return reply
            first_failure = first_failure or asked_at
            if (end := self._given_up(role, start.key, error, asked_at, first_failure)) is not None:
                return end
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _given_up(
        self, role: str, conversation: str, error: EndpointError, asked_at: float, first_failure: float
    ) -> EndpointError | Ending | None:
        """What a failed request comes to: None to wait and ask again. Raises it where nobody need ask on."""
        if error.stops:
            raise error
        if error.passing:
            patience = self._client(role).endpoint.patience_seconds
            silent = self._breaker.silent(role, conversation)
            if not silent:
                words = f"{role}: {error.reason}; asked again, for {patience:g} s at most"
                tqdm.write(words, file=sys.stderr)
            if time.monotonic() - first_failure < patience and silent < patience:
                return None
            of_its_own = Ending(FAILED[role], error.reason, error.kind)
            if self._breaker.worked_since(role, first_failure):  # others are answered, and this one never
                return of_its_own if time.monotonic() - first_failure >= patience else None
            if role in self.journal.answered() and self._breaker.alone(role, conversation):
                return of_its_own
            raise EndpointError(error.kind, f"{error}; nothing else came from it in {silent:.0f} s")
        if error.kind != "context" and self._breaker.failed(role, conversation, asked_at):
            raise EndpointError(error.kind, f"{error}; {FAILS_EVERYBODY} times in a row")
        if error.paid is not None:
            return error
        self._unpaid.add(conversation)
        return Ending(ENDINGS.get(error.kind) or FAILED[role], error.reason, error.kind)


def _ending_by(answer: Reply | EndpointError, message: Message, outcome: EndReason) -> Ending:
    if isinstance(answer, EndpointError):
        return Ending(outcome, answer.reason, answer.kind)
    if outcome not in FAILURES:
        return Ending(outcome)  # which says it all
    size = len(message.content.encode())
    return Ending(outcome, f"an answer of {size:,} bytes" if size else "an empty answer")
