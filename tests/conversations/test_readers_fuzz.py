"""A corpus of files that nobody meant to write. Each is read, told in one line, or both; nothing else may happen."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations.conversation import ConversationFileError
from realm.conversations.readers import ReadReport, read_conversations
from realm.conversations.writers import write_conversations

RECORD = b'{"id": "g", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
ARRAY = b"[" + RECORD + b"]"

CORPUS = {
    "nothing": b"",
    "an opening bracket": b"[",
    "an opening brace": b"{",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "half a byte order mark": b"\xef\xbb",
    "a number": b"123",
    "null": b"null",
    "an empty object": b"{}",
    "commas": b"[,,,]",
    "a comma too many": ARRAY[:-1] + b",]",
    "an array of arrays": b"[" + ARRAY + b"]",
    "two arrays": ARRAY + ARRAY,
    "an array, then lines": ARRAY + b"\n" + RECORD + b"\n",
    "a byte order mark in the middle": ARRAY + b"\xef\xbb\xbf",
    "an object over many lines": json.dumps(json.loads(RECORD), indent=1).encode(),
    "records under a key": b'{"data": ' + ARRAY + b"}",
    "lines that end in carriage returns": RECORD + b"\r" + RECORD + b"\r",
    "lines of a terminal": RECORD + b"\r\n" + RECORD + b"\r\n",
    "single quotes": RECORD.replace(b'"', b"'"),
    "a comment": b"// turns\n" + ARRAY,
    "not a number": RECORD.replace(b'"g"', b"NaN"),
    "a number beyond all bounds": RECORD.replace(b'"g"', b"1e999"),
    "a quote too many": b"[" + RECORD.replace(b"q", b'he said "no"') + b"," + RECORD + b"]",
    "a record that never closes": b"[" + RECORD[:-2] + b"," + RECORD + b"," + RECORD + b"]",
    "many braces": b"[" + b"{" * 50_000 + b"," + RECORD + b"]",
    "many brackets": b"[" * 50_000,
    "deep nesting": b"[" + b'{"a":' * 3_000 + b"1" + b"}" * 3_000 + b"," + RECORD + b"]",
    "a lone surrogate in an id": RECORD.replace(b'"g"', b'"\\ud800"'),
    "a lone surrogate in a role": RECORD.replace(b"human", b"\\udfff"),
    "a lone surrogate in meta": RECORD[:-1] + b', "meta": {"session": "\\udfff"}}',
    "NUL bytes": b"\x00" * 100,
    "Latin-1": RECORD.replace(b"q", b"caf\xe9"),
    "UTF-16": RECORD.decode().encode("utf-16"),
    "UTF-32": RECORD.decode().encode("utf-32"),
    "bzip2": b"BZh91AY&SY" + b"\x00" * 20,
    "zip": b"PK\x03\x04" + b"\x00" * 40,
    "gzip in gzip": gzip.compress(gzip.compress(ARRAY)),
    "gzip and something else": gzip.compress(ARRAY) + b"something else",
    "gzip with a wrong checksum": gzip.compress(ARRAY)[:-8] + b"\x00" * 8,
    "zstd and something else": zstandard.compress(ARRAY) + b"something else",
    "Parquet's first bytes": b"PAR1" + b"\x00" * 40 + b"PAR1",
}


def check(folder, data: bytes) -> None:
    path = folder / "file.json"
    path.write_bytes(data)
    for strict in (False, True):
        report = ReadReport()
        try:
            conversations = list(read_conversations(path, report=report, strict=strict))
            report.require_conversations()
        except ConversationFileError as error:
            assert "file.json: " in str(error) and "\n" not in str(error)
            str(error).encode()
        else:
            assert len(conversations) == report.read
            assert write_conversations(folder / "out.jsonl", conversations) == len(conversations)
            assert not (strict and report.rows())
        assert report.read + report.skipped.total() == report.records
        str(report.rows()).encode()


@pytest.mark.parametrize("data", CORPUS.values(), ids=CORPUS.keys())
def test_every_file_of_the_corpus_is_read_or_told_in_one_line(tmp_path, data):
    check(tmp_path, data)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(
    st.lists(st.sampled_from([*CORPUS.values()]).filter(lambda data: len(data) < 1_000), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 3_000), st.binary(min_size=1, max_size=3)), max_size=3),
)
def test_mixtures_and_mutations_of_the_corpus_too(scratch, parts, changes):
    data = bytearray(b"".join(parts))
    for place, junk in changes:
        data[place : place + len(junk)] = junk
    check(scratch, bytes(data))


@pytest.mark.parametrize(
    "name", ["a comma too many", "a quote too many", "many braces", "deep nesting", "gzip and something else"]
)
def test_the_good_record_of_a_damaged_file_is_salvaged(tmp_path, name):
    path = tmp_path / "file.json"
    path.write_bytes(CORPUS[name])
    assert [c.id for c in read_conversations(path)] == ["g"]
