from __future__ import annotations

import io
import json
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations import json_stream
from realm.conversations.json_stream import MALFORMED, JsonStream, JsonStreamError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
RECORD = st.fixed_dictionaries({"id": TEXT, "conversations": st.lists(st.fixed_dictionaries({"value": TEXT}))})
ONE = {"id": "é1", "conversations": [{"value": "first \U0001f642"}]}
TWO = {"id": "2", "conversations": [{"value": 'say "hi" \\ \n'}]}


@contextmanager
def chunks_of(size: int):
    """Hypothesis calls a test many times, so the chunk size is set by hand, not by a fixture."""
    before, json_stream.CHUNK_BYTES = json_stream.CHUNK_BYTES, size
    try:
        yield
    finally:
        json_stream.CHUNK_BYTES = before


def read(data: bytes) -> tuple[list, JsonStream]:
    stream = JsonStream(io.BytesIO(data))
    return list(stream.values()), stream


def summary(data: bytes, chunk: int) -> tuple:
    with chunks_of(chunk):
        values, stream = read(data)
    kept = [(offset, None if value is MALFORMED else value) for offset, value in values]
    return kept, stream.layout, stream.truncated, stream.lost_bytes


def encoded(records: list, layout: str) -> bytes:
    if layout == "lines":
        return "\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode()
    if layout == "objects":
        return "\n".join(json.dumps(r, ensure_ascii=False, indent=2) for r in records).encode()
    if layout == "arrays":
        return "\n".join(json.dumps([r], ensure_ascii=False) for r in records).encode()
    if layout == "held":
        return json.dumps({"version": "é", "data": records, "n": [1]}, ensure_ascii=False).encode()
    if layout == "named":
        return json.dumps({f"name{i}": r for i, r in enumerate(records)}, ensure_ascii=False).encode()
    return json.dumps(records, ensure_ascii=layout == "escaped", indent=1 if layout == "indented" else None).encode()


# ---------------------------------------------------------------- whole streams


LAYOUTS = {
    "plain": "JSON array",
    "escaped": "JSON array",
    "indented": "JSON array",
    "lines": "JSON lines",
    "objects": "JSON objects",
    "arrays": "JSON arrays",
    "held": "JSON object",
    "named": "JSON object",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_come_with_the_byte_at_which_they_start(layout):
    data = encoded([ONE, TWO], layout)
    values, stream = read(data)
    assert [value for _, value in values] == [ONE, TWO]
    second = values[1][0]
    rest = data[second:].decode()
    assert json.JSONDecoder().raw_decode(rest)[0] == TWO
    assert (stream.truncated, stream.lost_bytes, stream.bytes_read) == (False, 0, len(data))
    assert stream.layout == LAYOUTS[layout]


def test_a_byte_order_mark_is_no_part_of_the_text_but_counts_as_bytes():
    values, _ = read(b"\xef\xbb\xbf" + encoded([ONE], "plain"))
    assert values == [(4, ONE)]


def test_leading_and_trailing_blanks_do_not_matter():
    assert [v for _, v in read(b" \r\n\t" + encoded([ONE, TWO], "lines") + b"\n\n \n")[0]] == [ONE, TWO]


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b" \n ", "is empty"), (b"hello", "starts with 'h'")])
def test_other_streams_are_refused_with_what_they_hold(data, reason):
    with pytest.raises(JsonStreamError, match=reason):
        read(data)


def test_an_empty_array_holds_nothing_and_is_whole():
    values, stream = read(b"[]")
    assert values == []
    assert not stream.truncated


def test_a_value_without_end_is_refused_instead_of_filling_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARS", 1_000)
    with chunks_of(100), pytest.raises(JsonStreamError, match="at byte 3"):
        read(b'[ \n{"id": "' + b"x" * 5_000)


def test_progress_is_told_after_each_chunk():
    calls = []
    with chunks_of(10):
        stream = JsonStream(io.BytesIO(encoded([ONE, TWO], "plain")), on_chunk=lambda: calls.append(1))
        list(stream.values())
    assert len(calls) >= 3


# ---------------------------------------------------------------- damaged streams


def test_an_array_cut_inside_a_string_gives_up_only_the_last_value():
    whole = encoded([ONE, TWO], "plain")
    values, stream = read(whole[:-12])
    assert [v for _, v in values] == [ONE]
    assert stream.truncated
    assert stream.lost_bytes == len(whole[:-12]) - whole.index(b'{"id": "2"')


@pytest.mark.parametrize(
    ("layout", "closing"),
    [
        ("plain", b"]}"),
        ("indented", b"]\n }"),
        ("lines", b"]}"),
        ("objects", b"]\n}"),
        ("arrays", b"]}"),
        ("held", b"]}"),
    ],
)
def test_wherever_a_file_is_cut_whole_values_survive_and_bytes_add_up(layout, closing):
    records = [{"id": str(i), "conversations": [{"value": "é" * i}]} for i in range(4)]
    whole = encoded(records, layout)
    starts = [offset for offset, _ in read(whole)[0]]
    ends = [whole.index(closing, start) + len(closing) for start in starts]
    for length in range(1, len(whole)):
        values, stream = read(whole[:length])
        survivors = sum(end <= length for end in ends)
        assert [v for _, v in values] == records[:survivors]
        lost_from = starts[survivors] if survivors < len(starts) else length
        if layout == "held" and survivors in (0, len(starts)):
            continue  # nothing tells yet that records stand in the object, or none is lost of what follows them
        assert stream.lost_bytes == max(0, length - lost_from)


def test_a_cut_in_the_middle_of_a_character_loses_exact_bytes():
    rest = b'{"id": "\xf0\x9f'
    _, stream = read(encoded([ONE], "plain")[:-1] + b", " + rest)
    assert (stream.truncated, stream.lost_bytes) == (True, len(rest))


@pytest.mark.parametrize("layout", ["plain", "lines", "held", "objects"])
@pytest.mark.parametrize(
    "broken",
    [
        b'{"id": "x", "conversations": [}',
        b'{"id": oops}',
        b'{"id" "x"}',
        b'{"id": oops, "conversations": [{"from": "human", "value": "a whole turn"}]}',
    ],
)
def test_a_malformed_value_in_the_middle_costs_only_itself(layout, broken):
    parts = [encoded([ONE], "lines"), broken, encoded([TWO], "lines")]
    if layout == "objects":
        parts[0] = encoded([ONE], "objects")
    before, after = {"plain": (b"[", b"]"), "held": (b'{"data": [', b'], "n": 1}')}.get(layout, (b"", b""))
    data = before + (b"," if before else b"\n").join(parts) + after
    values, stream = read(data)
    assert [v for _, v in values] == [ONE, MALFORMED, TWO]
    assert data[values[1][0] :].startswith(broken)
    assert data[values[2][0] :].startswith(parts[2])
    assert not stream.truncated


@pytest.mark.parametrize("broken", [b'{"id": oops}', b'{"id" "x"}', b'{"id": ' + b"9" * 5_000 + b"}"])
@pytest.mark.parametrize("end", [b"]", b"\n]\n"])
def test_a_malformed_last_value_is_no_cut_file(broken, end):
    data = b"[" + encoded([ONE], "lines") + b"," + broken + end
    values, stream = read(data)
    assert [v for _, v in values] == [ONE, MALFORMED]
    assert data[values[1][0] :].startswith(broken)
    assert (stream.truncated, stream.lost_bytes) == (False, 0)


def test_nesting_beyond_the_parser_is_malformed_in_an_array():
    deep = b'{"id": ' + b"[" * 100_000 + b"}"
    assert [v for _, v in read(b"[" + deep + b"," + encoded([TWO], "lines") + b"]")[0]] == [MALFORMED, TWO]


def test_nesting_beyond_the_parser_is_malformed_in_lines():
    deep = b'{"id": ' + b"[" * 100_000 + b"}"
    assert [v for _, v in read(deep + b"\n" + encoded([TWO], "lines"))[0]] == [MALFORMED, TWO]


def huge_integer(layout: str) -> bytes:
    # Python refuses to convert more than 4,300 digits with a plain ValueError.
    parts = [b'{"id": ' + b"9" * 5_000 + b"}", encoded([TWO], "lines")]
    return b"\n".join(parts) if layout == "lines" else b"[" + b",".join(parts) + b"]"


@pytest.mark.parametrize("layout", ["lines", "plain"])
def test_an_integer_too_long_for_python_is_malformed(layout):
    assert [v for _, v in read(huge_integer(layout))[0]] == [MALFORMED, TWO]


def test_what_follows_the_array_is_told():
    values, stream = read(encoded([ONE], "plain") + encoded([TWO], "plain"))
    assert len(values) == 2 or stream.lost_bytes == len(encoded([TWO], "plain"))


def test_bytes_that_are_no_utf8_stay_visible_and_offsets_exact():
    data = b'[{"id": "\xff\xfe"}, {"id": "2"}]'
    (_, first), (offset, second) = read(data)[0]
    assert first["id"].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert second == {"id": "2"}
    assert data[offset:] == b'{"id": "2"}]'


class BreaksOff(io.BytesIO):
    """A decompressor's stream that fails after its first chunk."""

    def read(self, size=-1):
        data = super().read(size)
        if not data:
            raise EOFError("ended before the end-of-stream marker")
        return data

    read1 = read


def test_a_stream_that_fails_on_the_way_counts_as_cut_off():
    stream = JsonStream(BreaksOff(encoded([ONE, TWO], "plain")[:-5]))
    assert [v for _, v in stream.values()] == [ONE]
    assert stream.truncated


def test_a_stream_that_fails_at_once_is_refused():
    with pytest.raises(JsonStreamError, match="cannot be decompressed"):
        list(JsonStream(BreaksOff(b"")).values())


# ---------------------------------------------------------------- chunk boundaries


@given(
    records=st.lists(RECORD, min_size=1, max_size=4),
    layout=st.sampled_from([*LAYOUTS]),
    chunk=st.integers(1, 40),
    cut=st.integers(0, 30),
)
def test_chunk_boundaries_change_nothing(records, layout, chunk, cut):
    data = encoded(records, layout)
    data = data[: max(1, len(data) - cut)]
    assert summary(data, chunk) == summary(data, 1_000_000)


@given(
    position=st.floats(0, 1), junk=st.sampled_from([b"\xff", b'"', b"}", b"]", b"\\", b"x"]), chunk=st.integers(1, 40)
)
def test_chunk_boundaries_change_nothing_in_damaged_files(position, junk, chunk):
    data = encoded([{"id": str(i), "conversations": [{"value": "text"}]} for i in range(5)], "plain")
    at = 1 + int(position * (len(data) - 2))
    damaged = data[:at] + junk + data[at + 1 :]
    assert summary(damaged, chunk) == summary(damaged, 1_000_000)


def test_a_byte_order_mark_across_two_chunks():
    assert summary(b"\xef\xbb\xbf" + encoded([ONE], "plain"), 1)[0] == [(4, ONE)]


def test_a_bare_number_across_two_chunks():
    data = b'[1234, {"id": "2"}]'
    assert summary(data, 2) == summary(data, 1_000_000)


# ---------------------------------------------------------------- objects


def test_a_record_is_no_container_of_records():
    record = {
        "id": "1",
        "tags": [{"name": "x"}],
        "tools": [{"type": "function"}],
        "messages": [{"role": "user", "content": "q"}],
    }
    pairs = {"source": "s", "conversation": [{"input": "q", "output": "a"}]}
    for value in (record, pairs):
        for data in (encoded([value, value], "lines"), encoded([value, value], "objects")):
            assert [v for _, v in read(data)[0]] == [value, value]


def test_the_rest_after_an_object_of_records_is_told():
    values, stream = read(encoded([ONE, TWO], "held") + b" and more")
    assert len(values) == 2
    assert (stream.lost_bytes, stream.truncated) == (len(b"and more"), False)


def test_a_malformed_last_record_of_an_object_is_no_cut_file():
    data = b'{"data": [' + encoded([ONE], "lines") + b', {"id": oops}]\n}\n'
    values, stream = read(data)
    assert [v for _, v in values] == [ONE, MALFORMED]
    assert (stream.truncated, stream.lost_bytes) == (False, 0)


def characters_parsed(data: bytes) -> int:
    stream, parsed = JsonStream(io.BytesIO(data)), []
    scan = stream._scan

    def counting(text: str, at: int):
        try:
            value, end = scan(text, at)
        except json.JSONDecodeError as error:
            parsed.append(max(error.pos, len(text) if "Unterminated" in error.msg else 0) - at)
            raise
        parsed.append(end - at)
        return value, end

    stream._scan = counting
    assert all(value is not MALFORMED for _, value in stream.values())
    return sum(parsed)


@pytest.mark.parametrize("layout", ["plain", "objects", "arrays", "held", "named"])
def test_work_grows_with_the_text_and_no_faster(layout):
    records = [{"id": str(i), "conversations": [{"value": "x" * 200}]} for i in range(1_600)]
    with chunks_of(500):
        few, many = (characters_parsed(encoded(records[:count], layout)) for count in (400, 1_600))
    assert many < 4.5 * few


def test_a_list_of_records_under_a_key_is_streamed():
    records = [{"id": str(i), "conversations": [{"value": "x"}]} for i in range(500)]
    with chunks_of(1_000):
        stream = JsonStream(io.BytesIO(encoded(records, "held")))
        longest = max(len(stream._text) for _ in stream.values())
    assert longest < 3_000
