"""Readers of conversations that account for every byte: what is skipped is counted, what is odd is noted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from realm.conversations.conversation import MAX_TURN_BYTES, Conversation, ConversationFileError, Message
from realm.conversations.layouts import ID_KEYS, OTHER_ANSWER, ROW_GROUP_KEYS, TURN_KEYS, given
from realm.conversations.records import Talk, talk_of
from realm.conversations.report import ReadReport, shown
from realm.conversations.sources import HubChoice, Raw, open_records
from realm.conversations.transcripts import INTRODUCTION
from realm.conversations.turns import Turn, is_of_tools, text_of


def read_conversations(
    source: str | Path,
    *,
    report: ReadReport | None = None,
    strict: bool = False,
    progress: bool = False,
    hub: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Iterator[Conversation]:
    """Stream conversations from a file, a Parquet table, a Hub data set or a local copy of one.

    Container and layout are found by content (``json_stream``, ``layouts``). Memory stays constant: one chunk of
    about 4 MB and one record. ``hub``: what to read of a Hub data set, see ``hub.HubChoice``. At most ``limit``
    conversations are yielded: of a Hub data set no more is read, a file is read on for its defects.

    Every defect is counted in ``report`` with example ids: records that cannot be used are skipped, those with an
    odd structure are noted and kept for the cleaning funnel to decide, and what is left out of a record is noted.

    Raises ConversationFileError if the source is missing or holds no conversations, and, with ``strict``, at the
    first defect, naming file, record number and byte offset. What is left out of a record is no defect of the file.
    """
    report = report if report is not None else ReadReport()
    report.path = str(source)
    seen: set[str] = set()
    for raw in open_records(source, report, HubChoice(**(hub or {})), progress):
        number, report.records = report.records, report.records + 1
        left_out: Counter[str] = Counter()
        conversation, defects = _digest(raw, number, report, left_out)
        if conversation is not None:
            if conversation.id in seen:
                defects.append("duplicate id")
            seen.add(conversation.id)
        name = conversation.id if conversation else _any_id(raw, number)
        report.account(name, conversation is None, defects, left_out)
        if strict and defects:
            keys = f", keys: {', '.join(report.keys)}" if defects[0] == "no turns" and report.keys else ""
            raise ConversationFileError(f"{source}: {raw.place(number)} ({name}{keys}): {defects[0]}")
        if conversation is not None and (limit is None or report.read <= limit):
            yield conversation
        if raw.offset is None and report.layout.startswith("Hub") and report.read == limit:
            report.stopped = True
            return
    if report.file_defect and strict:
        raise ConversationFileError(
            f"{source}: record {report.records} at byte {report.lost_from}: {report.file_defect}, "
            f"{report.lost_bytes} bytes of no whole record"
        )


def _any_id(raw: Raw, number: int) -> str:
    identifier = raw.value.get("id") if isinstance(raw.value, dict) else None
    return identifier if isinstance(identifier, str) and _is_unicode(identifier) else raw.place(number)


def _digest(raw: Raw, number: int, report: ReadReport, left_out: Counter[str]) -> tuple[Conversation | None, list[str]]:
    """A raw value -> (conversation or None, defects); what stays out of it is counted in ``left_out``."""
    value = raw.value
    if raw.defect:
        return None, [raw.defect]
    talk = talk_of(value) if isinstance(value, (dict, list)) else Talk()
    if not talk.turns:
        if not isinstance(value, dict):
            return None, ["record is not an object"]
        if not talk.odd and not any(isinstance(value.get(key), list) for key in TURN_KEYS):
            report.see_keys(value)
        return None, ["turn is not an object" if talk.odd else "no turns"]
    left_out.update(talk.left_out)
    messages, defect = _messages(talk.turns, report, left_out)
    if defect:
        return None, [defect]
    of_rows = isinstance(value, list)
    record = next((v for v in value if isinstance(v, dict)), {}) if of_rows else value
    key = given(record, ROW_GROUP_KEYS if of_rows else ID_KEYS)
    identifier = str(record[key]) if key else f"record-{number}"
    if not _is_unicode(identifier):
        return None, ["id is no text"]
    meta = record["meta"] if isinstance(record.get("meta"), dict) else {}
    if raw.offset is None:  # a table has every key in every record
        meta = {k: v for k, v in meta.items() if v is not None}
    defects = _structure_defects(messages)
    if meta and not _is_json(meta):
        meta, defects = {}, [*defects, "meta that cannot be written, left out"]
    return Conversation(identifier, tuple(messages), meta), defects


def _messages(turns: list[Turn], report: ReadReport, left_out: Counter[str]) -> tuple[list[Message], str]:
    """The messages of a talk, or the first defect; turns of tools and what stands beside a text are left out."""
    messages: list[Message] = []
    for turn in turns:
        if turn.role in (INTRODUCTION, OTHER_ANSWER):
            left_out[turn.role] += 1
            continue
        report.roles[shown(turn.name)] += 1
        if is_of_tools(turn):
            left_out["tool turn"] += 1
            continue
        if turn.role is None:
            return [], "unknown role"
        content = turn.content if isinstance(turn.content, str) else text_of(turn.content, left_out)
        defect = "null or non-string content" if content is None else _text_defect(content)
        if defect:
            return [], defect
        left_out["tool call"] += turn.calls
        left_out["reasoning"] += turn.reasons
        messages.append(Message(turn.role, content))
    return messages, "" if messages else "nothing but turns of tools"


def _text_defect(content: str) -> str:
    if "\x00" in content:
        return "NUL byte"
    try:
        size = len(content) if content.isascii() else len(content.encode("utf-8"))
    except UnicodeEncodeError as error:
        # U+DC80..U+DCFF is how the decoder marks raw bytes that are no UTF-8.
        raw_byte = 0xDC80 <= ord(content[error.start]) <= 0xDCFF
        return "invalid UTF-8" if raw_byte else "lone surrogate"
    return "turn over 1 MB" if size > MAX_TURN_BYTES else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(meta: dict[str, Any]) -> bool:
    try:
        return _is_unicode(json.dumps(meta, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return False


def _structure_defects(messages: list[Message]) -> list[str]:
    defects = []
    roles = [m.role for m in messages if m.role != "system"]
    if any(not m.content.strip() for m in messages):
        defects.append("empty turn")
    if roles and roles[0] == "assistant":
        defects.append("starts with the assistant")
    if any(a == b for a, b in pairwise(roles)):
        defects.append("two turns of one role in a row")
    return defects


def load_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of one of our own artefacts. A record that cannot be used is an error: we wrote it."""
    report = ReadReport()
    if Path(path).is_file() and not Path(path).stat().st_size:
        return []
    conversations = list(read_conversations(Path(path), report=report))
    if report.skipped or report.file_defect:
        reasons = ", ".join(report.skipped) or report.file_defect
        raise ConversationFileError(f"{path}: damaged ({reasons}); delete it and run its stage again")
    return conversations
