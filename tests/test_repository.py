"""The tree holds what it promises: notebooks, pins, README, floors."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import realm
from realm import pins, report
from realm.pipeline import REPOSITORY, STAGES

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LIBRARY = REPOSITORY / "lib" / "realm"
ROOMS = {p.stem for p in LIBRARY.glob("*.py")} - {"__init__"}
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NO_REFERENCE = pytest.mark.skipif(not report.REFERENCE_METRICS.exists(), reason="no reference run is published yet")


# ---------------------------------------------------------------- notebooks


def cells(path, kind="code"):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def syntax(cell):
    return compile(source(cell), "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_there_is_a_notebook_for_every_stage():
    assert [p.stem for p in NOTEBOOKS] == [s.notebook for s in STAGES]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_holds_no_results(self, path):
        assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells(path))

    def test_has_one_parameters_cell(self, path):
        [tagged] = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
        names = {t.id for node in syntax(tagged).body for t in node.targets}
        assert names == {"PROFILE", "RUN_DIR", "SEED"}
        assert tagged == cells(path)[0]

    def test_has_short_cells(self, path):
        assert max(len(source(c).splitlines()) for c in cells(path)) <= 40

    def test_defines_nothing(self, path):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [n.name for c in cells(path) for n in ast.walk(syntax(c)) if isinstance(n, kinds)]

    def test_opens_with_a_claim_and_ends_with_limits(self, path):
        prose = [source(c) for c in cells(path, "markdown")]
        assert prose[0].startswith("# ") and "The paper's claim" in prose[0]
        assert "**Limits.**" in prose[-1]

    def test_imports_the_library_without_tricks(self, path):
        text = "\n".join(source(c) for c in cells(path))
        assert "sys.path" not in text
        assert not re.search(r"^\s*[!%]", text, re.MULTILINE)


# ---------------------------------------------------------------- style


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_is_content(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- pins

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def as_pins(lines):
    found = dict(line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}


def test_every_direct_dependency_is_pinned():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in [*PROJECT["dependencies"], *extras])


def test_the_conda_environment_repeats_the_pins():
    listed = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    [packages] = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    pinned = [line for line in packages if "==" in line]
    assert [line for line in packages if line not in pinned] == ["--editable ."]
    assert as_pins(pinned) == as_pins([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])


def test_the_lock_holds_every_pin_and_nothing_but_versions():
    path = REPOSITORY / "requirements.lock"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    # No address, no hash, no local build such as +cpu.
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    locked = as_pins(lines)
    assert len(locked) == len(lines) == len(pins.read_lock(path))
    wanted = as_pins([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    assert {name: locked.get(name) for name in wanted} == wanted


# ---------------------------------------------------------------- README

CODE = re.findall(r"```.*?```|`[^`\n]+`", README, re.DOTALL)
LINKS = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
# Written by a run, by set-up or by the reader, so not in the tree; 2/8 is a share.
MADE_LATER = ("2/8", "runs/", ".venv/", "~", "mine.yaml", "report.html", "metrics.json", "manifest.json")
FILE = re.compile(
    r"[\w./~<>-]+\.(?:ipynb|py|sh|toml|lock|yml|yaml|cff|md|json|csv|png|html|slurm)\b|[\w.~<>-]+/[\w./<>-]*"
)


def named_paths():
    inside = [word for span in CODE for word in FILE.findall(re.sub(r"https?://\S+", "", span))]
    cleaned = {word.removeprefix("./").rstrip(".") for word in [*inside, *LINKS]}
    return sorted(p for p in cleaned if not p.startswith(MADE_LATER))


def test_every_path_the_readme_names_exists():
    places = (REPOSITORY, REPOSITORY / "profiles")
    paths = named_paths()
    assert {"notebooks/01_data_inspection.ipynb", "lib/realm/", "cluster/run.slurm", "run_all.sh"} <= set(paths)
    missing = [p for p in paths if not any((place / p).exists() for place in places)]
    assert [p for p in missing if report.REFERENCE_METRICS.exists() or not p.startswith("figures/")] == []


def options(text):
    return set(re.findall(r"--[a-z][\w-]*", text))


def help_of(*command):
    return subprocess.run([*command, "--help"], capture_output=True, text=True).stdout


def test_every_option_the_readme_names_exists():
    lines = [line.split("#")[0] for span in CODE for line in span.strip("`").splitlines()]
    chat = [line for line in lines if "realm.chat" in line]
    simulation = [line for line in lines if "realm.simulation" in line]
    own = [line for line in lines if "run_all.sh" in line or line.startswith("--")]
    run_all, chats, shares = (options("\n".join(found)) for found in (own, chat, simulation))
    assert {"--test", "--profile", "--only"} <= run_all
    assert {"--model", "--as", "--base-url"} <= chats
    assert run_all <= options(help_of(REPOSITORY / "run_all.sh"))
    assert chats <= options(help_of(sys.executable, "-m", "realm.chat"))
    assert {"--shard", "--merge"} <= shares <= options(help_of(sys.executable, "-m", "realm.simulation"))


def test_every_module_the_readme_runs_exists():
    for module in re.findall(r"python -m ((?:realm|benchmarks)\.\w+)", README):
        folder = LIBRARY if module.startswith("realm.") else REPOSITORY / "benchmarks"
        text = (folder / f"{module.split('.')[1]}.py").read_text(encoding="utf-8")
        assert '__name__ == "__main__"' in text, module


def test_the_readme_names_every_profile_and_notebook():
    for path in [*NOTEBOOKS, *(REPOSITORY / "profiles").glob("*.yaml")]:
        assert path.name in README


def test_the_readme_has_a_place_for_results():
    assert README.count(report.README_BEGIN) == README.count(report.README_END) == 1
    assert README.index(report.README_BEGIN) < README.index(report.README_END)


@NO_REFERENCE
def test_the_results_are_those_of_the_reference_run():
    shown = README.split(report.README_BEGIN)[1].split(report.README_END)[0]
    assert shown.strip() == report.readme_block().strip()


@NO_REFERENCE
def test_the_reference_run_is_whole():
    joined = json.loads(report.REFERENCE_METRICS.read_text(encoding="utf-8"))
    assert list(joined) == [s.folder for s in STAGES]
    assert len({stage["manifest"]["seed"] for stage in joined.values()}) == 1
    assert set(report.HEADLINES) <= set(report.reference_metrics())


@pytest.mark.skipif(
    not report.reference_metrics_path(report.CONTROLS_PROFILE).exists(), reason="no longer run is published yet"
)
def test_the_longer_run_has_every_control():
    assert set(report.CONTROL_HEADLINES) <= set(report.reference_metrics(report.CONTROLS_PROFILE))


def test_every_figure_has_its_numbers():
    drawn = list((REPOSITORY / "figures").rglob("*.png"))
    assert [p.name for p in drawn if not p.with_suffix(".csv").exists()] == []
    assert [p.name for p in drawn if not re.match(r"0[1-6]_\w+\.png$", p.name)] == []


# ---------------------------------------------------------------- floors


def floors():
    """Room -> floor, as the library's docstring lists them."""
    lines = re.findall(r"^ +(\d)  (.+)$", realm.__doc__, re.MULTILINE)
    return {word: int(floor) for floor, text in lines for word in re.findall(r"\w+", text) if word in ROOMS}


def imports_of(room):
    found = set()
    for node in ast.walk(ast.parse((LIBRARY / f"{room}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "realm":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("realm."):
            found.add(node.module.split(".")[1])
    return found & ROOMS


def test_every_room_has_a_floor():
    assert floors().keys() == ROOMS


def test_rooms_import_from_floors_below():
    place = floors()
    upwards = [
        f"{room} ({place[room]}) imports {other} ({place[other]})"
        for room in ROOMS
        for other in imports_of(room)
        if place[other] >= place[room]
    ]
    assert upwards == []


# ---------------------------------------------------------------- nothing of the machine it was made on


def files_of_the_tree():
    ask = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def test_no_file_names_a_folder_of_this_machine():
    places = [REPOSITORY, Path(sys.prefix), Path.home(), Path(os.environ.get("REALM_CACHE", "~")).expanduser()]
    telling = {str(p).encode() for p in places if len(p.parts) >= 3}
    found = [f"{p.name}: {t.decode()}" for p in files_of_the_tree() for t in telling if t in p.read_bytes()]
    assert found == []
