"""Which conversations are to be held: free, seeded or replayed, with stable ids, whole or in shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from realm.conversations.conversation import Conversation, Message
from realm.conversations.readers import load_conversations, read_conversations
from realm.conversations.splits import one_per_session
from realm.core.files import text_sha256
from realm.core.profile import Profile
from realm.simulation.endings import SimulationError


@dataclass(frozen=True)
class Start:
    """A conversation to be: its id, mode and opening messages; ``script``: human turns to replay, None to ask.

    ``key``: its name in a journal, with a hash of its opening and script. Under another opening it is another
    conversation there, so that no other's middle is joined to it.
    """

    id: str
    mode: str
    opening: tuple[Message, ...] = ()
    script: tuple[str, ...] | None = None

    @cached_property
    def key(self) -> str:
        given = [[m.role, m.content] for m in self.opening], self.script
        return f"{self.id}#{text_sha256(json.dumps(given))[:12]}" if any(given) else self.id


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


def plan_replay(count: int, sources: Sequence[Conversation]) -> list[Start]:
    """Starts that replay the human turns of ``count`` conversations. Raises SimulationError if there are fewer."""
    scripts = [(c.id, tuple(c.turns("user"))) for c in sources if c.messages and c.messages[0].role == "user"]
    if count > len(scripts):
        raise SimulationError(
            f"{count} conversations to replay asked for, {len(scripts)} of {len(sources)} open with a human turn"
        )
    return [Start(f"replay-{i:05d}-{name}", "replay", (), turns) for i, (name, turns) in enumerate(scripts[:count])]


def starts_of(chosen: Profile, seed: int, folder: Path) -> list[Start]:
    """The whole plan of a profile; ``folder``: the run's. Raises SimulationError, ConversationFileError."""
    config = chosen.simulation
    if config.seed_source == "split":
        path = folder / "01_data" / "seeds.jsonl"
        if not path.exists():
            raise SimulationError(f"{path}: missing; run notebooks/01_data_inspection.ipynb first")
        seeds = one_per_session(load_conversations(path), seed)
    else:
        seeds = list(read_conversations(config.seed_source))
    if config.simulator == "replay":
        return plan_replay(config.seeded, seeds)
    return plan(config.free, config.seeded, seeds)


@dataclass(frozen=True)
class Shard:
    """One share of a plan, counted from 1. A conversation's share depends on its id alone."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/8"``. Raises SimulationError for anything else."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise SimulationError(f"--shard {text}: expected i/n with 1 <= i <= n, for example 2/8")
        return cls(int(number), int(of))

    def holds(self, start: Start) -> bool:
        return int(text_sha256(start.id)[:15], 16) % self.of == self.number - 1

    def __str__(self) -> str:
        return f"-shard-{self.number}-of-{self.of}"
