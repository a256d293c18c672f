"""A profile's simulation: its plan held by the engine, its shards and their merge, its exports; the command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realm.conversations.conversation import Conversation
from realm.core import profile
from realm.core.errors import exit_code, note
from realm.core.files import make_folder
from realm.core.profile import Endpoint, Profile, profile_and_folder
from realm.dialogue.encoder import encoder_of
from realm.dialogue.format import ChatFormat
from realm.models import assets
from realm.models.assets import AssetError
from realm.models.gguf import ConversionError
from realm.models.weights import weights_of
from realm.serving.client import Client
from realm.serving.counting import TokenCounter
from realm.serving.faults import EndpointError
from realm.serving.local import connect
from realm.serving.words import note_words
from realm.simulation.budget import Ledger, dollars, estimate, share
from realm.simulation.endings import Ending, EndReason, SimulationError
from realm.simulation.engine import Simulation
from realm.simulation.export import write_exports
from realm.simulation.identity import journal_identity, responder_system
from realm.simulation.journal import Journal, journal_path
from realm.simulation.limits import Limits
from realm.simulation.plan import Shard, Start, starts_of
from realm.simulation.records import Intervention, Reason, Rejected, Thought, Usage
from realm.simulation.simulators import SIMULATORS, USERGPT, Simulator
from realm.simulation.standing import cut_turns, end_reasons, exported, nobody_answered, standings

STAGE_FOLDER = "03_simulation"
BESIDE = "beside"  # in it: a folder for each corpus of simulation.beside
ROLES = {"user": "user", "responder": "assistant"}  # whose turns an endpoint speaks
SHOWN = 100  # rejected answers that a run's outcome holds


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
    cut: Counter[str]  # role -> turns that stop in the middle, at a limit of tokens or by a guardrail
    thoughts: dict[str, Thought]
    again: int  # failed conversations that the next run asks again

    def __str__(self) -> str:
        ends = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        why = "".join(f"\n{reason} {n}: {words}" for reason, words, n in self.why)
        return f"{self.reasons.total()} conversations: {ends}{why}"


@dataclass(frozen=True)
class Work:
    """A profile's run as far as it can be known without asking anybody; ``chosen.simulation`` is RealChat's, or that of
    a corpus beside it."""

    chosen: Profile
    seed: int
    folder: Path  # the run's
    out: Path  # this corpus's
    starts: list[Start]
    simulator: Simulator
    limits: Limits
    words: dict[str, Any]

    @classmethod
    def of(
        cls, chosen: Profile, seed: int, folder: Path, shard: Shard | None = None, corpus: str | None = None
    ) -> Work:
        """``corpus``: a name in ``simulation.beside``, None for RealChat. Raises SimulationError,
        ConversationFileError, AssetError."""
        chosen, out = _of_corpus(chosen, corpus), corpus_folder(folder, corpus)
        config, encoder = chosen.simulation, encoder_of(chosen, "usergpt_sft")
        starts = [s for s in starts_of(chosen, seed, folder) if shard is None or shard.holds(s)]
        simulator = SIMULATORS[config.simulator]
        if simulator == USERGPT:
            simulator = replace(USERGPT, falls_silent=chosen.usergpt_sft.learn_ending)
        tokenizer, chat = encoder.tokenizer, encoder.format
        _require_plain(starts, chat, config)
        count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
        base = chosen.usergpt_sft.base_model
        whose = (simulator, chat, count, responder_system(config), weights_of(base, folder) or base)
        sides = {"user": config.user, "responder": config.responder}
        elsewhere = frozenset(ROLES[role] for role, e in sides.items() if e and own_tokenizer(e, base))
        ends_at_cut = config.cut_turns == "end"
        limits = Limits(config.max_rounds, config.user, config.responder, *whose, elsewhere, ends_at_cut)
        words = journal_identity(chosen, seed, folder, simulator, chat)
        return cls(chosen, seed, folder, out, starts, simulator, limits, words)

    def path(self, shard: Shard | None = None) -> Path:
        return journal_path(self.out, self.words, str(shard or ""))

    def journal(self, shard: Shard | None = None) -> Journal:
        """This run's journal, or a shard's, with all that others of the same words hold: the whole run's takes in what
        every shard said, a shard's what the whole run and shards of another division did."""
        path = self.path(shard)
        make_folder(self.out)
        if why := note_words(self.path(), self.words, self.out.glob("journal-*.json")):
            note(why)
        journal = Journal(path)
        try:
            for other in self.others(shard):
                # A shard answers, and pays, for its own share.
                journal.absorb(other, {s.key for s in self.starts} if shard else None)
        except BaseException:
            journal.close()
            raise
        return journal

    def others(self, shard: Shard | None = None) -> list[Path]:
        """Journals of the same words, besides this one and the shards at work beside it."""
        whole = self.path()
        division = f"-of-{shard.of}.sqlite" if shard else None
        found = sorted(self.out.glob(f"{whole.stem}-shard-*.sqlite")) + ([whole] if shard and whole.exists() else [])
        return [p for p in found if division is None or not p.name.endswith(division)]

    def outcome(self, journal: Journal, *, export: bool) -> Outcome:
        """What there is; raises SimulationError if conversations have not ended."""
        config = self.chosen.simulation
        talks = exported(journal, self.starts, self.limits, config.simulator)
        resumed = journal.count_turns()
        journal.choose(s.key for s in self.starts)
        usage, interventions, rejected = journal.usage(), journal.interventions(), journal.rejected(SHOWN)
        if export:
            write_exports(self.out, talks, config, self.seed, usage, interventions)
        spoken = [c for c in talks if c.messages]
        cost = dollars(config.budget, usage)
        ended = end_reasons(talks)
        failed = journal.asked_again() & journal.failures().keys() & {s.key for s in self.starts}
        told = journal.reasons(), cut_turns(spoken), journal.thoughts(), len(failed)
        return Outcome(spoken, ended, usage, interventions, rejected, cost, resumed, *told)


async def simulate(
    chosen: Profile, seed: int, folder: Path, shard: Shard | None = None, corpus: str | None = None
) -> Outcome:
    """Hold the conversations of a profile, or a share of them; a whole run writes the exports.

    ``folder``: the run's; ``corpus``: a name in ``simulation.beside`` for that corpus, in a folder of its own. What was
    said before, here or in shards, is gone on with. Servers are started only if something is left to ask and to
    spend. Raises SimulationError, EndpointError, ConversationFileError, each one line.
    """
    work = Work.of(chosen, seed, folder, shard, corpus)
    with contextlib.closing(work.journal(shard)) as journal:
        resumed = journal.count_turns()
        budget = share(work.chosen.simulation.budget, shard.of if shard else 1)
        standing, again = standings(journal, work.starts, work.limits), journal.asked_again()
        waiting = [k for k, s in standing.items() if s.reason is None or k in again]
        if waiting and Ledger(budget, journal.usage()).open():
            await _hold_all(work, journal, budget, work.out / "logs" / str(shard or "").lstrip("-"))
        else:
            journal.end([k for k in waiting if standing[k].reason is None], Ending(EndReason.BUDGET_SPENT))
            if failed := nobody_answered(journal, work.starts):
                raise SimulationError(failed)
        return replace(work.outcome(journal, export=shard is None), resumed_turns=resumed)


async def _hold_all(work: Work, journal: Journal, budget: profile.Budget, logs: Path) -> None:
    config, limits = work.chosen.simulation, work.limits
    openings = [sum(limits.count(m.content) for m in s.opening if m.role != "system") for s in work.starts]
    print(f"before it starts: {estimate(config, openings)}", flush=True)
    sides = {role: e for role, e in (("user", config.user), ("responder", config.responder)) if e}
    local = [role for role, e in sides.items() if e.engine != "api"]
    clients: dict[str, Client] = {}
    counters: dict[str, TokenCounter] = {}
    async with contextlib.AsyncExitStack() as stack:
        # Services first: a wrong key must not show only after a local server has loaded its weights.
        for role, endpoint in sorted(sides.items(), key=lambda side: side[1].engine != "api"):
            number = local.index(role) if role in local else 0
            place = connect(endpoint, role, work.folder, logs, share=len(local), number=number)
            clients[role] = await stack.enter_async_context(place)
            if ROLES[role] in limits.elsewhere:
                counters[ROLES[role]] = TokenCounter(clients[role].address)
                stack.push_async_callback(counters[ROLES[role]].close)
        engine = Simulation(
            work.simulator,
            clients.get("user"),
            clients["responder"],
            journal,
            config.max_rounds,
            work.seed,
            limits.count,
            limits.format,
            config.guardrails,
            budget,
            responder_system=limits.responder_system,
            counted_by=limits.counted_by,
            cut_turns=config.cut_turns,
            counters=counters,
        )
        await engine.run(work.starts)


def own_tokenizer(endpoint: Endpoint, base_model: str) -> bool:
    """Whether a GGUF file is served whose tokenizer is another than the one that conversations are counted with."""
    ours = endpoint.model == base_model or endpoint.model.startswith(("stage:", "base:"))
    return endpoint.engine == "llama.cpp" and not ours and assets.gguf_of(endpoint.model) is not None


def corpus_folder(folder: Path, corpus: str | None = None) -> Path:
    """Where a corpus lies in the run ``folder``: RealChat, or one of ``simulation.beside``."""
    return folder / STAGE_FOLDER if corpus is None else folder / STAGE_FOLDER / BESIDE / corpus


def _of_corpus(chosen: Profile, corpus: str | None) -> Profile:
    """The profile with that corpus as its simulation. Raises SimulationError if there is none of this name."""
    if corpus is None:
        return chosen
    corpora = chosen.corpora()
    if corpus not in corpora:
        there = ", ".join(corpora) or "none under this profile"
        raise SimulationError(f"{corpus}: no such corpus; simulation.beside has {there}")
    return chosen.model_copy(update={"simulation": corpora[corpus]})


def _require_plain(starts: Sequence[Start], chat: ChatFormat, config: profile.Simulation) -> None:
    if found := [token for token in chat.reserved if token in (config.responder_prompt or "")]:
        raise SimulationError(f"simulation.responder_prompt holds {found[0]}, a token of the template; take it out")
    for start in starts:
        text = "\n".join([*(m.content for m in start.opening), *(start.script or ())])
        if found := [token for token in chat.reserved if token in text]:
            raise SimulationError(f"{start.id}: its seed holds {found[0]}, a token of the template; take it out there")


def identity(chosen: Profile, seed: int, folder: Path, corpus: str | None = None) -> dict[str, Any]:
    """All that shapes what is said, and nothing else: it names the journal."""
    return Work.of(chosen, seed, folder, corpus=corpus).words


def merge(chosen: Profile, seed: int, folder: Path, corpus: str | None = None) -> tuple[int, Outcome]:
    """Take the journals of all shards into the whole run's and write the exports; (how many shards, what they hold).

    Nobody is asked and no server is started: what a spent budget left open is for the next run. Raises SimulationError
    if a shard is still at work or conversations have not ended.
    """
    work = Work.of(chosen, seed, folder, corpus=corpus)
    shards = work.others()
    with contextlib.closing(work.journal()) as journal:
        standing = standings(journal, work.starts, work.limits)
        if missing := sum(s.reason is None for s in standing.values()):
            raise SimulationError(
                f"{missing} of {len(work.starts)} conversations have not ended in {len(shards)} shards; "
                "run those shards again"
            )
        return len(shards), work.outcome(journal, export=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m realm.simulation", description="Hold a profile's conversations; called again, it goes on."
    )
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shard", help="i/n: only this share of the conversations, in a journal of its own")
    what.add_argument("--merge", action="store_true", help="join the shards and write the exports")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--corpus", metavar="NAME", help="a corpus of simulation.beside (default: RealChat)")
    which.add_argument("--beside", action="store_true", help="RealChat, and after it all corpora of simulation.beside")
    given = parser.parse_args(arguments)
    return exit_code(lambda: _dispatch(given), "interrupted; what was said is kept, call again to go on")


def _dispatch(given: argparse.Namespace) -> None:
    chosen, folder = profile_and_folder(given.profile)
    make_folder(folder / STAGE_FOLDER)  # before anything else: a place that cannot be written names its variable
    shard = Shard.parse(given.shard) if given.shard else None
    for corpus in (None, *chosen.corpora()) if given.beside else (given.corpus,):
        if given.beside:
            print(f"-- {corpus or 'RealChat'}", flush=True)
        if given.merge:
            count, outcome = merge(chosen, chosen.seed, folder, corpus)
            print(f"{count} shards joined\n{outcome}")
            continue
        try:
            print(asyncio.run(simulate(chosen, chosen.seed, folder, shard, corpus)), flush=True)
        except (EndpointError, AssetError, ConversionError) as error:
            raise SimulationError(f"{error}; run again to go on") from error
