"""Where records come from: text files, compressed or not, Parquet tables, Hub data sets and local copies of them."""

from __future__ import annotations

import gzip
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from realm.conversations import layouts
from realm.conversations.conversation import ConversationFileError
from realm.conversations.hub import NO_CHOICE, HubChoice, hub_rows, is_local_copy
from realm.conversations.json_stream import MALFORMED, JsonStream, JsonStreamError
from realm.conversations.report import ReadReport
from realm.core.progress import Bar

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f: a frame that holds no data
ZSTD_WINDOW = 1 << 31  # bytes; what `zstd --long=31` asks for, as large dumps do
MOST_ROWS = 10_000  # of one talk; more of them are no talk, and would fill memory


@dataclass(frozen=True)
class Raw:
    """One undigested record and where it stood; rows that are one turn each are a list of them."""

    offset: int | None  # None where records have no bytes of their own: a table, a Hub data set
    value: Any = None
    defect: str = ""
    container: int = 0  # the array of the file that it stood in

    def place(self, number: int) -> str:
        return f"record {number}" + ("" if self.offset is None else f" at byte {self.offset}")


def open_records(source: str | Path, report: ReadReport, hub: HubChoice, progress: bool) -> Iterator[Raw]:
    """The records of a file, a folder that is a copy of a Hub data set, or a Hub data set by name.

    Raises ConversationFileError where there is nothing to open.
    """
    return _talks(_open(source, report, hub, progress))


def _open(source: str | Path, report: ReadReport, hub: HubChoice, progress: bool) -> Iterator[Raw]:
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and _looks_like_hub_name(source):
            report.layout = "Hub data set"
            return (Raw(None, row) for row in hub_rows(source, hub))
        raise ConversationFileError(f"{source}: no such file; give a conversation file or a Hub data set name")
    if path.is_dir():
        if is_local_copy(path):
            report.layout = "Hub data set, a local copy"
            return (Raw(None, row) for row in hub_rows(str(path), hub))
        raise ConversationFileError(f"{source}: is a folder; give the conversation file inside it")
    if hub != NO_CHOICE:
        raise ConversationFileError(f"{source}: is a file; leave out {', '.join(hub.given)}, for Hub data sets only")
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


def _parquet_records(path: Path) -> Iterator[Raw]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for value, defect in _table_rows(batch):
                yield Raw(None, value, defect)
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


def _text_records(path: Path, magic: bytes, report: ReadReport, progress: bool) -> Iterator[Raw]:
    with path.open("rb") as handle:
        stream: BinaryIO = handle
        if magic[:2] == GZIP:
            stream = gzip.GzipFile(fileobj=handle)
        elif magic == ZSTD or (magic[1:] == ZSTD_SKIPPABLE and magic[0] >> 4 == 5):
            decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
            stream = decompressor.stream_reader(handle, read_across_frames=True)
        bar = Bar(total=path.stat().st_size, unit="bytes", unit_scale=True, desc=path.name, disable=not progress)
        window = JsonStream(stream, on_chunk=lambda: bar.update(handle.tell() - bar.n))
        with bar:
            try:
                for offset, value in window.values():
                    defect = "malformed JSON" if value is MALFORMED else ""
                    yield Raw(offset, None if defect else value, defect, window.container)
            except JsonStreamError as error:
                raise ConversationFileError(f"{path}: {error}; expected a list of conversations") from error
    report.layout, report.bytes_read = window.layout, window.bytes_read
    report.truncated, report.lost_bytes, report.lost_from = window.truncated, window.lost_bytes, window.lost_from


def _talks(records: Iterator[Raw]) -> Iterator[Raw]:
    """Records as they are, lists of records one by one, and neighbouring rows of one talk as one list."""
    rows: list[Raw] = []
    shared: Hashable = None
    for raw in records:
        group = layouts.row_group(raw.value)
        same = group is not None and rows and (group, raw.container) == (shared, rows[0].container)
        if rows and (not same or len(rows) == MOST_ROWS):
            yield _joined(rows)
            rows = []
        if group is not None:
            rows.append(raw)
            shared = group
        elif isinstance(raw.value, list) and raw.value and all(map(_is_whole, raw.value)):
            yield from (Raw(raw.offset, inner, "", raw.container) for inner in raw.value)
        else:
            yield raw
    if rows:
        yield _joined(rows)


def _joined(rows: list[Raw]) -> Raw:
    return Raw(rows[0].offset, [raw.value for raw in rows], "", rows[0].container)


def _is_whole(value: Any) -> bool:
    """Whether an element of a list is a talk of its own, no turn or pair of one."""
    return isinstance(value, dict) and layouts.shape(value) in (layouts.TREE_KEY, *layouts.TURN_KEYS)
