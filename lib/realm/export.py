"""RealChat as files: JSON lines, ShareGPT's layout, Parquet, and the data card; each whole or not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from realm.conversation import Conversation, write_conversations, write_sharegpt
from realm.journal import EndReason, Intervention, Usage
from realm.model_card import PAPER, public_name
from realm.profile import Simulation
from realm.provenance import atomic_path, redact

JSONL, SHAREGPT, PARQUET, CARD = "realchat.jsonl", "realchat_sharegpt.json", "realchat.parquet", "README.md"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ENVIRONMENT = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)


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
    Raises ArtefactError if the folder cannot be written.
    """
    folder, spoken = Path(folder), [c for c in conversations if c.messages]
    write_sharegpt(folder / SHAREGPT, spoken)
    write_parquet(folder / PARQUET, spoken)
    card = _card(conversations, spoken, config, seed, usage, interventions)
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(redact(card), encoding="utf-8")
    # Last, since it is what the next stage waits for.
    write_conversations(folder / JSONL, spoken)
    return spoken


def write_parquet(path: str | Path, conversations: Sequence[Conversation]) -> None:
    """Our record as columns ``id``, ``messages`` and ``meta``, atomically."""
    import pyarrow as arrow  # slow to import, and only exports need it
    import pyarrow.parquet as parquet

    turn = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    keys = sorted({key for c in conversations for key in c.meta})
    columns = [("id", arrow.string()), ("messages", arrow.list_(turn))]
    # Parquet has no record without fields.
    columns += [("meta", arrow.struct([(key, arrow.string()) for key in keys]))] if keys else []
    table = arrow.Table.from_pylist([c.to_record() for c in conversations], arrow.schema(columns))
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def _card(
    conversations: Sequence[Conversation],
    spoken: Sequence[Conversation],
    config: Simulation,
    seed: int,
    usage: Mapping[str, Usage],
    interventions: Sequence[Intervention],
) -> str:
    counts = lambda key: Counter(c.meta[key] for c in conversations)  # noqa: E731
    ends = counts("end_reason")
    text = (Path(__file__).parent / "data_card.md.j2").read_text(encoding="utf-8")
    return _ENVIRONMENT.from_string(text).render(
        front_matter=_front_matter(len(spoken)),
        conversations=len(spoken),
        silent=len(conversations) - len(spoken),
        turns=sum(len(c.messages) for c in spoken),
        modes=sorted(counts("mode").items()),
        ends=[(reason, ends.get(reason, 0)) for reason in map(str, EndReason)],
        cut=sum(ends.get(reason, 0) for reason in ("max_rounds", "context_full", "budget_spent")),
        rounds=sorted(Counter(c.rounds for c in spoken).items()),
        user=public_name(config.user.model) if config.user else "none: turns of real conversations",
        responder=public_name(config.responder.model),
        config=config,
        seed=seed,
        usage=sorted(usage.items()),
        interventions=sorted(interventions),
    )


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
