"""Hub data sets through the real library, from folders that are copies of one, and its reasons where there is none."""

from __future__ import annotations

import json
from itertools import count

import pyarrow
import pytest
from pyarrow import parquet

from realm.conversations import hub
from realm.conversations.conversation import ConversationFileError
from realm.conversations.readers import ReadReport, read_conversations
from realm.conversations.sessions import unknown_ends


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def talks(*ids: int) -> str:
    records = [{"id": f"t{i}", "conversation": [{"role": "user", "content": f"q{i}"}]} for i in ids]
    return "".join(json.dumps(r) + "\n" for r in records)


@pytest.fixture
def made(tmp_path):
    """Make a copy of a data set from texts by file name."""

    def make(**files: str):
        for name, text in files.items():
            path = tmp_path / "copy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "copy"

    return make


def read(source, limit=None, **chosen):
    report = ReadReport()
    return [c.id for c in read_conversations(source, report=report, hub=chosen, limit=limit)], report


def error(source, **chosen) -> str:
    with pytest.raises(ConversationFileError) as caught:
        read(source, **chosen)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_copy_of_one_file_is_read(made):
    ids, report = read(made(**{"data/talks.jsonl": talks(1, 2, 3), "README.md": "# talks"}))
    assert (ids, report.layout, report.records) == (["t1", "t2", "t3"], "Hub data set, a local copy", 3)


def test_what_was_fetched_is_read_where_the_hub_may_not_be_asked(monkeypatch, tmp_path):
    place = tmp_path / "hub" / "datasets--someone--talks"
    for file, text in {"refs/main": "0" * 40, f"snapshots/{'0' * 40}/talks.jsonl": talks(1, 2)}.items():
        (place / file).parent.mkdir(parents=True)
        (place / file).write_text(text)
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetching(asked, tmp_path / "hub"))
    assert read("someone/talks")[0] == ["t1", "t2"]
    hub.fetch_rows("someone/talks", hub.HubChoice(data_files="a/*.json", revision="v1"))
    assert asked == [(None, None, True), ("v1", ["a/*.json", "README.md"], False)]


def fetching(asked, cache):
    from huggingface_hub import snapshot_download

    def fetch(name, repo_type, revision=None, allow_patterns=None, local_files_only=False):
        asked.append((revision, allow_patterns, local_files_only))
        if local_files_only:
            return snapshot_download(name, repo_type=repo_type, cache_dir=cache, local_files_only=True)

    return fetch


@pytest.mark.parametrize("names", [("a.json", "b.json"), ("part1.jsonl", "part2.jsonl"), ("en/x.jsonl", "de/x.jsonl")])
def test_several_files_are_not_read_as_one(made, names):
    folder = made(**dict(zip(names, [talks(1, 2), talks(2, 3)], strict=True)))
    said = error(folder)
    assert all(name in said for name in names)
    assert "data_files" in said
    assert read(folder, data_files=names[1])[0] == ["t2", "t3"]
    assert sorted(read(folder, data_files=list(names))[0]) == ["t1", "t2", "t2", "t3"]


def test_shards_of_one_file_are_one(made):
    names = ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl")
    folder = made(**dict(zip(names, [talks(1), talks(2), talks(3)], strict=True)))
    assert read(folder)[0] == ["t1", "t2"]
    assert read(folder, split="test")[0] == ["t3"]


def test_a_configuration_is_chosen_by_name(made):
    card = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    folder = made(**{"README.md": card, "en.jsonl": talks(1), "de.jsonl": talks(2)})
    assert read(folder, config="de")[0] == ["t2"]
    assert "available configs: ['en', 'de']" in error(folder)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"split": "valid"}, "Bad split: valid. Available splits: ['train']"),
        ({"config": "fr"}, "'fr' not found"),
        ({"data_files": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_the_reason_of_the_library_is_passed_on(made, chosen, reason):
    said = error(made(**{"a.jsonl": talks(1)}), **chosen)
    assert reason in said and "check the name and the network" in said


def test_the_reason_of_a_name_that_is_not_there_is_passed_on():
    assert "Couldn't reach 'someone/talks'" in error("someone/talks")


def test_no_secret_comes_with_the_reason(monkeypatch):
    def refuses(*arguments, **options):
        raise PermissionError("token hf_abcdefghijk is not allowed\nto read this")

    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijk")
    monkeypatch.setattr("datasets.load_dataset_builder", refuses)
    said = error("someone/talks")
    assert "token [redacted] is not allowed to read this" in said


def test_no_more_is_read_than_asked_for(made, monkeypatch):
    pulled = []
    rows = ({"id": f"r{i}", "data": ["q", "a"]} for i in count())
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **o: (pulled.append(1) or row for row in rows))
    ids, report = read(made(**{"a.jsonl": talks(1)}), limit=5)
    assert ids == ["r0", "r1", "r2", "r3", "r4"]
    assert (len(pulled), report.records, report.stopped) == (5, 5, True)


def test_where_reading_stopped_no_end_is_known(made):
    folder, report = made(**{"a.jsonl": talks(1, 2, 3)}), ReadReport()
    conversations = list(read_conversations(folder, report=report, limit=2))
    assert unknown_ends(report, conversations) == {1}


def test_a_file_is_read_on_for_its_defects(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(talks(1, 2, 3) + '{"id": "x"}\n', encoding="utf-8")
    ids, report = read(path, limit=2)
    assert (ids, report.records, report.skipped, report.stopped) == (["t1", "t2"], 4, {"no turns": 1}, False)


def test_a_choice_within_a_file_is_refused(tmp_path):
    (tmp_path / "talks.jsonl").write_text(talks(1), encoding="utf-8")
    assert "is a file; leave out split, revision, for Hub data sets only" in error(
        tmp_path / "talks.jsonl", split="train", revision="main"
    )


def test_a_table_with_nulls_and_sequences_is_read(tmp_path):
    (tmp_path / "copy").mkdir()
    rows = [
        {"conversation_id": "c", "messages": None, "conversation": [{"role": "user", "content": "q", "toxic": None}]}
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "copy" / "0000.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "copy" / "0001.parquet")
    ids, report = read(tmp_path / "copy")
    assert (ids, report.noted) == (["c", "c"], {"duplicate id": 1})


def test_long_lists_of_files_are_cut(made):
    said = error(made(**{f"{name}.jsonl": talks(1) for name in "abcdefghijklmnop"}))
    assert f"{', '.join(f'{name}.jsonl' for name in 'abcdefghijkl')} and 4 more" in said
    assert hub.FILES_SHOWN == 12
