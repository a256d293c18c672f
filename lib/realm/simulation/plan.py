"""Which conversations are to be held: free, seeded or replayed, with stable ids, whole or in shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from realm.conversations.conversation import SESSION, Conversation, Message
from realm.conversations.readers import load_conversations, read_conversations
from realm.conversations.splits import one_per_session
from realm.core.files import text_sha256
from realm.core.profile import Profile
from realm.dialogue.segments import from_their_opening
from realm.simulation.endings import SimulationError

SIDES = {"split": "seeds", "train": "train", "test": "test"}  # seed_source -> side of notebook 01
OF = "replay_of"  # in meta: the conversation whose human turns are replayed


@dataclass(frozen=True)
class Start:
    """A conversation to be: its id, mode and opening messages; ``script``: human turns to replay, None to ask.

    ``key``: its name in a journal, with a hash of its opening and script. Under another opening it is another
    conversation there, so that no other's middle is joined to it. ``meta``: of the conversation that is replayed, what
    tells whether it was seen in training.
    """

    id: str
    mode: str
    opening: tuple[Message, ...] = ()
    script: tuple[str, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @cached_property
    def key(self) -> str:
        given = [[m.role, m.content] for m in self.opening], self.script
        return f"{self.id}#{text_sha256(json.dumps(given))[:12]}" if any(given) else self.id


def plan(free: int, seeded: int, seeds: Sequence[Conversation]) -> list[Start]:
    """Starts with stable ids. A seed gives its first round, a single-turn question and answer, and its system turn.

    Raises SimulationError if there are fewer usable seeds than asked for.
    """
    starts = [Start(f"free-{i:05d}", "free") for i in range(free)]
    pairs = [(c.id, opening) for c in seeds if (opening := _first_round(c))]
    if seeded > len(pairs):
        raise SimulationError(
            f"simulation.seeded: {seeded} asked for, {len(pairs)} of {len(seeds)} seeds have a first round; lower it, "
            "raise data_inspection.seeds_share, or give more in simulation.seed_source"
        )
    return starts + [Start(f"seeded-{i:05d}-{name}", "seeded", pair) for i, (name, pair) in enumerate(pairs[:seeded])]


def _first_round(seed: Conversation) -> tuple[Message, ...]:
    own = len(_system_turn(seed))
    opening = seed.messages[: own + 2]
    return opening if [m.role for m in opening[own:]] == ["user", "assistant"] else ()


def plan_replay(count: int, sources: Sequence[Conversation]) -> list[Start]:
    """Starts that replay the human turns of ``count`` conversations. Raises SimulationError if there are fewer."""
    chosen = [c for c in sources if next((m.role for m in c.messages if m.role != "system"), None) == "user"]
    if count > len(chosen):
        raise SimulationError(
            f"simulation.seeded: {count} to replay asked for, {len(chosen)} of {len(sources)} conversations open with "
            "a human turn; lower it or give more in simulation.seed_source"
        )
    return [
        Start(f"replay-{i:05d}-{c.id}", "replay", _system_turn(c), tuple(c.turns("user")), _known_of(c))
        for i, c in enumerate(chosen[:count])
    ]


def _known_of(replayed: Conversation) -> dict[str, Any]:
    """Names of session and cluster among them; what is no text tells of its turns."""
    named = {key: value for key, value in replayed.meta.items() if isinstance(value, str)}
    return named | {OF: replayed.id, SESSION: replayed.session}


def _system_turn(conversation: Conversation) -> tuple[Message, ...]:
    return tuple(m for m in conversation.messages[:1] if m.role == "system")


def starts_of(chosen: Profile, seed: int, folder: Path) -> list[Start]:
    """The whole plan of a profile; ``folder``: the run's. Raises SimulationError, ConversationFileError."""
    config = chosen.simulation
    if side := SIDES.get(config.seed_source):
        path = folder / "01_data" / f"{side}.jsonl"
        if not path.exists():
            raise SimulationError(f"{path}: missing; run notebooks/01_data_inspection.ipynb first")
        found = load_conversations(path)
        seeds = one_per_session(found if side == "seeds" else from_their_opening(found), seed)
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
