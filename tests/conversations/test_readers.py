from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from realm.conversations.conversation import Conversation, ConversationFileError, Message
from realm.conversations.readers import ReadReport, load_conversations, read_conversations
from realm.conversations.report import EXAMPLES_KEPT
from realm.conversations.writers import write_conversations, write_sharegpt

NAMES = {"user": "human", "assistant": "gpt"}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
META = st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.lists(TEXT)), max_size=3)
MESSAGE = st.builds(Message, st.sampled_from(["user", "assistant", "system"]), TEXT)
CONVERSATION = st.builds(Conversation, TEXT.filter(bool), st.lists(MESSAGE, min_size=1, max_size=5).map(tuple), META)


def sharegpt(*turns, id="a", **more) -> dict:
    """A ShareGPT record of turns given as (from, value)."""
    return {"id": id, "conversations": [{"from": who, "value": text} for who, text in turns], **more}


GOOD = [
    sharegpt(("human", "Was heißt „é“? \U0001f642"), ("gpt", 'It says "é".\nYes \\ no'), id="s_0"),
    sharegpt(("human", "and you?"), ("chatgpt", "fine"), id="s_1"),
    sharegpt(("human", "last"), ("gpt", "answer"), id="t_0"),
]


def as_array(records: list) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


def as_lines(records: list) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def as_chat(record: dict) -> dict:
    roles = {name: role for role, name in NAMES.items()} | {"chatgpt": "assistant"}
    messages = [{"role": roles[t["from"]], "content": t["value"]} for t in record["conversations"]]
    return {"id": record["id"], "messages": messages}


def read(path, **options) -> tuple[list[Conversation], ReadReport]:
    report = ReadReport()
    return list(read_conversations(path, report=report, **options)), report


def read_bytes(folder: Path, data: bytes, **options) -> tuple[list[Conversation], ReadReport]:
    path = folder / "file.json"
    path.write_bytes(data)
    return read(path, **options)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory) -> Path:
    """One folder for the properties, whose examples overwrite each other's file."""
    return tmp_path_factory.mktemp("scratch")


# ---------------------------------------------------------------- the record


def test_rounds_count_answered_user_turns(talk):
    assert talk("q", "a", "q", "a", "q").rounds == 2
    assert talk("a", "q", "a", first="assistant").rounds == 1
    assert talk("q", "a", system="be brief").rounds == 1


def test_turns_of_one_role_come_in_order(talk):
    assert talk("q1", "a1", "q2").turns("user") == ["q1", "q2"]


# ---------------------------------------------------------------- layouts

CONTAINERS = {
    "array": as_array(GOOD),
    "array with a byte order mark": b"\xef\xbb\xbf" + as_array(GOOD),
    "ShareGPT lines": as_lines(GOOD),
    "chat lines": as_lines([as_chat(r) for r in GOOD]),
    "chat array": as_array([as_chat(r) for r in GOOD]),
    "gzip": gzip.compress(as_array(GOOD)),
    "gzip lines": gzip.compress(as_lines(GOOD)),
    "zstd": zstandard.compress(as_array(GOOD)),
    "zstd in two frames": zstandard.compress(as_lines(GOOD[:1])) + zstandard.compress(as_lines(GOOD[1:])),
}


@pytest.mark.parametrize("data", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_every_layout_gives_the_same_conversations(tmp_path, data):
    conversations, report = read_bytes(tmp_path, data, strict=True)
    assert [c.to_record()["messages"] for c in conversations] == [as_chat(r)["messages"] for r in GOOD]
    assert [c.id for c in conversations] == ["s_0", "s_1", "t_0"]
    assert (report.records, report.read, report.skipped.total(), report.lost_bytes) == (3, 3, 0, 0)


@pytest.mark.parametrize("records", [GOOD, [as_chat(r) for r in GOOD]], ids=["ShareGPT", "chat"])
def test_parquet_gives_the_same_conversations(tmp_path, records):
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    conversations, report = read(path)
    assert [c.turns("user")[0] for c in conversations] == [r["conversations"][0]["value"] for r in GOOD]
    assert (report.layout, report.records) == ("Parquet", 3)


def test_a_table_with_the_columns_of_both_layouts_is_read(tmp_path):
    path = tmp_path / "table.parquet"
    turn = {"from": "human", "value": "q", "role": None, "content": None}
    parquet.write_table(
        pyarrow.Table.from_pylist([{"id": "a", "messages": None, "conversations": [turn]}, as_chat(GOOD[0])]), path
    )
    conversations, report = read(path)
    assert [c.turns("user") for c in conversations] == [["q"], GOOD[0]["conversations"][0]["value"].splitlines()]
    assert report.read == 2


INSTRUCTIONS = {
    "WizardLM": [{"instruction": "Why?", "output": "So."}, {"instruction": "Sum up:\n\nLong text", "output": "Text."}],
    "Alpaca": [
        {"instruction": "Why?", "input": "", "output": "So."},
        {"instruction": "Sum up:", "input": "Long text", "output": "Text."},
    ],
    "Dolly": [
        {"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"},
        {"instruction": "Sum up:", "context": "Long text", "response": "Text.", "category": "summarization"},
    ],
}


@pytest.mark.parametrize("container", [as_array, as_lines])
@pytest.mark.parametrize("records", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_an_instruction_is_a_conversation_of_one_round(tmp_path, records, container):
    conversations, report = read_bytes(tmp_path, container(records), strict=True)
    assert [c.id for c in conversations] == ["record-0", "record-1"]
    assert [c.turns("user") for c in conversations] == [["Why?"], ["Sum up:\n\nLong text"]]
    assert [c.turns("assistant") for c in conversations] == [["So."], ["Text."]]
    assert (report.read, report.roles) == (2, {"user": 2, "assistant": 2})


@pytest.mark.parametrize(
    ("record", "defect"),
    [
        ({"instruction": "Why?"}, "null or non-string content"),
        ({"instruction": "Why?", "output": None}, "null or non-string content"),
        ({"instruction": None, "input": "text", "output": "So."}, "null or non-string content"),
        ({"instruction": "Why?", "input": ["text"], "output": "So."}, "null or non-string content"),
        ({"instruction": "Why?\x00", "output": "So."}, "NUL byte"),
        ({"prompt": "Why?", "score": 1}, "no turns"),
    ],
)
def test_a_defect_of_an_instruction_is_counted(tmp_path, record, defect):
    conversations, report = read_bytes(tmp_path, as_array([record, *INSTRUCTIONS["Alpaca"]]))
    assert len(conversations) == 2
    assert report.skipped == {defect: 1}


def test_an_empty_answer_to_an_instruction_is_noted(tmp_path):
    _, report = read_bytes(tmp_path, as_array([{"instruction": "Why?", "output": ""}]))
    assert report.noted == {"empty turn": 1}


def test_one_row_of_a_table_that_is_no_utf8_costs_only_itself(tmp_path):
    path = tmp_path / "table.parquet"
    raw = pyarrow.array([b"caf\xe9", b"fine"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    turns = pyarrow.StructArray.from_arrays([pyarrow.array(["user", "user"]), text], ["role", "content"])
    rows = pyarrow.table({"id": ["a", "b"], "messages": pyarrow.ListArray.from_arrays([0, 1, 2], turns)})
    parquet.write_table(rows, path)
    conversations, report = read(path)
    assert [c.id for c in conversations] == ["b"]
    assert report.skipped == {"invalid UTF-8": 1}
    # A table's rows have no bytes of their own, so none are claimed.
    with pytest.raises(ConversationFileError, match=r"table\.parquet: record 0 \(record 0\): invalid UTF-8"):
        read(path, strict=True)


def test_the_report_counts_roles_and_bytes(tmp_path):
    _, report = read_bytes(tmp_path, as_array(GOOD))
    assert report.roles == {"human": 3, "gpt": 2, "chatgpt": 1}
    assert report.bytes_read == len(as_array(GOOD))
    assert report.layout == "JSON array"


def test_meta_travels_and_odd_ids_become_text(tmp_path):
    records = [sharegpt(("human", "x"), id=7, meta={"model": "m"}), sharegpt(("human", "y"), id=None)]
    (seven, nameless), _ = read_bytes(tmp_path, as_array(records))
    assert (seven.id, seven.meta) == ("7", {"model": "m"})
    assert nameless.id == "record-1"


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(as_array(GOOD)[:-30])
    assert next(read_conversations(path, strict=True)).id == "s_0"


# ---------------------------------------------------------------- files that cannot be read


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (gzip.compress(b""), "is empty"),
        (b'"just text"', "starts with"),
        (b"id,text\n1,hello\n", "starts with 'i'"),
        ("[]".encode("utf-16"), "starts with"),
        (b"\x1f\x8b" + b"junk" * 10, "cannot be decompressed"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "cannot be decompressed"),
        (b"PAR1 and no table", "Parquet"),
    ],
)
def test_other_files_are_refused_by_name_and_reason(tmp_path, data, reason):
    with pytest.raises(ConversationFileError) as caught:
        read_bytes(tmp_path, data)
    assert "file.json" in str(caught.value)
    assert reason in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConversationFileError, match="is a folder; give the conversation file inside it"):
        read(tmp_path)


@pytest.mark.parametrize("below_a_file", [False, True])
def test_a_missing_file_is_named_with_the_fix(tmp_path, below_a_file):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.json" if below_a_file else tmp_path / "x.json"
    with pytest.raises(ConversationFileError, match="no such file; give a conversation file or a Hub data set name"):
        read(path)
    with pytest.raises(ConversationFileError, match=re.escape(str(path))):
        read(str(path))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def denied(self, *options):
        raise PermissionError(13, "Permission denied", str(self))  # root is denied nothing, so a mode would not do

    path = tmp_path / "file.json"
    path.write_bytes(as_array(GOOD))
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConversationFileError, match=re.escape(str(path))):
        read(path)


def test_an_object_that_is_no_conversation_counts_as_having_no_turns(tmp_path):
    conversations, report = read_bytes(tmp_path, b'{"loss": 1}')
    assert conversations == []
    assert report.skipped == {"no turns": 1}


def fake_hub(monkeypatch, load) -> None:
    one_file = SimpleNamespace(config=SimpleNamespace(data_files={"train": ["hf://datasets/someone/talks/a.json"]}))
    library = SimpleNamespace(load_dataset=load, load_dataset_builder=lambda name, **options: one_file)
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_a_name_with_one_slash_is_a_hub_data_set(monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options["streaming"]))
        return GOOD

    fake_hub(monkeypatch, load)
    conversations, report = read("someone/talks")
    assert asked == [("someone/talks", True)]
    assert [c.id for c in conversations] == ["s_0", "s_1", "t_0"]
    assert report.layout == "Hub data set"


def test_a_version_in_a_hub_name_is_no_file_suffix(monkeypatch, tmp_path):
    fake_hub(monkeypatch, lambda name, **options: GOOD)
    assert len(read("someone/talks-2.5")[0]) == 3
    with pytest.raises(ConversationFileError, match="no such file"):
        read("someone/talks.json")


def test_a_hub_that_does_not_answer_is_named(monkeypatch):
    def load(name, **options):
        raise ConnectionError("offline")

    fake_hub(monkeypatch, load)
    with pytest.raises(ConversationFileError, match=r"someone/talks: .*check the name and the network"):
        read("someone/talks")


# ---------------------------------------------------------------- defects

BIG = "é" * 500_001  # over 1 MB in bytes, not in characters
SKIPPED = [
    ("no turns", as_array([{"id": "bad", "conversations": []}])),
    ("no turns", as_array([{"id": "bad"}])),
    ("no turns", as_array([{"id": "bad", "conversations": "text"}])),
    ("null or non-string content", as_array([sharegpt(("human", None), id="bad")])),
    ("null or non-string content", as_array([sharegpt(("human", 5), id="bad")])),
    ("null or non-string content", as_array([{"id": "bad", "messages": [{"role": "user"}]}])),
    ("unknown role", as_array([sharegpt(("narrator", "x"), id="bad")])),
    ("unknown role", as_array([sharegpt((None, "x"), id="bad")])),
    ("turn is not an object", as_array([{"id": "bad", "conversations": ["x"]}])),
    ("turn over 1 MB", as_array([sharegpt(("human", BIG), id="bad")])),
    ("lone surrogate", b'[{"id": "bad", "conversations": [{"from": "human", "value": "\\ud83d x"}]}]'),
    ("invalid UTF-8", b'[{"id": "bad", "conversations": [{"from": "human", "value": "caf\xe9"}]}]'),
    ("NUL byte", b'[{"id": "bad", "conversations": [{"from": "human", "value": "a\\u0000b"}]}]'),
    ("NUL byte", b'[{"id": "bad", "conversations": [{"from": "human", "value": "a\x00b"}]}]'),
    ("malformed JSON", b'[{"id": "bad", "conversations": [}]'),
    ("record is not an object", b'["bad"]'),
]
NOTED = [
    ("empty turn", sharegpt(("human", " \n"), ("gpt", "x"), id="bad")),
    ("two turns of one role in a row", sharegpt(("human", "x"), ("user", "y"), id="bad")),
    ("starts with the assistant", sharegpt(("gpt", "x"), ("human", "y"), id="bad")),
    ("starts with the assistant", sharegpt(("system", "s"), ("bing", "x"), ("human", "y"), id="bad")),
    ("duplicate id", sharegpt(("human", "x"), ("gpt", "y"), id="s_0")),
]


def between_good_ones(record: bytes) -> bytes:
    """An array in which ``record``, itself an array of one, stands third of four."""
    good = [json.dumps(r, ensure_ascii=False).encode() for r in GOOD]
    return b"[\n" + b",\n".join([*good[:2], record[1:-1], good[2]]) + b"\n]"


@pytest.mark.parametrize(("defect", "record"), SKIPPED, ids=[name for name, _ in SKIPPED])
def test_records_that_cannot_be_used_are_skipped_and_counted(tmp_path, defect, record):
    conversations, report = read_bytes(tmp_path, between_good_ones(record))
    assert [c.id for c in conversations] == ["s_0", "s_1", "t_0"]
    assert report.skipped == {defect: 1}
    assert (report.records, report.read, report.noted.total()) == (4, 3, 0)
    place = between_good_ones(record).index(record[1:-1])
    assert report.examples[defect] in (["bad"], [f"record 2 at byte {place}"])


@pytest.mark.parametrize(("defect", "record"), NOTED, ids=[name for name, _ in NOTED])
def test_odd_records_are_kept_and_counted(tmp_path, defect, record):
    conversations, report = read_bytes(tmp_path, between_good_ones(as_array([record])))
    assert len(conversations) == 4
    assert report.noted == {defect: 1}
    assert report.skipped.total() == 0
    assert report.examples[defect] == [record["id"]]


def test_a_record_with_two_faults_is_skipped_once_and_noted_twice(tmp_path):
    skipped = sharegpt(("narrator", None), ("human", None), id="x")
    noted = sharegpt(("gpt", ""), ("gpt", "again"), id="y")
    _, report = read_bytes(tmp_path, as_array([skipped, noted]))
    assert report.skipped == {"unknown role": 1}
    assert set(report.noted) == {"empty turn", "starts with the assistant", "two turns of one role in a row"}


def test_the_ids_of_all_skipped_records_are_kept_in_order(tmp_path):
    records = [sharegpt(id=f"e_{i}") for i in range(8)]
    data = as_array(records)[:-1] + b', {"id": 5, "messages": []}, {"id": "n", "messages": [}, ' + as_array(GOOD)[1:]
    _, report = read_bytes(tmp_path, data)
    assert report.skipped_ids[:8] == [f"e_{i}" for i in range(8)]
    assert [re.sub(r"byte \d+", "byte N", name) for name in report.skipped_ids[8:]] == [
        "record 8 at byte N",
        "record 9 at byte N",
    ]
    assert len(report.skipped_ids) == report.skipped.total()


def test_records_that_are_only_noted_are_not_among_the_skipped(tmp_path):
    _, report = read_bytes(tmp_path, as_array([sharegpt(("gpt", "x"), id="x")]))
    assert (report.noted.total(), report.skipped_ids) == (1, [])


def test_only_some_examples_of_each_defect_are_kept(tmp_path):
    _, report = read_bytes(tmp_path, as_array([sharegpt(id=f"e{i}") for i in range(20)]))
    assert report.skipped == {"no turns": 20}
    assert report.examples["no turns"] == [f"e{i}" for i in range(EXAMPLES_KEPT)]


def test_the_table_of_defects_has_one_row_each(tmp_path):
    records = [sharegpt(id="e1"), sharegpt(id="e2"), sharegpt(("gpt", "x"), id="f")]
    _, report = read_bytes(tmp_path, as_array(records))
    assert report.rows() == [
        {"defect": "no turns", "records": 2, "treatment": "skipped", "examples": ["e1", "e2"]},
        {"defect": "starts with the assistant", "records": 1, "treatment": "kept, noted", "examples": ["f"]},
    ]


ALL = [(name, record) for name, record in SKIPPED] + [(name, as_array([record])) for name, record in NOTED]


@pytest.mark.parametrize(("defect", "record"), ALL, ids=[name for name, _ in ALL])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_strict_names_file_record_and_byte(tmp_path, defect, record, mark):
    data = mark + between_good_ones(record)
    with pytest.raises(ConversationFileError) as caught:
        read_bytes(tmp_path, data, strict=True)
    path, number, offset = re.match(r"(.*): record (\d+) at byte (\d+) \(", str(caught.value)).groups()
    assert path == str(tmp_path / "file.json")
    assert number == "2"
    assert data[int(offset) :].startswith(record[1:-1])
    assert str(caught.value).endswith(defect)


def test_strict_gives_the_byte_in_json_lines_too(tmp_path):
    data = as_lines(GOOD) + b'{"id": "bad", "messages": []}\n'
    with pytest.raises(ConversationFileError, match=f"record 3 at byte {len(as_lines(GOOD))} .bad.: no turns"):
        read_bytes(tmp_path, data, strict=True)


@pytest.mark.parametrize("escaped", [False, True])
def test_whatever_was_read_can_be_written(tmp_path, escaped):
    identifier = b"\\ud800" if escaped else b"\xff"
    conversations, _ = read_bytes(
        tmp_path, b'[{"id": "%s", "messages": [{"role": "user", "content": "x"}]}]' % identifier
    )
    assert write_conversations(tmp_path / "out.jsonl", conversations) == len(conversations)


@pytest.mark.parametrize("value", [b'"\\ud800"', b'"\xff"', b"[" * 5_000 + b"]" * 5_000])
def test_meta_that_cannot_be_written_is_left_out_and_told(tmp_path, value):
    record = b'[{"id": "a", "messages": [{"role": "user", "content": "x"}], "meta": {"k": %s}}]' % value
    conversations, report = read_bytes(tmp_path, record)
    assert write_conversations(tmp_path / "out.jsonl", conversations) == len(conversations)
    assert [c.meta for c in conversations] == [{}] * report.noted["meta that cannot be written, left out"]
    assert report.noted or report.skipped


@pytest.mark.parametrize("role", [b'"\\ud800"', b'"\xff"', b'"%s"' % (b"x" * 9_999), b'["user"]'])
def test_the_report_can_be_shown_whatever_roles_and_ids_are(tmp_path, role):
    record = b'[{"id": "\\ud800", "messages": [{"role": %s, "content": "x"}]}]' % role
    _, report = read_bytes(tmp_path, record)
    assert report.skipped == {"unknown role": 1}
    shown = str([report.rows(), report.roles, report.skipped_ids])
    assert len(shown.encode()) < 1_000


def test_a_number_beyond_python_costs_one_record(tmp_path):
    _, report = read_bytes(tmp_path, between_good_ones(b'[{"id": ' + b"9" * 5_000 + b"}]"))
    assert report.skipped == {"malformed JSON": 1}


# ---------------------------------------------------------------- truncated files


def test_a_file_cut_inside_a_string_gives_its_complete_records(tmp_path):
    data = as_array(GOOD)[:-10]
    conversations, report = read_bytes(tmp_path, data)
    assert [c.id for c in conversations] == ["s_0", "s_1"]
    assert report.truncated
    assert report.lost_bytes == len(data) - data.index(b'{"id": "t_0"')
    assert report.records == 2


def test_strict_tells_how_much_a_cut_file_lost(tmp_path):
    data = as_lines(GOOD)[:-10]
    start = data.index(b'{"id": "t_0"')
    with pytest.raises(
        ConversationFileError, match=rf"file\.json: record 2 at byte {start}: truncated file, {len(data) - start} bytes"
    ):
        read_bytes(tmp_path, data, strict=True)


@pytest.mark.parametrize("ending", [b"", b'{"id": "t'])
@pytest.mark.parametrize("whole", [as_array(GOOD)[:-1] + b", ", as_lines(GOOD)], ids=["array", "lines"])
def test_a_cut_file_is_a_row_of_the_table_with_its_place(tmp_path, whole, ending):
    _, report = read_bytes(tmp_path, whole + ending)
    cut = whole.startswith(b"[") or bool(ending)
    assert [(r["defect"], r["treatment"], r["examples"]) for r in report.rows()] == [
        ("truncated file", f"{len(ending)} bytes lost", [f"record 3 at byte {len(whole)}"])
    ] * cut


@pytest.mark.parametrize("more", [as_lines(GOOD[:1]), b"x"])
def test_what_follows_an_array_is_a_defect_and_no_silent_loss(tmp_path, more):
    data = as_array(GOOD) + b"\n" + more
    conversations, report = read_bytes(tmp_path, data)
    assert (len(conversations), report.truncated, report.lost_bytes) == (
        3,
        False,
        len(more.rstrip(b"\n")) + more.endswith(b"\n"),
    )
    assert [r["defect"] for r in report.rows()] == ["text after the array"]
    with pytest.raises(ConversationFileError, match=f"record 3 at byte {len(data) - len(more)}: text after the array"):
        read_bytes(tmp_path, data, strict=True)


def many(count: int) -> bytes:
    noise = random.Random(0)
    text = lambda: "".join(noise.choices("abcdefgh éü", k=200))  # noqa: E731
    return as_lines([sharegpt(("human", text()), ("gpt", text()), id=f"m_{i}") for i in range(count)])


def test_a_gzip_file_cut_off_gives_its_complete_records(tmp_path):
    cut = gzip.compress(many(300))
    cut = cut[: len(cut) // 2]
    there = zlib.decompressobj(wbits=31).decompress(cut)
    conversations, report = read_bytes(tmp_path, cut)
    assert report.truncated
    # What a decompressor holds back at the end is less than one of its blocks.
    assert there.count(b"\n") - 50 <= len(conversations) <= there.count(b"\n")


def test_a_zstd_file_cut_off_gives_its_complete_records(tmp_path):
    cut = zstandard.compress(many(2_000))
    conversations, report = read_bytes(tmp_path, cut[: len(cut) // 2])
    assert report.truncated
    assert 300 < len(conversations) < 2_000
    assert [c.id for c in conversations] == [f"m_{i}" for i in range(len(conversations))]


@given(data=st.data(), container=st.sampled_from(["array", "ShareGPT lines", "chat lines", "gzip", "zstd"]))
def test_damaged_bytes_raise_nothing_but_our_error(scratch, data, container):
    damaged = bytearray(CONTAINERS[container])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        conversations, report = read_bytes(scratch, bytes(damaged))
    except ConversationFileError as error:
        assert "file.json" in str(error)
    else:
        assert len(conversations) == report.read == report.records - report.skipped.total()


# ---------------------------------------------------------------- memory

# VmHWM belongs to this program alone; getrusage's peak begins with that of the test run it was forked from.
READER = """
import re, sys
from pathlib import Path
from realm.conversations.readers import read_conversations

peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
list(read_conversations(sys.argv[2]))
before = peak()
count = sum(1 for _ in read_conversations(sys.argv[1]))
print(count, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_large_array_is_streamed_in_bounded_memory(tmp_path):
    large, small = tmp_path / "large.json", tmp_path / "small.json"
    small.write_bytes(as_array(GOOD))
    text = "a question or an answer of some length, é — " * 24
    record = json.dumps(sharegpt(*[("human", text), ("gpt", text)] * 5, id="m_ID"), ensure_ascii=False)
    with large.open("w", encoding="utf-8") as handle:
        handle.write("[" + ",\n".join(record.replace("ID", str(i)) for i in range(5_600)) + "]")
    assert large.stat().st_size > 60_000_000
    command = [sys.executable, "-c", READER, str(large), str(small)]
    count, kilobytes = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert count == 5_600
    assert kilobytes < 60_000  # held whole, the text alone would take twice that, two bytes a character


# ---------------------------------------------------------------- writing


@given(st.lists(CONVERSATION, min_size=1, max_size=4))
def test_what_is_written_is_read_back(scratch, conversations):
    path = scratch / "out.jsonl"
    assert write_conversations(path, conversations) == len(conversations)
    assert list(read_conversations(path)) == conversations
    assert load_conversations(path) == conversations


@given(st.lists(CONVERSATION, min_size=1, max_size=4))
def test_sharegpt_is_read_back_but_for_meta(scratch, conversations):
    path = scratch / "out.json"
    assert write_sharegpt(path, conversations) == len(conversations)
    assert [(c.id, c.messages) for c in read_conversations(path)] == [(c.id, c.messages) for c in conversations]


def test_sharegpt_uses_its_own_words(tmp_path, talk):
    write_sharegpt(tmp_path / "out.json", [talk("q", "a", system="s", id="c")])
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == [sharegpt(("system", "s"), ("human", "q"), ("gpt", "a"), id="c")]


def test_no_conversations_are_read_back_as_none(tmp_path):
    write_conversations(tmp_path / "out.jsonl", [])
    assert load_conversations(tmp_path / "out.jsonl") == []


def test_each_record_is_one_line_of_the_chat_layout(tmp_path, talk):
    path = tmp_path / "deep" / "out.jsonl"
    write_conversations(path, [talk("line\nbreak\u2028é", "a", id="c", meta={"k": 1}), talk("q", id="d")])
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3
    assert lines[2] == b""
    assert json.loads(lines[0]) == {
        "id": "c",
        "messages": [{"role": "user", "content": "line\nbreak\u2028é"}, {"role": "assistant", "content": "a"}],
        "meta": {"k": 1},
    }


@pytest.mark.parametrize("write", [write_conversations, write_sharegpt])
def test_an_error_on_the_way_leaves_the_old_file(tmp_path, talk, write):
    path = tmp_path / "out"
    path.write_text("old")

    def fails():
        yield talk("q", "a")
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write(path, fails())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b'{"id": "x", "messages": []}\n', b'{"id": "x", "mess'])
def test_a_damaged_artefact_is_refused_with_the_fix(tmp_path, talk, damage):
    path = tmp_path / "out.jsonl"
    write_conversations(path, [talk("q", "a")])
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(ConversationFileError, match=r"out\.jsonl: damaged .*run its stage again"):
        load_conversations(path)


def test_a_file_without_one_conversation_is_a_clear_error(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"a": 1}')
    report = ReadReport()
    assert list(read_conversations(path, report=report)) == []
    with pytest.raises(ConversationFileError, match=r"other.json: holds no conversation \(no turns: 1\)"):
        report.require_conversations()
