"""Writers of conversations: JSON lines, the ShareGPT layout, Parquet; each file whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from realm.conversations.conversation import Conversation
from realm.core.files import atomic_path


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write JSON lines atomically: the file appears whole or not at all. Returns how many."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for conversation in conversations:
            handle.write(json.dumps(conversation.to_record(), ensure_ascii=False) + "\n")
            count += 1
    return count


def write_sharegpt(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write the ShareGPT layout (a JSON array of ``from``/``value`` turns), atomically. Returns how many."""
    names = {"user": "human", "assistant": "gpt"}
    records = [
        {
            "id": c.id,
            "conversations": [{"from": names.get(m.role, m.role), "value": m.content} for m in c.messages],
        }
        for c in conversations
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return len(records)


def write_parquet(path: str | Path, conversations: Sequence[Conversation]) -> None:
    """Our record as columns ``id``, ``messages`` and ``meta``, atomically."""
    import pyarrow as arrow  # slow to import, and only exports need it
    import pyarrow.parquet as parquet

    turn = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    lists = {key for c in conversations for key, value in c.meta.items() if isinstance(value, list)}
    kind = lambda key: arrow.list_(arrow.int32()) if key in lists else arrow.string()  # noqa: E731
    keys = sorted({key for c in conversations for key in c.meta})
    columns = [("id", arrow.string()), ("messages", arrow.list_(turn))]
    # Parquet has no record without fields.
    columns += [("meta", arrow.struct([(key, kind(key)) for key in keys]))] if keys else []
    table = arrow.Table.from_pylist([c.to_record() for c in conversations], arrow.schema(columns))
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)
