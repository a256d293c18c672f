from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from realm import pins

SCRIPT = Path(pins.__file__)
LOCK = SCRIPT.parents[2] / "requirements.lock"


def installed(monkeypatch, versions: dict[str, str]) -> None:
    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_lock_is_names_and_versions(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("# exact versions\n\nnumpy==2.4.6\n  torch==2.13.0   # the CPU build\n--no-deps\n")
    assert pins.read_lock(lock) == {"numpy": "2.4.6", "torch": "2.13.0"}


def test_the_committed_lock_holds_nothing_else():
    lines = [line.split("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    pinned = [line for line in lines if line]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in pinned)
    assert len(pins.read_lock(LOCK)) == len(pinned) > 20


def test_equal_versions_make_no_difference(monkeypatch):
    installed(monkeypatch, {"numpy": "2.4.6", "torch": "2.13.0+cpu"})
    assert pins.differences({"numpy": "2.4.6", "torch": "2.13.0"}) == []


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ({}, "torch: not installed, the lock file has 2.13.0"),
        ({"torch": "2.13.1+cpu"}, "torch: 2.13.1 is installed, the lock file has 2.13.0"),
    ],
)
def test_a_difference_names_both_versions(monkeypatch, there, line):
    installed(monkeypatch, there)
    assert pins.differences({"torch": "2.13.0"}) == [line]


def test_a_package_installed_from_elsewhere_is_told(monkeypatch, tmp_path):
    other = tmp_path / "realm"
    other.mkdir()
    (other / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "realm")
    monkeypatch.syspath_prepend(tmp_path)
    assert pins.differences({}) == [f"realm-repro: installed from {other.resolve()}, not from {SCRIPT.parent}"]


def run(lock: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, SCRIPT, lock], capture_output=True, text=True)


def test_the_script_accepts_this_environment(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(f"numpy=={importlib.metadata.version('numpy').split('+')[0]}\n")
    done = run(lock)
    assert (done.returncode, done.stdout) == (0, "all pins are satisfied\n")


def test_the_script_runs_before_anything_is_installed(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("numpy==2.4.6\n")
    done = run(lock, "-ES")  # without the folder of installed packages
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "numpy: not installed, the lock file has 2.4.6",
        "realm-repro: not installed; pip install --no-deps --editable .",
    ]
