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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from realm.conversations.conversation import CUT_TURNS, Conversation, Message
from realm.core import profile
from realm.core.seeds import turn_seed
from realm.dialogue.format import ChatFormat
from realm.serving.client import Client, together
from realm.serving.counting import TokenCounter
from realm.serving.faults import EndpointError
from realm.serving.reply import Reply
from realm.simulation import guardrails
from realm.simulation.breaker import FAILS_EVERYBODY, Breaker
from realm.simulation.budget import Ledger
from realm.simulation.endings import FAILURES, Ending, EndReason, SimulationError
from realm.simulation.journal import KEPT, UNFINISHED, Attempt, Journal
from realm.simulation.plan import Start
from realm.simulation.simulators import Simulator

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
    counters: Mapping[str, TokenCounter] = field(default_factory=dict)  # role -> of a server with its own tokenizer
    resumed_turns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._judge = guardrails.Judge(self.guardrails, self.format.reserved, self.simulator.falls_silent)
        self._clients = [c for c in (self.user, self.responder) if c is not None]
        self._breaker = Breaker()
        self._unpaid: set[str] = set()  # conversations that failed in this run at no cost

    async def run(self, starts: Sequence[Start]) -> list[Conversation]:
        """Hold every conversation to its end; conversations that ended before are taken from the journal.

        Raises SimulationError when an endpoint is gone or refuses: what was said is kept, and the next call
        goes on from there, also of what an earlier budget cut short.
        """
        self.resumed_turns = self.journal.count_turns()
        self.journal.reopen([EndReason.BUDGET_SPENT, *FAILURES], self.journal.asked_again())
        self._ledger = Ledger(self.budget, self.journal.usage())
        # More would only wait, and all would be cut short when the budget is: these keep both sides busy.
        self._room = asyncio.Semaphore(sum(c.endpoint.concurrency for c in self._clients))
        done = self.journal.ended()
        waiting = [s for s in starts if s.id not in done]
        with tqdm(total=len(starts), initial=len(starts) - len(waiting), desc="conversations", unit="conv") as bar:
            try:
                reasons = await together(self._hold(start, bar) for start in waiting)
            except EndpointError as error:
                raise self._stopped(error) from None
            except sqlite3.Error as error:
                raise SimulationError(f"{self.journal.path}: {error}; make room or move it, and run again") from error
        spent = [s.id for s, reason in zip(waiting, reasons, strict=True) if reason == EndReason.BUDGET_SPENT]
        self.journal.end(spent, Ending(EndReason.BUDGET_SPENT))
        if failed := nobody_answered(self.journal, starts):
            self.journal.forgive(self._unpaid)  # what cost nothing is asked again, however often
            raise SimulationError(f"{failed}; run again to go on")
        return exported(self.journal, starts, self.simulator.name)

    def _stopped(self, error: EndpointError) -> SimulationError:
        # Those that failed while the endpoint was down did not fail by themselves.
        self.journal.forgive(self._breaker.victims())
        return SimulationError(f"{error}. {self.journal.count_turns()} turns are kept; run again to go on")

    async def _hold(self, start: Start, bar: tqdm) -> EndReason:
        async with self._room:
            said = [*start.opening, *self.journal.turns(start.id)]
            while (ending := await self._ending(said)) is None:
                message = await self._next_turn(start, said)
                if isinstance(message, Ending):
                    ending = message
                    break
                said.append(message)
                bar.set_postfix_str(str(self._ledger), refresh=False)
            if ending.reason != EndReason.BUDGET_SPENT:  # these are few transactions, not one each
                self.journal.end([start.id], ending)
        bar.update()
        return ending.reason

    async def _ending(self, said: list[Message]) -> Ending | None:
        """Reasons that can be seen before anything is sent."""
        if said and said[-1].role == "assistant" and sum(m.role == "user" for m in said) >= self.max_rounds:
            return Ending(EndReason.MAX_ROUNDS)
        client = self._client(speaker(said))
        if client is None:  # a script goes on whatever was said
            return None
        room = client.endpoint.context_length - client.endpoint.max_new_tokens
        return Ending(EndReason.CONTEXT_FULL) if await self._length(said) > room else None

    def _client(self, role: str) -> Client | None:
        return self.user if role == "user" else self.responder

    def _request(self, said: Sequence[Message]) -> list[Message]:
        """What is sent for the next turn: always whole, its system prompt first."""
        if speaker(said) == "user":
            return self.simulator.messages(said)
        return [Message("system", self.responder_system), *said]

    async def _length(self, said: Sequence[Message]) -> int:
        """Tokens of that request, by its server where that has a tokenizer of its own; else as we count them."""
        counter = self.counters.get(speaker(said))
        counted = await counter(self._request(said)) if counter else None
        return self._tokens(said) if counted is None else counted

    def _tokens(self, said: Sequence[Message]) -> int:
        """Tokens of that request, by the template that its server fills in."""
        if speaker(said) == "user" and self.simulator.flipped:
            text, _ = self.format.render(said, self.simulator.system, reply_as="user")
        else:
            text, _ = self.format.render(self._request(said), None, reply_as="assistant")
        return self.count_tokens(text)

    async def _next_turn(self, start: Start, said: list[Message]) -> Message | Ending:
        role = speaker(said)
        if role == "user" and start.script is not None:
            return self._replayed(start, said)
        faults = self.journal.faults(start.id, len(said))
        ending = Ending(faults[-1]) if faults else None
        # What an earlier run lost to a service is no try of this one.
        lost = sum(fault in FAILURES for fault in faults)
        while not self._judge.gives_up(faults, lost):
            answer = await self._ask(start.id, said, len(faults))
            if isinstance(answer, Ending):
                return answer
            reply = answer.paid if isinstance(answer, EndpointError) else answer
            message, outcome = self._judged(role, answer, said)
            counted = self._counted(reply, said)
            paid = Attempt(
                start.id, len(said), len(faults), role, *counted, outcome, self.count_tokens(reply.reasoning)
            )
            self._ledger.add(role, paid.prompt_tokens, paid.new_tokens)
            if not isinstance(outcome, EndReason):
                self.journal.add_turn(start.id, len(said), message, paid)
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
        self.journal.add_turn(start.id, len(said), message)
        return message

    def _counted(self, reply: Reply, said: Sequence[Message]) -> tuple[int, int]:
        """Tokens sent and generated; our own count where the server sends none, or a budget would never be spent."""
        made = reply.completion_tokens or self.count_tokens(reply.reasoning) + self.count_tokens(reply.text)
        return reply.prompt_tokens or self._tokens(said), made

    async def _ask(self, conversation: str, said: list[Message], attempt: int) -> Reply | EndpointError | Ending:
        """One answer, what was paid for none, or why there is none.

        Raises EndpointError where asking on is of no use to anybody.
        """
        role, request = speaker(said), self._request(said)
        client = self._client(role)
        seed = turn_seed(conversation, len(said), self.seed, attempt)
        first_failure = None
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            if not self._ledger.open():
                return Ending(EndReason.BUDGET_SPENT)
            self._ledger.in_flight += 1
            asked_at = time.monotonic()
            try:
                reply = await client.complete(request, seed, conversation=conversation)
            except EndpointError as caught:
                error = caught
            else:
                self._breaker.worked(role)
                return reply
            finally:
                self._ledger.in_flight -= 1
            first_failure = first_failure or asked_at
            if (end := self._given_up(role, conversation, error, asked_at, first_failure)) is not None:
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


def speaker(said: Sequence[Message]) -> str:
    """Whose turn it is."""
    return "user" if not said or said[-1].role == "assistant" else "assistant"


def exported(journal: Journal, starts: Sequence[Start], simulator: str) -> list[Conversation]:
    """The ended conversations of a plan, by id. Raises SimulationError if some have not ended."""
    ended = journal.ended()
    if missing := [s.id for s in starts if s.id not in ended]:
        raise SimulationError(f"{len(missing)} of {len(starts)} conversations have not ended, {missing[0]} first")
    return [
        Conversation(
            s.id,
            (*s.opening, *journal.turns(s.id)),
            _meta(s, ended[s.id], simulator, journal.cut_turns(s.id)),
        )
        for s in sorted(starts, key=lambda s: s.id)
    ]


def _meta(start: Start, reason: EndReason, simulator: str, cut: list[int]) -> dict[str, Any]:
    meta = {"mode": start.mode, "end_reason": str(reason), "simulator": simulator}
    return meta | {CUT_TURNS: cut} if cut else meta


def nobody_answered(journal: Journal, starts: Sequence[Start]) -> str | None:
    """Why no answer of one side was ever of use, where conversations failed for want of them; None otherwise."""
    answered, words = journal.answered(), journal.last_words()
    for start in starts:
        role = speaker([*start.opening, *journal.turns(start.id)]) if start.id in words else None
        if role is not None and role not in answered:
            count = sum(s.id in words for s in starts)
            return (
                f"no answer of the {role} was of use, {count} of {len(starts)} conversations failed: {words[start.id]}"
            )
    return None


def end_reasons(conversations: Sequence[Conversation]) -> Counter[str]:
    return Counter(c.meta["end_reason"] for c in conversations)
