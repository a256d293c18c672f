"""JSON values one at a time from a byte stream: an array, whole or cut off in the middle, arrays one after another,
JSON lines, objects one after another however they are broken into lines, and records under the keys of an object.

Memory holds one chunk and one value. Each value comes with the byte offset at which it starts, so that an
error can name the place. The C scanner of the standard library does the parsing.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

from realm.conversations import layouts
from realm.core.errors import OneLineError

CHUNK_BYTES = 4_000_000
MAX_VALUE_CHARS = 64_000_000  # a longer "value" means that the file is something else
SPACE = re.compile(r"[ \t\r\n]*")
BETWEEN_VALUES = re.compile(r"[ \t\r\n,]*")
BLANKS = re.compile(r"[ \t\r]*")
OBJECT = re.compile(r'\{[ \t\r\n]*+(?:"|\Z)')
LIST = re.compile(r'\[[ \t\r\n]*+(?:\{[ \t\r\n]*+(?:"|\Z)|\Z)')
# A scanner that fails this near the end of the window may only be short of text.
TAIL_CHARS = 16
FIRST_KEY_CHARS = 1_000  # records under names are told from a record with one inside by the object's first key
CLOSED_ARRAY, CLOSED_OBJECT = re.compile(r"\]\s*\Z"), re.compile(r"\]\s*\}\s*\Z")
CLOSED_LAST = re.compile(r"(?<=\})\s*\Z")
PLAIN_SHAPES = ("conversations", "messages")
MALFORMED = object()  # stands for a value that is no JSON


class JsonStreamError(OneLineError, ValueError):
    """The stream holds neither an array nor objects; the message says what it holds."""


class JsonStream:
    """A moving window of decoded text over a byte stream.

    Bytes that are no UTF-8 decode to lone surrogates (U+DC80 to U+DCFF): the caller sees them in the value,
    and encoding the text back gives the exact byte count. After ``values`` is exhausted, ``truncated`` says
    whether the stream ended inside a value or before the array's end, and ``lost_bytes`` how many bytes
    stood after the last whole value or the array's end, from byte ``lost_from`` on.
    """

    def __init__(self, stream: BinaryIO, on_chunk: Callable[[], object] = lambda: None):
        self._stream, self._on_chunk = stream, on_chunk
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = json.JSONDecoder(strict=False).raw_decode
        self._text, self._position, self._offset, self._at_end = "", 0, 0, False
        self._closing, self._shape = CLOSED_ARRAY, ""  # how the stream should end; what its last good value was
        self.layout, self.bytes_read, self.truncated, self.lost_bytes, self.lost_from = "", 0, False, 0, 0
        self.container = 0  # the number of the array that the last value stood in

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield (byte offset, value or MALFORMED).

        Raises JsonStreamError if the stream holds neither arrays nor objects, or a value is over 64 MB.
        """
        self._read_more()
        while not self._text and not self._at_end:
            self._read_more()  # the first bytes may be part of a character
        if self._text.startswith("\ufeff"):
            self._move(1)
        self._skip(SPACE)
        first = self._text[self._position : self._position + 1]
        if first == "[":
            yield from self._arrays()
        elif first == "{":
            yield from self._objects()
        else:
            raise JsonStreamError(f"starts with {first!r}" if first else "is empty")

    # -- arrays

    def _arrays(self) -> Iterator[tuple[int, Any]]:
        self.layout = "JSON array"
        while (yield from self._elements()):
            self._skip(SPACE)
            if self._text[self._position : self._position + 1] != "[":
                self._count_the_rest()
                return
            self.layout = "JSON arrays"

    def _elements(self) -> Generator[tuple[int, Any], None, bool]:
        """The values of one array; whether it was closed."""
        self.container += 1
        self._move(self._position + 1)
        while True:
            self._skip(BETWEEN_VALUES)
            if self._position == len(self._text):
                self._cut_off()
                return False
            if self._text[self._position] == "]":
                self._move(self._position + 1)
                return True
            start = self._offset
            found, value = self._next_value()
            if not found:
                self._cut_off()
                return False
            yield start, value

    def _count_the_rest(self) -> None:
        """What follows the array's end is no part of it."""
        self._skip(SPACE)
        start = self._offset
        while self._position < len(self._text):
            self._move(len(self._text))
            self._skip(SPACE)
        self.lost_bytes, self.lost_from = self._offset - start, start

    # -- objects

    def _objects(self) -> Iterator[tuple[int, Any]]:
        """The first one tells whether records stand in it, and if not, whether each object is one line."""
        holds_records, end = self._first_object()
        if holds_records:
            self.layout, self._closing = "JSON object", CLOSED_OBJECT
            yield from self._held()
            return
        if end:
            after, _ = self._ahead(end, BLANKS)
            one_a_line = after in ("\n", "") and "\n" not in self._text[self._position : self._position + end]
        else:
            one_a_line = self._text[self._position : self._line_end()].strip() != "{"
        self.layout = "JSON lines" if one_a_line else "JSON objects"
        yield from self._lines() if one_a_line else self._in_a_row()

    def _first_object(self) -> tuple[bool, int]:
        """Whether the object at hand holds records, else where it ends, counted from here; 0 if it is malformed."""
        at = 1
        while True:
            char, at = self._ahead(at)
            if char == "}":
                return False, at + 1
            key, at = self._value_ahead(at) if char == '"' else (None, 0)
            char, at = self._ahead(at)
            if key is None or char != ":":
                return False, 0
            char, at = self._ahead(at + 1)
            if self._holds_records(key, char, at):
                return True, 0
            value, end = self._value_ahead(at)
            if not end:
                return False, 0
            if at < FIRST_KEY_CHARS and layouts.is_named_record(key, value):
                return True, 0
            char, at = self._ahead(end)
            at += char == ","

    def _holds_records(self, key: str, char: str, at: int) -> bool:
        if char != "[":
            return False
        char, at = self._ahead(at + 1)
        return char in ("{", "[") and layouts.holds_records(key, self._value_ahead(at)[0])

    def _held(self) -> Iterator[tuple[int, Any]]:
        """The records in the lists of an object, and those that are its values under a name each."""
        self._move(self._position + 1)
        while True:
            self._skip(BETWEEN_VALUES)
            if self._text[self._position : self._position + 1] == "}":
                self._move(self._position + 1)
                self._skip(SPACE)
                if self._text[self._position : self._position + 1] != "{":
                    self._count_the_rest()
                    return
                self._move(self._position + 1)
                continue
            key, end = self._value_ahead(0)
            char, at = self._ahead(end)
            if not (isinstance(key, str) and char == ":"):
                self._cut_off()
                return
            char, at = self._ahead(at + 1)
            whole = self._holds_records(key, char, at)
            self._move(self._position + at)
            if whole:
                if not (yield from self._elements()):
                    return
                continue
            start, (value, end) = self._offset, self._value_ahead(0)
            if not end:
                self._cut_off()
                return
            self._move(self._position + end)
            if layouts.is_named_record(key, value):
                yield start, {"id": key, **value}

    def _in_a_row(self) -> Iterator[tuple[int, Any]]:
        self._closing = CLOSED_LAST
        while True:
            self._skip(BETWEEN_VALUES)
            if self._position == len(self._text):
                self.lost_from = self._offset
                return
            start = self._offset
            found, value = self._next_value()
            if not found:
                self._cut_off()
                return
            yield start, value

    def _lines(self) -> Iterator[tuple[int, Any]]:
        while True:
            self._skip(SPACE)
            if self._position == len(self._text):
                self.lost_from = self._offset
                return
            end = self._line_end()
            start, line = self._offset, self._text[self._position : end]
            self._move(end)
            try:
                value = json.loads(line, strict=False)
            except (ValueError, RecursionError):
                if self._at_end and end == len(self._text):
                    self.truncated, self.lost_bytes, self.lost_from = True, self._offset - start, start
                    return
                value = MALFORMED
            yield start, value

    def _line_end(self) -> int:
        while (end := self._text.find("\n", self._position)) < 0 and not self._at_end:
            self._read_more()
        return end if end >= 0 else len(self._text)

    def _next_value(self) -> tuple[bool, Any]:
        """(True, value), (True, MALFORMED) after skipping to the next object, or (False, None) at the end."""
        while True:
            try:
                value, end = self._scan(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if not self._may_be_short(error):
                    return self._resynchronize()
                if self._at_end:
                    ran_out = error.msg.startswith("Unterminated string") or error.pos >= len(self._text.rstrip())
                    return (False, None) if ran_out else self._malformed_to_the_end()
                self._read_more()
            else:
                if end == len(self._text) and not self._at_end and not isinstance(value, (dict, list, str)):
                    self._read_more()  # a number may go on
                    continue
                self._move(end)
                self._shape = layouts.shape(value)
                return True, value

    def _may_be_short(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - TAIL_CHARS

    def _resynchronize(self) -> tuple[bool, Any]:
        """Skip a malformed value: go on at the next one from which a record like the last good one parses."""
        candidate = self._position + 1
        begins = LIST if self._text[self._position] == "[" else OBJECT
        while True:
            opening = begins.search(self._text, candidate)
            if not opening:
                if self._at_end:
                    return self._malformed_to_the_end()
                candidate = len(self._text) - self._position
                self._read_more()
                continue
            candidate = opening.start()
            try:
                value, _ = self._scan(self._text, candidate)
            except (ValueError, RecursionError) as error:
                if self._may_be_short(error) and not self._at_end:
                    candidate -= self._position
                    self._read_more()
                else:
                    candidate += 1
                continue
            if layouts.shape(value) in {self._shape, *PLAIN_SHAPES} - {""}:
                self._move(candidate)
                return True, MALFORMED
            candidate += 1

    def _malformed_to_the_end(self) -> tuple[bool, Any]:
        """The last value of a stream that ends as it should, else the value that the end of the file cut off."""
        closing = self._closing.search(self._text, self._position + 1)
        if not closing:
            return False, None
        self._move(closing.start())
        return True, MALFORMED

    # -- looking ahead: places are counted from the current one, since reading more moves the window

    def _ahead(self, at: int, skipped: re.Pattern[str] = SPACE) -> tuple[str, int]:
        """The next character after ``skipped`` and its place; an empty one at the end of the stream."""
        while True:
            place = skipped.match(self._text, self._position + at).end()
            if place < len(self._text) or self._at_end:
                return self._text[place : place + 1], place - self._position
            self._read_more()

    def _value_ahead(self, at: int) -> tuple[Any, int]:
        """The value there and where it ends; (None, 0) if it is malformed or cut off."""
        while True:
            try:
                value, end = self._scan(self._text, self._position + at)
            except (ValueError, RecursionError) as error:
                if self._at_end or not self._may_be_short(error):
                    return None, 0
            else:
                if end < len(self._text) or self._at_end or isinstance(value, (dict, list, str)):
                    return value, end - self._position
            self._read_more()

    # -- the window

    def _read_more(self) -> None:
        """Drop the consumed text and read at least as much again as is pending, so that work stays linear."""
        self._text, self._position = self._text[self._position :], 0
        if len(self._text) > MAX_VALUE_CHARS:
            raise JsonStreamError(f"holds a value over {MAX_VALUE_CHARS // 1_000_000} MB at byte {self._offset}")
        try:
            # read1 gives what is there: a compressed stream that breaks off later has then lost nothing.
            data = getattr(self._stream, "read1", self._stream.read)(max(CHUNK_BYTES, len(self._text)))
        except Exception as error:  # gzip, zlib and zstd each have their own
            if not self.bytes_read:
                raise JsonStreamError(f"cannot be decompressed ({error})") from error
            data, self.truncated = b"", True  # a compressed file that was cut off: what came before is good
        self._at_end = not data
        self.bytes_read += len(data)
        self._text += self._decode(data, self._at_end)
        self._on_chunk()

    def _move(self, position: int) -> None:
        consumed = self._text[self._position : position]
        self._offset += len(consumed) if consumed.isascii() else len(consumed.encode("utf-8", "surrogateescape"))
        self._position = position

    def _skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            self._move(pattern.match(self._text, self._position).end())
            if self._position < len(self._text) or self._at_end:
                return
            self._read_more()

    def _cut_off(self) -> None:
        self.truncated, self.lost_from = True, self._offset
        rest = self._text[self._position :]
        self.lost_bytes = len(rest.encode("utf-8", "surrogateescape"))
