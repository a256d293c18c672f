"""Turns out of whatever holds them: lists of objects, pairs, strings, columns; text out of content and its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from realm.conversations import layouts, transcripts
from realm.conversations.layouts import ASSISTANT, SYSTEM, TOOL, USER

PART_SHOWN = 40  # characters of a part's kind in the report


class Turn(NamedTuple):
    """One turn as the file has it: ``name`` of who speaks, ``role`` (None: not known), ``content`` not yet read.

    ``calls``: it asks for a tool. ``reasons``: thoughts stand beside it.
    """

    name: Any
    role: str | None
    content: Any
    calls: bool = False
    reasons: bool = False


def said_by(role: str, content: Any) -> Turn:
    return Turn(role, role, content)


def turns_of(held: Any, speakers: Any = None, all_by_user: bool = False) -> list[Turn] | None:
    """The turns under a key of the table; None if they are no turns.

    ``held``: a list of turns, of pairs or of strings, columns of them, or any of these as JSON or as a transcript.
    ``speakers``: who says each of a list of strings. ``all_by_user``: a benchmark's questions.
    """
    held = layouts.from_json(held)
    if isinstance(held, str):
        return [said_by(role, text) for role, text in transcripts.turns_in(held)] or None
    if isinstance(held, dict):
        held = _rows(held)
    if not isinstance(held, (list, tuple)) or not held:
        return None
    if all(isinstance(turn, str) for turn in held):
        return _strings(held, speakers, all_by_user)
    if all(isinstance(turn, dict) for turn in held):
        return named([t for turn in held for t in _turns_of_object(turn)])
    if all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in held):
        return _pairs(held)
    return None


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]] | None:
    """``{"role": [...], "content": [...]}``, as tables have sequences, turned into a list of turns."""
    lists = {k: v for k, v in columns.items() if isinstance(v, list)}
    if not any(k in lists for k in layouts.TEXT_KEYS) or len({len(v) for v in lists.values()}) != 1:
        return None
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _strings(texts: Sequence[str], speakers: Any, all_by_user: bool) -> list[Turn] | None:
    if all_by_user:
        return [said_by(USER, text) for text in texts]
    if isinstance(speakers, list) and len(speakers) == len(texts):
        return named(
            [Turn(name, layouts.role_of(name), text) for name, text in zip(speakers, texts, strict=True)], True
        )
    if len(texts) < 2:
        return None  # one string is no talk
    prefixed = [transcripts.prefixed(text) for text in texts]
    if all(prefixed):
        return [said_by(*found) for found in prefixed if found]
    return [said_by((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts)]


def _pairs(pairs: Sequence[Sequence[Any]]) -> list[Turn] | None:
    """(who, text) where all the first ones are roles, else (question, answer)."""
    if all(layouts.role_of(first) for first, _ in pairs):
        return [Turn(first, layouts.role_of(first), second) for first, second in pairs]
    texts = (str, type(None))
    if not all(isinstance(a, texts) and isinstance(b, texts) for a, b in pairs):
        return None
    both = [said_by(role, text) for pair in pairs for role, text in zip((USER, ASSISTANT), pair, strict=True)]
    return [turn for turn in both if turn.content is not None]


def _turns_of_object(turn: dict[str, Any]) -> list[Turn]:
    """The one turn of an object, or the two of a pair, or one for each role that is a key of it."""
    if len(turn) == 2:
        for by, said in layouts.PLAIN_TURNS:
            if isinstance(turn.get(by), str) and said in turn:
                return [Turn(turn[by], layouts.role_of(turn[by]), turn[said])]
    by = layouts.given(turn, layouts.ROLE_KEYS)
    if by == "type" and layouts.role_of(turn["type"]) is None:
        by = None
    flag = next((k for k in layouts.IS_USER_KEYS if isinstance(turn.get(k), bool)), None)
    if by is None and flag is None:
        if layouts.shape_of_pair(turn):
            asked, said = layouts.given(turn, layouts.ASKED_KEYS), layouts.given(turn, layouts.SAID_KEYS)
            return [said_by(USER, turn[asked]), said_by(ASSISTANT, turn[said])] if asked and said else []
        keyed = [Turn(k, layouts.role_of(k), v) for k, v in turn.items() if v is not None]
        if keyed and all(t.role for t in keyed):
            return keyed
    return [turn_of(turn, by, flag)]


def turn_of(turn: dict[str, Any], by: str | None, flag: str | None = None) -> Turn:
    """One object as a turn; ``by``: the key that names who speaks, ``flag``: one that says whether the user does."""
    name = turn.get(by) if by else None
    naming = by in layouts.NAMING_KEYS and not isinstance(name, dict)
    if isinstance(name, dict):
        name = name.get("role", name.get("name"))
    role = layouts.role_of(name)
    if flag is not None and role is None:
        name = role = USER if turn[flag] else ASSISTANT
    if role is None and naming and isinstance(name, (str, int)):
        role = f"named {name}"
    elif role == SYSTEM and naming:
        role = f"named {SYSTEM}"  # until it is known whether somebody else is the assistant
    if any(turn.get(k) is False for k in layouts.CHOSEN_KEYS):
        role = layouts.OTHER_ANSWER
    calls = any(turn.get(k) for k in layouts.CALL_KEYS)
    reasons = any(turn.get(k) for k in layouts.REASONING_KEYS)
    return Turn(name, role, content_of(turn), calls, reasons)


def content_of(turn: dict[str, Any]) -> Any:
    """What a turn says, under the first key that holds something; an empty text before no text."""
    found = [turn[k] for k in layouts.TEXT_KEYS if turn.get(k) is not None]
    content = next((c for c in found if c not in ("", [], {})), found[0] if found else None)
    if isinstance(content, dict) and "content" in content:  # LangChain's {"type": "human", "data": {"content": ...}}
        return content["content"]
    return content


def named(turns: list[Turn], by_name: bool = False) -> list[Turn]:
    """Names instead of roles: of two speakers the first asks; SYSTEM beside USER and no assistant is who answers."""
    if by_name:
        turns = [t if t.role else t._replace(role=f"named {t.name}") for t in turns]
    if not any(t.role and t.role.startswith("named ") for t in turns):
        return turns
    roles = {t.role for t in turns}
    system = ASSISTANT if USER in roles and ASSISTANT not in roles else SYSTEM
    known = {f"named {SYSTEM}": system}
    names = list(dict.fromkeys(t.role for t in turns if t.role and t.role.startswith("named ") and t.role not in known))
    free = [role for role in (USER, ASSISTANT) if role not in {known.get(r, r) for r in roles}]
    known |= dict(zip(names, free, strict=False)) if len(names) <= len(free) else dict.fromkeys(names)
    return [t._replace(role=known.get(t.role, t.role)) for t in turns]


def text_of(content: Any, left_out: Counter[str]) -> str | None:
    """The text of a turn's content: itself, or its text parts, a line each. None where there is none at all.

    Parts of another kind are counted in ``left_out`` as ``KIND part``.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = content["parts"] if _is_typed_parts(content) else [content]
    if not isinstance(content, (list, tuple)) or not content:
        return None
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in content]
    other = [kind_of(part) for part, text in zip(content, texts, strict=True) if text is None]
    left_out.update(f"{kind} part" for kind in other if kind)
    return "\n".join(t for t in texts if t is not None) if len(other) == sum(map(bool, other)) else None


def _is_typed_parts(content: dict[str, Any]) -> bool:
    return isinstance(content.get("parts"), list) and kind_of(content) in layouts.TEXT_KINDS


def _text_of_part(part: Any) -> str | None:
    if not isinstance(part, dict) or part.get("thought") is True or kind_of(part) not in layouts.TEXT_KINDS:
        return None
    text = part.get("text")
    if isinstance(text, dict):  # OpenAI's assistants: {"type": "text", "text": {"value": ...}}
        text = text.get("value")
    return text if isinstance(text, str) else None


def kind_of(part: Any) -> str:
    """What a part is: its type, else the one key that it has beside its text; nothing for plain text."""
    if not isinstance(part, dict):
        return type(part).__name__
    if part.get("thought") is True:
        return "thinking"
    kind = part.get("type") or part.get("content_type")
    if not isinstance(kind, str):
        kind = (
            ""
            if part.get("text") is not None or part.get("parts") is not None
            else next((k for k, v in part.items() if v is not None), "empty")
        )
    return kind[:PART_SHOWN].encode("utf-8", "backslashreplace").decode()


def is_of_tools(turn: Turn) -> bool:
    """Whether a turn is a tool's or only asks for one: it has nothing that somebody says."""
    if turn.role == TOOL:
        return True
    if isinstance(turn.content, str) and not turn.calls:
        return turn.content.lstrip()[:1] == "<" and bool(layouts.TOOL_TEXT.fullmatch(turn.content))
    parts = turn.content if isinstance(turn.content, list) else []
    said = text_of(turn.content, Counter())
    asks = turn.calls or any(kind_of(p) in layouts.TOOL_KINDS for p in parts)
    return asks and not (said or "").strip()
