"""Readers of conversation files that account for every byte: what is skipped is counted, what is odd is noted."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from tqdm import tqdm

from realm.conversations.conversation import MAX_TURN_BYTES, Conversation, ConversationFileError, Message
from realm.conversations.json_stream import MALFORMED, JsonStream, JsonStreamError

# Role names seen in the wild, as they appear in ShareGPT dumps and chat APIs.
ROLE_ALIASES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
ROLE_SHOWN = 40  # characters of a role's name in the report
EXAMPLES_KEPT = 5


@dataclass
class ReadReport:
    """What a reader saw. ``skipped`` records yielded nothing; ``noted`` ones were yielded as they are.

    ``lost_bytes`` counts bytes after the last complete record of a truncated file, or after an array's end;
    they begin at byte ``lost_from``.
    """

    path: str = ""
    layout: str = ""
    records: int = 0
    bytes_read: int = 0
    lost_bytes: int = 0
    lost_from: int = 0
    truncated: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    skipped_ids: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        return self.records - self.skipped.total()

    @property
    def file_defect(self) -> str:
        """What is wrong with the file as a whole."""
        return "truncated file" if self.truncated else "text after the array" if self.lost_bytes else ""

    def require_conversations(self) -> None:
        """Raise ConversationFileError if there were records and none of them could be used."""
        if self.read == 0:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self.skipped.most_common()) or "no record at all"
            raise ConversationFileError(f"{self.path}: holds no conversation ({reasons}); see README, Your own data")

    def rows(self) -> list[dict[str, Any]]:
        """One row a defect, for a table."""
        both = [("skipped", self.skipped), ("kept, noted", self.noted)]
        rows = [
            {"defect": name, "records": n, "treatment": how, "examples": self.examples[name]}
            for how, counts in both
            for name, n in counts.most_common()
        ]
        if self.file_defect:
            place = f"record {self.records} at byte {self.lost_from}"
            lost = f"{self.lost_bytes:,} bytes lost"
            rows.append({"defect": self.file_defect, "records": 1, "treatment": lost, "examples": [place]})
        return rows


@dataclass(frozen=True)
class _Raw:
    """One undigested record and where it stood."""

    number: int
    offset: int | None  # None where records have no bytes of their own: a table, a Hub data set
    value: Any = None
    defect: str = ""

    @property
    def place(self) -> str:
        return f"record {self.number}" + ("" if self.offset is None else f" at byte {self.offset}")


def read_conversations(
    source: str | Path,
    *,
    report: ReadReport | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Iterator[Conversation]:
    """Stream conversations from a file, a Parquet table or a Hub data set name.

    The layout is found by content: a ShareGPT JSON array (whole or cut off), JSON lines, either plain,
    gzip or zstd, or Parquet. Memory stays constant: one chunk of about 4 MB and one record.

    Every defect is counted in ``report`` with example ids: records that cannot be used are skipped,
    those with an odd structure are noted and kept for the cleaning funnel to decide.

    Raises ConversationFileError if the file is missing or holds no conversations, and, with ``strict``,
    at the first defect, naming file, record number and byte offset.
    """
    report = report if report is not None else ReadReport()
    report.path = str(source)
    seen: set[str] = set()
    records = _open_records(source, report, progress)
    for raw in records:
        report.records += 1
        conversation, defects = (None, [raw.defect]) if raw.defect else _digest(raw.value, raw.number, report)
        if conversation is not None:
            if conversation.id in seen:
                defects.append("duplicate id")
            seen.add(conversation.id)
        name = conversation.id if conversation else _any_id(raw)
        _account(report, name, conversation is None, defects)
        if strict and defects:
            raise ConversationFileError(f"{source}: {raw.place} ({name}): {defects[0]}")
        if conversation is not None:
            yield conversation
    if report.file_defect and strict:
        raise ConversationFileError(
            f"{source}: record {report.records} at byte {report.lost_from}: {report.file_defect}, "
            f"{report.lost_bytes} bytes of no whole record"
        )


def _account(report: ReadReport, name: str, skipped: bool, defects: list[str]) -> None:
    # A skipped record has one defect, the first that was met, so that read + skipped = records.
    if skipped:
        report.skipped_ids.append(name)
    for defect in dict.fromkeys(defects):
        (report.skipped if skipped else report.noted)[defect] += 1
        examples = report.examples.setdefault(defect, [])
        if len(examples) < EXAMPLES_KEPT:
            examples.append(name)


def _any_id(raw: _Raw) -> str:
    identifier = raw.value.get("id") if isinstance(raw.value, dict) else None
    return identifier if isinstance(identifier, str) and _is_unicode(identifier) else raw.place


def _digest(value: Any, number: int, report: ReadReport) -> tuple[Conversation | None, list[str]]:
    """A raw JSON value -> (conversation or None, defects)."""
    if not isinstance(value, dict):
        return None, ["record is not an object"]
    turns = value.get("messages") or value.get("conversations") or _instructed(value)
    if not isinstance(turns, list) or not turns:
        return None, ["no turns"]
    messages: list[Message] = []
    for turn in turns:
        message, defect = _digest_turn(turn, report)
        if defect:
            return None, [defect]
        messages.append(message)
    identifier = value.get("id")
    identifier = str(identifier) if identifier not in (None, "") else f"record-{number}"
    if not _is_unicode(identifier):
        return None, ["id is no text"]
    meta = value.get("meta") if isinstance(value.get("meta"), dict) else {}
    meta = {k: v for k, v in meta.items() if v is not None}  # Parquet has every key in every record
    defects = _structure_defects(messages)
    if meta and not _is_json(meta):
        meta, defects = {}, [*defects, "meta that cannot be written, left out"]
    return Conversation(identifier, tuple(messages), meta), defects


def _instructed(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The one round of an instruction record as WizardLM, Alpaca and Dolly have it; no turns of another record."""
    if "instruction" not in value:
        return []
    asked, material = value["instruction"], value.get("input") or value.get("context")
    if material:
        texts = isinstance(asked, str) and isinstance(material, str)
        asked = f"{asked}\n\n{material}" if texts else None
    said = value["output"] if "output" in value else value.get("response")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


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


def _digest_turn(turn: Any, report: ReadReport) -> tuple[Message | None, str]:
    if not isinstance(turn, dict):
        return None, "turn is not an object"
    alias = turn.get("role") or turn.get("from")  # a table of both layouts holds both columns, one of them null
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    report.roles[str(alias)[:ROLE_SHOWN].encode("utf-8", "backslashreplace").decode()] += 1
    role = ROLE_ALIASES.get(alias.lower()) if isinstance(alias, str) else None
    if role is None:
        return None, "unknown role"
    if not isinstance(content, str):
        return None, "null or non-string content"
    if "\x00" in content:
        return None, "NUL byte"
    try:
        size = len(content) if content.isascii() else len(content.encode("utf-8"))
    except UnicodeEncodeError as error:
        # U+DC80..U+DCFF is how the decoder marks raw bytes that are no UTF-8.
        raw_byte = 0xDC80 <= ord(content[error.start]) <= 0xDCFF
        return None, "invalid UTF-8" if raw_byte else "lone surrogate"
    if size > MAX_TURN_BYTES:
        return None, "turn over 1 MB"
    return Message(role, content), ""


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


def _open_records(source: str | Path, report: ReadReport, progress: bool) -> Iterator[_Raw]:
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and _looks_like_hub_name(source):
            report.layout = "Hub data set"
            return _hub_records(source)
        raise ConversationFileError(f"{source}: no such file; give a conversation file or a Hub data set name")
    if path.is_dir():
        raise ConversationFileError(f"{source}: is a folder; give the conversation file inside it")
    try:
        with path.open("rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise ConversationFileError(f"{path}: cannot be read ({error.strerror})") from error
    if magic == b"PAR1":
        report.layout = "Parquet"
        return _parquet_records(path)
    return _text_records(path, magic, report, progress)


def _looks_like_hub_name(source: str) -> bool:
    is_file = Path(source).suffix[1:].isalpha()  # .json, not the .5 of a data set's version
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not is_file


def _hub_records(name: str) -> Iterator[_Raw]:
    import datasets  # seconds to import, and most readers never need it

    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        yield from (_Raw(i, None, row) for i, row in enumerate(rows))
    except Exception as error:
        raise ConversationFileError(
            f"{name}: no such file, and the Hub data set could not be read ({type(error).__name__}); "
            "check the name and the network"
        ) from error


def _parquet_records(path: Path) -> Iterator[_Raw]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for value, defect in _table_rows(batch):
                yield _Raw(number, None, value, defect)
                number += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConversationFileError(f"{path}: not a readable Parquet table: {reason}") from error


def _table_rows(batch) -> Iterator[tuple[Any, str]]:
    """(row, defect) of an Arrow record batch; only rows whose text is no UTF-8 are lost."""
    try:
        yield from ((row, "") for row in batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None, "invalid UTF-8"
        else:
            for i in range(batch.num_rows):
                yield from _table_rows(batch.slice(i, 1))


def _text_records(path: Path, magic: bytes, report: ReadReport, progress: bool) -> Iterator[_Raw]:
    with path.open("rb") as handle:
        stream: BinaryIO = handle
        if magic[:2] == b"\x1f\x8b":
            stream = gzip.GzipFile(fileobj=handle)
        elif magic == b"\x28\xb5\x2f\xfd":
            stream = zstandard.ZstdDecompressor().stream_reader(handle)
        bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=not progress)
        window = JsonStream(stream, on_chunk=lambda: bar.update(handle.tell() - bar.n))
        with bar:
            try:
                for number, (offset, value) in enumerate(window.values()):
                    defect = "malformed JSON" if value is MALFORMED else ""
                    yield _Raw(number, offset, None if defect else value, defect)
            except JsonStreamError as error:
                raise ConversationFileError(f"{path}: {error}; expected a list of conversations") from error
    report.layout, report.bytes_read = window.layout, window.bytes_read
    report.truncated, report.lost_bytes, report.lost_from = window.truncated, window.lost_bytes, window.lost_from


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
