"""RealChat: a simulated user talks with a responder, over the OpenAI protocol, and nothing said is lost.

Each conversation is an asynchronous task of its own. Every finished turn goes into a journal (SQLite, WAL)
before the next is asked for; an interrupted run goes on from the last turn of each conversation. Seeds of
the sampler derive from the conversation's id and turn, so order, concurrency, shards and restarts do not change them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from realm import guardrails, profile
from realm.assets import AssetError
from realm.breaker import DOWN_AFTER, Breaker
from realm.budget import Ledger, dollars, estimate, share
from realm.conversation import Conversation, ConversationFileError, Message
from realm.endpoint import Client, EndpointError, Reply, connect, together
from realm.export import write_exports
from realm.journal import (
    Attempt,
    EndReason,
    Intervention,
    Journal,
    Rejected,
    SimulationError,
    Usage,
    journal_path,
)
from realm.llama_cpp import ConversionError
from realm.profile import Profile, ProfileError, load_profile, run_folder
from realm.provenance import ArtefactError, redact, register_secret
from realm.simulators import SIMULATORS, USERGPT, Simulator, turn_seed
from realm.starts import Shard, Start, starts_of
from realm.template import ChatFormat, chat_format, load_tokenizer

RESPONDER_SYSTEM_PROMPT = "You are an artificial intelligence assistant."
STAGE_FOLDER = "03_simulation"
SHOWN = 100  # rejected answers that a run's outcome holds
FAILED = {"user": EndReason.USER_FAILED, "assistant": EndReason.RESPONDER_FAILED}
# Seconds before an endpoint that did not answer is asked again; as many as it takes to call it down.
PAUSES = tuple(min(2.0**i, 30.0) for i in range(DOWN_AFTER))
# These change what a run costs or how fast it is, never what is said: they may differ when it goes on.
NOT_IDENTITY = {"free", "seeded", "budget"}
NOT_IDENTITY_OF_ENDPOINT = {"concurrency", "requests_per_minute", "timeout_seconds", "max_retries"}


# ---------------------------------------------------------------- the engine


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
    resumed_turns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._judge = guardrails.Judge(self.guardrails, self.format.reserved, self.simulator.falls_silent)
        self._clients = [c for c in (self.user, self.responder) if c is not None]
        self._breaker = Breaker()

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
        self.journal.end(spent, EndReason.BUDGET_SPENT)
        return exported(self.journal, starts, self.simulator.name)

    def _stopped(self, error: EndpointError) -> SimulationError:
        # Those that failed while the endpoint was down did not fail by themselves.
        self.journal.reopen(FAILED.values(), self._breaker.victims())
        return SimulationError(f"{error}. {self.journal.count_turns()} turns are kept; run again to go on")

    async def _hold(self, start: Start, bar: tqdm) -> EndReason:
        async with self._room:
            said = [*start.opening, *self.journal.turns(start.id)]
            while (reason := self._ending(said)) is None:
                message = await self._next_turn(start, said)
                if isinstance(message, EndReason):
                    reason = message
                    break
                said.append(message)
                bar.set_postfix_str(str(self._ledger), refresh=False)
            if reason != EndReason.BUDGET_SPENT:  # these are few transactions, not one each
                self.journal.end([start.id], reason)
        bar.update()
        return reason

    def _ending(self, said: list[Message]) -> EndReason | None:
        """Reasons that can be seen before anything is sent."""
        if said and said[-1].role == "assistant" and sum(m.role == "user" for m in said) >= self.max_rounds:
            return EndReason.MAX_ROUNDS
        client = self._client(speaker(said))
        if client is None:  # a script goes on whatever was said
            return None
        room = client.endpoint.context_length - client.endpoint.max_new_tokens
        return EndReason.CONTEXT_FULL if self._tokens(said) > room else None

    def _client(self, role: str) -> Client | None:
        return self.user if role == "user" else self.responder

    def _request(self, said: Sequence[Message]) -> list[Message]:
        """What is sent for the next turn: always whole, its system prompt first."""
        if speaker(said) == "user":
            return self.simulator.messages(said)
        return [Message("system", self.responder_system), *said]

    def _tokens(self, said: Sequence[Message]) -> int:
        """Tokens of that request, by the template that its server fills in."""
        if speaker(said) == "user" and self.simulator.flipped:
            text, _ = self.format.render(said, self.simulator.system, reply_as="user")
        else:
            text, _ = self.format.render(self._request(said), None, reply_as="assistant")
        return self.count_tokens(text)

    async def _next_turn(self, start: Start, said: list[Message]) -> Message | EndReason:
        role = speaker(said)
        if role == "user" and start.script is not None:
            return self._replayed(start, said)
        faults = self.journal.faults(start.id, len(said))
        while not self._judge.gives_up(faults):
            reply = await self._ask(start.id, said, len(faults))
            if isinstance(reply, EndReason):
                return reply
            message, outcome = self._judge.judge(role, reply.text, said)
            paid = Attempt(start.id, len(said), len(faults), role, *self._counted(reply, said), outcome)
            self._ledger.add(role, paid.prompt_tokens, paid.new_tokens)
            if not isinstance(outcome, EndReason):
                self.journal.add_turn(start.id, len(said), message, paid)
                return message
            self.journal.reject(paid, message.content)
            faults.append(outcome)
        return faults[-1]

    def _replayed(self, start: Start, said: list[Message]) -> Message | EndReason:
        turn = sum(m.role == "user" for m in said)
        if turn == len(start.script):
            return EndReason.USER_ENDED
        message = Message("user", start.script[turn])
        self.journal.add_turn(start.id, len(said), message)
        return message

    def _counted(self, reply: Reply, said: Sequence[Message]) -> tuple[int, int]:
        """Tokens sent and generated; our own count where the server sends none, or a budget would never be spent."""
        return reply.prompt_tokens or self._tokens(said), reply.completion_tokens or self.count_tokens(reply.text)

    async def _ask(self, conversation: str, said: list[Message], attempt: int) -> Reply | EndReason:
        """One answer, or why there is none. Raises EndpointError where asking on is of no use to anybody."""
        role, request = speaker(said), self._request(said)
        client = self._client(role)
        seed = turn_seed(conversation, len(said), self.seed, attempt)
        for pause in PAUSES:
            if not self._ledger.open():
                return EndReason.BUDGET_SPENT
            self._ledger.in_flight += 1
            try:
                reply = await client.complete(request, seed, conversation=conversation)
            except EndpointError as error:
                if error.kind == "refused":
                    raise
                if error.kind != "context" and self._breaker.failed(role, conversation):
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
            {"mode": s.mode, "end_reason": str(ended[s.id]), "simulator": simulator},
        )
        for s in sorted(starts, key=lambda s: s.id)
    ]


def end_reasons(conversations: Sequence[Conversation]) -> Counter[str]:
    return Counter(c.meta["end_reason"] for c in conversations)


# ---------------------------------------------------------------- a profile's run


@dataclass(frozen=True)
class Outcome:
    """What a run, or a shard of one, came to. Usage counts earlier runs of the same journal too."""

    conversations: list[Conversation]  # those in which something was said
    reasons: Counter[str]
    usage: dict[str, Usage]
    interventions: list[Intervention]
    rejected: list[Rejected]  # some of them, to be looked at
    dollars: float | None  # None where nothing has a price
    resumed_turns: int

    def __str__(self) -> str:
        ends = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        return f"{self.reasons.total()} conversations: {ends}"


async def simulate(chosen: Profile, seed: int, folder: Path, shard: Shard | None = None) -> Outcome:
    """Hold the conversations of a profile, or a share of them; a whole run writes the exports.

    ``folder``: the run's. Servers are started only if something is left to ask. Raises SimulationError,
    EndpointError, ConversationFileError, each one line.
    """
    config, out = chosen.simulation, folder / STAGE_FOLDER
    starts = starts_of(chosen, seed, folder)
    starts = [s for s in starts if shard is None or shard.holds(s)]
    path = journal_path(out, identity(chosen, seed), str(shard or ""))
    with contextlib.closing(Journal(path)) as journal:
        resumed, ended = journal.count_turns(), journal.ended()
        if any(ended.get(s.id, EndReason.BUDGET_SPENT) == EndReason.BUDGET_SPENT for s in starts):
            await _hold_all(chosen, seed, folder, starts, journal, share(config.budget, shard.of if shard else 1))
        talks = exported(journal, starts, config.simulator)
        usage, interventions, rejected = journal.usage(), journal.interventions(), journal.rejected(SHOWN)
    if shard is None:
        write_exports(out, talks, config, seed, usage, interventions)
    spoken = [c for c in talks if c.messages]
    cost = dollars(config.budget, usage)
    return Outcome(spoken, end_reasons(talks), usage, interventions, rejected, cost, resumed)


async def _hold_all(
    chosen: Profile, seed: int, folder: Path, starts: Sequence[Start], journal: Journal, budget: profile.Budget
) -> None:
    config, logs = chosen.simulation, folder / STAGE_FOLDER / "logs"
    tokenizer = load_tokenizer(chosen.dialogue.tokenizer)
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    chat = chat_format(chosen.dialogue.template, tokenizer)
    _require_plain(starts, chat)
    openings = [sum(count(m.content) for m in s.opening) for s in starts]
    print(f"before it starts: {estimate(config, openings)}", flush=True)
    simulator = SIMULATORS[config.simulator]
    if simulator == USERGPT:
        simulator = replace(USERGPT, falls_silent=chosen.usergpt_sft.learn_ending)
    sides = {role: e for role, e in (("user", config.user), ("responder", config.responder)) if e}
    local = sum(e.engine != "api" for e in sides.values())
    clients: dict[str, Client] = {}
    async with contextlib.AsyncExitStack() as stack:
        # Services first: a wrong key must not show only after a local server has loaded its weights.
        for role, endpoint in sorted(sides.items(), key=lambda side: side[1].engine != "api"):
            place = connect(endpoint, role, folder, logs, share=local)
            clients[role] = await stack.enter_async_context(place)
        engine = Simulation(
            simulator,
            clients.get("user"),
            clients["responder"],
            journal,
            config.max_rounds,
            seed,
            count,
            chat,
            config.guardrails,
            budget,
        )
        await engine.run(starts)


def _require_plain(starts: Sequence[Start], chat: ChatFormat) -> None:
    for start in starts:
        text = "\n".join([*(m.content for m in start.opening), *(start.script or ())])
        if found := [token for token in chat.reserved if token in text]:
            raise SimulationError(f"{start.id}: its seed holds {found[0]}, a token of the template; take it out there")


def identity(chosen: Profile, seed: int) -> dict[str, Any]:
    """All that shapes what is said, and nothing else: it names the journal."""
    values = chosen.simulation.model_dump(exclude=NOT_IDENTITY)
    for side in ("user", "responder"):
        values[side] = {k: v for k, v in (values[side] or {}).items() if k not in NOT_IDENTITY_OF_ENDPOINT}
    return {"simulation": values, "dialogue": chosen.dialogue.model_dump(), "seed": seed}


def merge(chosen: Profile, seed: int, folder: Path) -> int:
    """Take the journals of all shards into the whole run's; returns how many there were.

    ``simulate`` then has nothing left to ask. Raises SimulationError if a shard is still at work or conversations
    have not ended.
    """
    path = journal_path(folder / STAGE_FOLDER, identity(chosen, seed))
    shards = sorted(path.parent.glob(f"{path.stem}-shard-*.sqlite"))
    with contextlib.closing(Journal(path)) as journal:
        for shard in shards:
            journal.absorb(shard)
        ended = journal.ended()
    starts = starts_of(chosen, seed, folder)
    if missing := sum(s.id not in ended for s in starts):
        raise SimulationError(
            f"{missing} of {len(starts)} conversations have not ended in {len(shards)} shards; run those shards again"
        )
    return len(shards)


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m realm.simulation", description="Hold a profile's conversations; called again, it goes on."
    )
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shard", help="i/n: only this share of the conversations, in a journal of its own")
    what.add_argument("--merge", action="store_true", help="join the shards and write the exports")
    given = parser.parse_args(arguments)
    try:
        return _dispatch(given)
    except (ProfileError, SimulationError, ArtefactError, ConversationFileError) as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
    except (EndpointError, AssetError, ConversionError) as error:
        print(f"error: {redact(str(error))}; run again to go on", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; what was said is kept, call again to go on", file=sys.stderr)
        return 130
    return 1


def _dispatch(given: argparse.Namespace) -> int:
    chosen, folder = load_profile(given.profile), run_folder(given.profile)
    for endpoint in chosen.endpoints():
        register_secret(os.environ.get(endpoint.api_key_env or ""))
    if given.merge:
        print(f"{merge(chosen, chosen.seed, folder)} shards joined")
    shard = Shard.parse(given.shard) if given.shard else None
    print(asyncio.run(simulate(chosen, chosen.seed, folder, shard)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
