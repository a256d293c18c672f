"""RealChat as files: JSON lines, ShareGPT's layout, Parquet, and the data card; each whole or not there."""

from __future__ import annotations

import filecmp
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from realm.conversations.conversation import Conversation
from realm.conversations.writers import write_conversations, write_parquet, write_sharegpt
from realm.core.cards import CARD, PAPER, public_name, write_card
from realm.core.profile import Endpoint, Simulation
from realm.core.set_aside import set_aside
from realm.models import assets
from realm.simulation.endings import EndReason
from realm.simulation.records import Intervention, Usage
from realm.simulation.standing import cut_turns

JSONL, SHAREGPT, PARQUET = "realchat.jsonl", "realchat_sharegpt.json", "realchat.parquet"
EXPORTS = (SHAREGPT, PARQUET, CARD, JSONL)  # the last is what the next stage waits for
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TEMPLATE = Path(__file__).parent / "data_card.md.j2"


def write_exports(
    folder: str | Path,
    conversations: Sequence[Conversation],
    config: Simulation,
    seed: int,
    usage: Mapping[str, Usage],
    interventions: Sequence[Intervention],
) -> list[Conversation]:
    """Write the four files into ``folder``; returns the conversations in them.

    A conversation in which nothing was said is no conversation: the card counts it, the files leave it out.
    What stands there and holds something else is set aside. Raises ArtefactError if the folder cannot be written.
    """
    folder, spoken = Path(folder), [c for c in conversations if c.messages]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exports.", suffix=".partial", dir=folder) as name:
        new = Path(name)
        write_sharegpt(new / SHAREGPT, spoken)
        write_parquet(new / PARQUET, spoken)
        _write_card(new / CARD, conversations, spoken, config, seed, usage, interventions)
        write_conversations(new / JSONL, spoken)
        _put(new, folder)
    return spoken


def _put(new: Path, folder: Path) -> None:
    old = [folder / name for name in EXPORTS if (folder / name).exists()]
    if any(not filecmp.cmp(path, new / path.name, shallow=False) for path in old):
        set_aside(old, folder)
    for name in EXPORTS:
        (new / name).replace(folder / name)


def _write_card(
    path: Path,
    conversations: Sequence[Conversation],
    spoken: Sequence[Conversation],
    config: Simulation,
    seed: int,
    usage: Mapping[str, Usage],
    interventions: Sequence[Intervention],
) -> None:
    counts = lambda key: Counter(c.meta[key] for c in conversations)  # noqa: E731
    ends = counts("end_reason")
    write_card(
        TEMPLATE,
        path,
        front_matter=_front_matter(len(spoken)),
        conversations=len(spoken),
        silent=len(conversations) - len(spoken),
        turns=sum(len(c.messages) for c in spoken),
        modes=sorted(counts("mode").items()),
        ends=[(reason, ends.get(reason, 0)) for reason in map(str, EndReason)],
        cut_turns=cut_turns(spoken),
        turns_of=Counter(m.role for c in spoken for m in c.messages),
        cut=sum(ends.get(reason, 0) for reason in ("max_rounds", "context_full", "turn_cut", "budget_spent")),
        rounds=sorted(Counter(c.rounds for c in spoken).items()),
        user=described(config.user) if config.user else "none: turns of real conversations",
        responder=described(config.responder),
        config=config,
        seed=seed,
        usage=sorted(usage.items()),
        interventions=sorted(interventions),
    )


def described(endpoint: Endpoint) -> str:
    """A speaker for the card; of a model served here, its licence and hash where they are known."""
    return public_name(endpoint.model) if endpoint.engine == "api" else assets.described(endpoint.model)


def _front_matter(count: int) -> str:
    values: dict[str, Any] = {
        "license": "other",
        "license_name": "terms-of-the-models-that-wrote-it",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for limit, name in SIZES if count < limit), "n>1M")],
        "tags": ["synthetic", "conversational", "user-simulation", PAPER],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    }
    return yaml.safe_dump(values, sort_keys=False)
