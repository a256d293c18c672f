"""One path through a tree of messages: ChatGPT's export with its branches, OpenAssistant's trees and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from realm.conversations import layouts
from realm.conversations.turns import Turn, kind_of, named, turn_of

PARENT_KEYS = ("parent_id", "parentMessageId", "parent_message_id", "parent_message_uuid", "parent")
_LINKING = {*PARENT_KEYS, *layouts.REPLIES_KEYS}
NAME_KEYS = ("message_id", "messageId", "uuid", "id")


def export_turns(record: dict[str, Any], left_out: Counter[str]) -> list[Turn] | None:
    """The path of ChatGPT's export from the root to the current node; without one, the newest of each branch.

    Branches, hidden messages and settings are counted in ``left_out``. None if the mapping holds no node.
    """
    nodes = {k: v for k, v in record[layouts.TREE_KEY].items() if isinstance(v, dict)}
    current = record.get(layouts.CURRENT_KEY)
    if not nodes:
        return None
    parents = {v.get("parent") for v in nodes.values() if isinstance(v.get("parent"), str)}
    leaves = [k for k in nodes if k not in parents]
    if not isinstance(current, str) or current not in nodes:
        current = leaves[-1] if leaves else next(iter(nodes))
    path, step = [], current
    while step in nodes and step not in path:
        path.append(step)
        step = nodes[step].get("parent") if isinstance(nodes[step].get("parent"), str) else None
    left_out["branch"] += len(set(leaves) - set(path) - {k for k in leaves if nodes[k].get("message") is None})
    turns = []
    for step in reversed(path):
        if isinstance(nodes[step].get("message"), dict):
            turns += _told(nodes[step]["message"], left_out)
    return turns


def _told(message: dict[str, Any], left_out: Counter[str]) -> list[Turn]:
    """The turn of an export's message; none where nothing was shown to anybody."""
    turn = turn_of(message, "author" if message.get("author") else "role")
    metadata = message.get("metadata") if isinstance(message.get("metadata"), dict) else {}
    content = turn.content if isinstance(turn.content, dict) else {}
    kind = kind_of(content) if content else ""
    if message.get("recipient") not in (None, "all") and turn.role == layouts.ASSISTANT:
        return [turn._replace(role=layouts.TOOL)]
    if turn.role == layouts.SYSTEM and not any(content.get("parts") or [content.get("text")]):
        return []  # the empty root
    if metadata.get("is_visually_hidden_from_conversation"):
        left_out["hidden message"] += 1
        return []
    if kind not in layouts.TEXT_KINDS and turn.role != layouts.TOOL:
        left_out[f"{kind} message"] += 1
        return []
    return [turn]


def best_path(root: Any, left_out: Counter[str]) -> list[Turn]:
    """From the root of a tree whose nodes hold their replies, always to the reply of best rank, the first where
    none has a rank. The leaves of all other paths are counted as branches, and deleted messages."""
    turns, node = [], root
    while isinstance(node, dict):
        turns.append(turn_of(node, *who_says(node)))
        replies = [r for r in _replies(node) if isinstance(r, dict)]
        kept = [r for r in replies if r.get("deleted") is not True]
        left_out["deleted message"] += len(replies) - len(kept)
        chosen = min(kept, key=rank_of, default=None)
        left_out["branch"] += sum(_leaves(r) for r in kept if r is not chosen)
        node = chosen
    return named(turns)


def _replies(node: dict[str, Any]) -> list[Any]:
    key = layouts.given(node, layouts.REPLIES_KEYS)
    return node[key] if key and isinstance(node[key], list) else []


def rank_of(answer: Any) -> float:
    """The rank of an answer among others, the lower the better; infinite where it has none."""
    rank = answer.get("rank") if isinstance(answer, dict) else None
    return rank if isinstance(rank, (int, float)) and rank == rank else float("inf")


def _leaves(node: dict[str, Any]) -> int:
    count, pending = 0, [node]
    while pending:
        replies = [r for r in _replies(pending.pop()) if isinstance(r, dict)]
        count += not replies
        pending += replies
    return count


def row_turns(rows: Sequence[dict[str, Any]], left_out: Counter[str]) -> list[Turn]:
    """The talk of rows that are one turn each: a tree where they name their parents, else in their order.

    Rows whose parent is not among them, but the first, are counted as ``row without its parent``.
    """
    if len(rows) == 1 and _replies(rows[0]):
        return best_path(rows[0], left_out)
    name, parent = _links(rows)
    if not (name and parent):
        return named([turn_of(row, *who_says(row)) for row in rows])
    nodes = {str(row.get(name)): {**row, "replies": []} for row in rows}
    roots = []
    for node in nodes.values():
        above = nodes.get(str(node.get(parent)))
        (roots if above is None or above is node else above["replies"]).append(node)
    left_out["row without its parent"] += len(roots) - 1 if roots else 0
    return best_path(roots[0], left_out) if roots else []


def _links(rows: Sequence[dict[str, Any]]) -> tuple[str | None, str | None]:
    parent = next((k for k in PARENT_KEYS if any(row.get(k) is not None for row in rows)), None)
    return layouts.given(rows[0], NAME_KEYS), parent


def is_linked(turns: Any) -> bool:
    """Whether a list of turns is a tree: all but its root name one that is there, or rows say so."""
    if not isinstance(turns, list) or all(isinstance(t, dict) and _LINKING.isdisjoint(t) for t in turns):
        return False
    if not all(layouts.is_turn(turn) for turn in turns):
        return False
    if any(_replies(turn) and all(map(layouts.is_turn, _replies(turn))) for turn in turns):
        return len(turns) == 1
    name, parent = _links(turns)
    names = {str(turn.get(name)) for turn in turns}
    if not (name and parent):
        return False
    orphans = sum(str(turn.get(parent)) not in names for turn in turns)
    return orphans == 1 or (orphans > 1 and "message_tree_id" in turns[0])


def who_says(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """The key that names who speaks, and the one that says whether the user does."""
    flag = next((k for k in layouts.IS_USER_KEYS if isinstance(row.get(k), bool)), None)
    return layouts.given(row, layouts.ROLE_KEYS), flag


def root_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """The root message of a tree with replies: under ``prompt``, or the record itself."""
    for node in (record.get("prompt"), record):
        if isinstance(node, dict) and layouts.is_turn(node) and any(k in node for k in layouts.REPLIES_KEYS):
            return node
    return None
