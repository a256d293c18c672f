"""A profile's simulation: its plan held by the engine, its shards and their merge, its exports; the command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realm.conversations.conversation import Conversation
from realm.core import profile
from realm.core.errors import exit_code
from realm.core.files import make_folder
from realm.core.profile import Endpoint, Profile, load_profile, run_folder
from realm.core.secrets import register_secret
from realm.dialogue.encoder import encoder_of
from realm.dialogue.format import ChatFormat
from realm.models import assets
from realm.models.assets import AssetError
from realm.models.gguf import ConversionError
from realm.serving.client import Client
from realm.serving.counting import TokenCounter
from realm.serving.faults import EndpointError
from realm.serving.local import connect
from realm.simulation.budget import dollars, estimate, share
from realm.simulation.endings import SimulationError
from realm.simulation.engine import Simulation, end_reasons, exported, nobody_answered
from realm.simulation.export import write_exports
from realm.simulation.journal import Intervention, Journal, Reason, Rejected, Thought, Usage, journal_path
from realm.simulation.plan import Shard, Start, starts_of
from realm.simulation.simulators import SIMULATORS, USERGPT

STAGE_FOLDER = "03_simulation"
ROLES = {"user": "user", "responder": "assistant"}  # whose turns an endpoint speaks
SHOWN = 100  # rejected answers that a run's outcome holds
# These change what a run costs or how fast it is, never what is said: they may differ when it goes on.
NOT_IDENTITY = {"free", "seeded", "budget"}
NOT_IDENTITY_OF_ENDPOINT = {"concurrency", "requests_per_minute", "timeout_seconds", "max_retries", "patience_seconds"}


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
    why: list[Reason]  # in words, of those that did not end by themselves
    cut: dict[str, int]  # role -> turns that stop in the middle, at a limit of tokens
    thoughts: dict[str, Thought]

    def __str__(self) -> str:
        ends = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        why = "".join(f"\n{reason} {n}: {words}" for reason, words, n in self.why)
        return f"{self.reasons.total()} conversations: {ends}{why}"


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
        again = journal.asked_again()
        if any(s.id not in ended or s.id in again for s in starts):
            await _hold_all(chosen, seed, folder, starts, journal, share(config.budget, shard.of if shard else 1))
        elif failed := nobody_answered(journal, starts):
            raise SimulationError(failed)
        talks = exported(journal, starts, config.simulator)
        usage, interventions, rejected = journal.usage(), journal.interventions(), journal.rejected(SHOWN)
        told = journal.reasons(), journal.count_cut(), journal.thoughts()
    if shard is None:
        write_exports(out, talks, config, seed, usage, interventions)
    spoken = [c for c in talks if c.messages]
    cost = dollars(config.budget, usage)
    return Outcome(spoken, end_reasons(talks), usage, interventions, rejected, cost, resumed, *told)


async def _hold_all(
    chosen: Profile, seed: int, folder: Path, starts: Sequence[Start], journal: Journal, budget: profile.Budget
) -> None:
    config, logs = chosen.simulation, folder / STAGE_FOLDER / "logs"
    encoder = encoder_of(chosen, "usergpt_sft")
    tokenizer, chat = encoder.tokenizer, encoder.format
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    _require_plain(starts, chat)
    openings = [sum(count(m.content) for m in s.opening) for s in starts]
    print(f"before it starts: {estimate(config, openings)}", flush=True)
    simulator = SIMULATORS[config.simulator]
    if simulator == USERGPT:
        simulator = replace(USERGPT, falls_silent=chosen.usergpt_sft.learn_ending)
    sides = {role: e for role, e in (("user", config.user), ("responder", config.responder)) if e}
    local = sum(e.engine != "api" for e in sides.values())
    clients: dict[str, Client] = {}
    counters: dict[str, TokenCounter] = {}
    async with contextlib.AsyncExitStack() as stack:
        # Services first: a wrong key must not show only after a local server has loaded its weights.
        for role, endpoint in sorted(sides.items(), key=lambda side: side[1].engine != "api"):
            place = connect(endpoint, role, folder, logs, share=local)
            clients[role] = await stack.enter_async_context(place)
            if own_tokenizer(endpoint, chosen.usergpt_sft.base_model):
                counters[ROLES[role]] = TokenCounter(clients[role].address)
                stack.push_async_callback(counters[ROLES[role]].close)
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
            counters=counters,
        )
        await engine.run(starts)


def own_tokenizer(endpoint: Endpoint, base_model: str) -> bool:
    """Whether a GGUF file is served whose tokenizer is another than the one that conversations are counted with."""
    ours = endpoint.model == base_model or endpoint.model.startswith(("stage:", "base:"))
    return endpoint.engine == "llama.cpp" and not ours and assets.gguf_of(endpoint.model) is not None


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m realm.simulation", description="Hold a profile's conversations; called again, it goes on."
    )
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shard", help="i/n: only this share of the conversations, in a journal of its own")
    what.add_argument("--merge", action="store_true", help="join the shards and write the exports")
    given = parser.parse_args(arguments)
    return exit_code(lambda: _dispatch(given), "interrupted; what was said is kept, call again to go on")


def _dispatch(given: argparse.Namespace) -> None:
    chosen, folder = load_profile(given.profile), run_folder(given.profile)
    for endpoint in chosen.endpoints().values():
        register_secret(os.environ.get(endpoint.api_key_env or ""))
    make_folder(folder / STAGE_FOLDER)
    if given.merge:
        print(f"{merge(chosen, chosen.seed, folder)} shards joined")
    shard = Shard.parse(given.shard) if given.shard else None
    try:
        print(asyncio.run(simulate(chosen, chosen.seed, folder, shard)))
    except (EndpointError, AssetError, ConversionError) as error:
        raise SimulationError(f"{error}; run again to go on") from error
