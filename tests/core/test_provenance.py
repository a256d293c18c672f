from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from realm.core import manifest as manifest_room
from realm.core.files import ArtefactError, atomic_path, file_sha256, read_json, text_sha256, write_json
from realm.core.manifest import git_commit, manifest
from realm.core.metrics import PUBLISHED, THIS_RUN, Metric, Metrics
from realm.core.secrets import redact

FAKE_KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def key(monkeypatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", FAKE_KEY)
    return FAKE_KEY


# ---------------------------------------------------------------- files


def test_a_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ArtefactError])
def test_an_error_leaves_what_was_there_and_nothing_half_written(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error, match="broke"), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error("broke")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_no_new_file(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def named_in_one_line(error: ArtefactError, path: Path) -> bool:
    text = str(error)
    return text.startswith(f"{path}: cannot write") and "permissions" in text and "\n" not in text


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below"  # denied to every user, root too
    with pytest.raises(ArtefactError) as caught:
        write_json(path, 1)
    assert named_in_one_line(caught.value, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtefactError) as caught:
        write_json(tmp_path / "file", 1)
    assert named_in_one_line(caught.value, tmp_path / "file")


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    path = tmp_path / "file"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(ArtefactError) as caught:
        write_json(path, 1)
    assert named_in_one_line(caught.value, path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(OSError, match="missing-input") as caught, atomic_path(tmp_path / "out"):
        (tmp_path / "missing-input").read_text()
    assert "cannot write" not in str(caught.value)


def test_json_is_read_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "é\n\U0001f642"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_missing_json_is_named_with_the_fix(tmp_path):
    with pytest.raises(ArtefactError, match=r"x\.json: missing; run the stage that writes it first"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("data", [b"", b'{"a": ', b"\xff"])
def test_broken_json_is_named_with_the_fix(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"x\.json: not valid JSON .*run its stage again"):
        read_json(tmp_path / "x.json")


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "x") == text_sha256("abc") == known


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "HF_TOKEN", "my_secret", "DB_PASSWORD"])
def test_values_of_key_variables_never_show(monkeypatch, variable):
    monkeypatch.setenv(variable, FAKE_KEY)
    assert redact(f"401: key {FAKE_KEY} ({FAKE_KEY})") == "401: key [redacted] ([redacted])"


def test_other_text_stays(key, monkeypatch):
    monkeypatch.setenv("EMPTY_API_KEY", "")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("REALM_CACHE", "a-folder-name")
    assert redact("a-folder-name holds a model") == "a-folder-name holds a model"


def test_a_key_that_contains_another_goes_whole(key, monkeypatch):
    monkeypatch.setenv("OTHER_TOKEN", f"{FAKE_KEY}-longer")
    assert redact(f"{FAKE_KEY}-longer") == "[redacted]"


def test_written_json_holds_no_key(tmp_path, key):
    write_json(tmp_path / "x.json", {"headers": [f"Bearer {key}"], key: "as a name"})
    text = (tmp_path / "x.json").read_text()
    assert key not in text
    assert read_json(tmp_path / "x.json") == {"headers": ["Bearer [redacted]"], "[redacted]": "as a name"}


@pytest.mark.parametrize("secret", ['pass"word', "back\\slash", "line\nbreak"])
def test_a_key_that_json_escapes_does_not_show_either(tmp_path, monkeypatch, secret):
    monkeypatch.setenv("DB_PASSWORD", secret)
    write_json(tmp_path / "x.json", {"message": f"login failed: {secret}"})
    assert secret not in read_json(tmp_path / "x.json")["message"]


def test_a_key_of_digits_does_not_break_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("PIN_PASSWORD", "123456")
    write_json(tmp_path / "x.json", {"tokens": 1234567})
    assert isinstance(read_json(tmp_path / "x.json"), dict)


# ---------------------------------------------------------------- metrics


def test_metrics_survive_saving(tmp_path):
    metrics = Metrics()
    metrics.add("perplexity", 19.4, ci=(18.0, 21.0), n=40, unit="per token")
    metrics.add("conversations", np.int64(12887), n=12887)
    metrics.add("auc", np.float32(0.5), source=PUBLISHED)
    path = metrics.save(tmp_path)
    assert path == tmp_path / "metrics.json"
    assert Metrics.load(tmp_path).rows() == metrics.rows()
    assert read_json(path)[0] == {
        "name": "perplexity",
        "value": 19.4,
        "ci_low": 18.0,
        "ci_high": 21.0,
        "n": 40,
        "unit": "per token",
        "source": THIS_RUN,
    }


def test_whole_numbers_stay_whole():
    metrics = Metrics()
    assert isinstance(metrics.add("count", np.int64(3)).value, int)
    assert isinstance(metrics.add("share", 1.0).value, float)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), True])
def test_what_is_no_finite_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="metric loss has no finite value"):
        Metrics().add("loss", value)


@pytest.mark.parametrize("ci", [(float("nan"), 1.0), (0.0, float("inf"))])
def test_an_interval_that_is_not_finite_is_refused(ci):
    with pytest.raises(ValueError, match="loss"):
        Metrics().add("loss", 1.0, ci=ci)


def test_a_name_added_twice_holds_the_last_value():
    metrics = Metrics()
    metrics.add("loss", 2.0)
    metrics.add("loss", 1.0)
    assert [m.value for m in metrics] == [1.0]


def test_an_unknown_metric_is_refused_with_those_there_are():
    metrics = Metrics([Metric("loss", 1.0)])
    assert "loss" in metrics
    assert "accuracy" not in metrics
    with pytest.raises(KeyError, match="no metric accuracy; there are: loss"):
        metrics["accuracy"]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("n", 12887), "12,887"),
        (Metric("p", 19.41234), "19.41"),
        (Metric("p", 0.775, 0.71, 0.84), "0.775 [0.71, 0.84]"),
    ],
)
def test_a_metric_reads_well(metric, text):
    assert str(metric) == text


# ---------------------------------------------------------------- manifest


def test_a_manifest_says_what_is_needed_and_nothing_of_the_environment(monkeypatch, key):
    monkeypatch.setattr(manifest_room, "device_name", lambda: "a device")
    monkeypatch.setenv("SOME_SETTING", "value-of-some-setting")
    written = manifest(7, {"dialogue": {"template": "chatml"}}, {"sharegpt": "ab12"})
    assert (written["seed"], written["profile"], written["assets"], written["device"]) == (
        7,
        {"dialogue": {"template": "chatml"}},
        {"sharegpt": "ab12"},
        "a device",
    )
    assert written["versions"]["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written["created"])
    text = json.dumps(written)
    assert "value-of-some-setting" not in text
    assert key not in text
    assert str(Path.home()) not in text


def test_the_commit_is_a_hash_or_nothing():
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", git_commit())


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""


def test_a_package_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(manifest_room, "device_name", lambda: "a device")
    monkeypatch.setattr(manifest_room, "VERSIONED_PACKAGES", ("no-such-package",))
    assert manifest(0, {})["versions"] == {"no-such-package": "not installed"}
