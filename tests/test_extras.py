"""Everything that can be installed can be: the resolver is asked about every extra and about serving. Nothing is
installed or downloaded but pip itself, in a version that reads metadata alone."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from realm.core.files import REPOSITORY

PIP = "pip==26.3"  # older ones download every wheel for a dry run
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SERVING = REPOSITORY / "cluster" / "serving.txt"
LOCK = REPOSITORY / "requirements.lock"


@pytest.fixture(scope="module")
def resolve(tmp_path_factory):
    """(requirements as lines, constraints or None) -> {package: version}, or the resolver's last words."""
    folder = tmp_path_factory.mktemp("resolver")
    quiet = ["--quiet", "--disable-pip-version-check"]
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(folder / "pip"), PIP],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        reason = (fetched.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no package index can be asked: {reason}")

    def ask(lines, constraints=None):
        (folder / "wanted.txt").write_text("\n".join(lines))
        words = ["install", *quiet, "--dry-run", "--ignore-installed", "--report", str(folder / "report.json")]
        words += ["-r", str(folder / "wanted.txt"), *(["-c", str(constraints)] if constraints else [])]
        found = {**os.environ, "PYTHONPATH": str(folder / "pip")}
        done = subprocess.run([sys.executable, "-m", "pip", *words], env=found, capture_output=True, text=True)
        if done.returncode:
            return [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        installed = json.loads((folder / "report.json").read_text(encoding="utf-8"))["install"]
        return {normal(i["metadata"]["name"]): i["metadata"]["version"].split("+")[0] for i in installed}

    return ask


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(lines):
    return {normal(n): v for n, v in (line.split("==") for line in lines if line and not line.startswith("#"))}


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_an_extra_resolves_beside_all_that_is_locked(resolve, extra):
    found = resolve(EXTRAS[extra], LOCK)
    assert isinstance(found, dict), found
    assert pins_of(EXTRAS[extra]).items() <= found.items()


def test_the_resolver_tells_an_extra_that_does_not_resolve(resolve):
    """What the extra for GPUs was: vllm beside the pins of training."""
    serving = next(line for line in SERVING.read_text(encoding="utf-8").splitlines() if line.startswith("vllm=="))
    found = resolve([serving], LOCK)
    assert isinstance(found, list) and any("conflict" in line.lower() for line in found), found


def test_the_serving_environment_resolves_to_its_own_pins_and_nothing_else(resolve):
    lines = SERVING.read_text(encoding="utf-8").splitlines()
    found = resolve(lines)
    assert isinstance(found, dict), found
    assert found.items() <= pins_of(lines).items()
    assert "vllm" in found


# ---------------------------------------------------------------- what texts advise

ADVICE = re.compile(r"pip3? install[^\n]*\brealm(?:-repro)?\b", re.IGNORECASE)


def texts():
    ask = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    kinds = (".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".sh", ".slurm", ".txt", ".cff", ".j2")
    return [path for name in done.stdout.split("\0") if name.endswith(kinds) and (path := REPOSITORY / name).is_file()]


def test_no_text_advises_installing_this_name_from_an_index():
    """Nobody here owns the name there."""
    found = [f"{p.name}: {m}" for p in texts() if p.name != "test_extras.py" for m in ADVICE.findall(p.read_text())]
    assert found == []
    assert ADVICE.search("pip install 'realm-repro[gpu]'") and not ADVICE.search("pip install --editable .")
