"""The tree holds what it promises: notebooks, pins, README, wings."""

import ast
import graphlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from realm import pins
from realm.core.files import REPOSITORY
from realm.pipeline.stages import STAGES
from realm.reporting import reference, report

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LIBRARY = REPOSITORY / "lib" / "realm"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NO_REFERENCE = pytest.mark.skipif(not reference.REFERENCE_METRICS.exists(), reason="no reference run is published yet")


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

    def test_says_what_will_be_seen_and_how_long_it_takes(self, path):
        assert "**What you will see.**" in source(cells(path, "markdown")[0])
        assert "show.takes(run.stage.folder, PROFILE)" in source(cells(path)[1])

    def test_imports_what_an_idea_needs_beside_it(self, path):
        [opening] = [c for c in cells(path) if "open_run(" in source(c)]
        assert sum(isinstance(n, ast.Import | ast.ImportFrom) for n in syntax(opening).body) <= 3

    def test_ends_with_a_cell_to_change_and_run_again(self, path):
        [words] = [c for c in cells(path, "markdown") if "Change this and run it again" in source(c)]
        everything = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tried = everything[everything.index(words) + 1]
        assert tried["cell_type"] == "code" and tried is everything[-2]
        assert any(name.id.isupper() for n in syntax(tried).body if isinstance(n, ast.Assign) for name in n.targets)

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
    assert {"notebooks/01_data_inspection.ipynb", "lib/realm/", "cluster/job.sh", "run_all.sh"} <= set(paths)
    missing = [p for p in paths if not any((place / p).exists() for place in places)]
    assert [p for p in missing if reference.REFERENCE_METRICS.exists() or not p.startswith("figures/")] == []


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
    for module in re.findall(r"-m ((?:realm|benchmarks)\.[\w.]+\w)", README):
        place = (LIBRARY.parent if module.startswith("realm.") else REPOSITORY) / module.replace(".", "/")
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        assert '__name__ == "__main__"' in file.read_text(encoding="utf-8"), module


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
    joined = json.loads(reference.REFERENCE_METRICS.read_text(encoding="utf-8"))
    assert list(joined) == [s.folder for s in STAGES]
    assert len({stage["manifest"]["seed"] for stage in joined.values()}) == 1
    assert set(report.HEADLINES) <= set(reference.reference_metrics())


@pytest.mark.skipif(
    not reference.reference_metrics_path(reference.LONG_PROFILE).exists(), reason="no longer run is published yet"
)
def test_the_longer_run_has_what_the_readme_quotes():
    assert set(report.LONG_HEADLINES) <= set(reference.reference_metrics(reference.LONG_PROFILE))


def test_every_figure_has_its_numbers():
    drawn = list((REPOSITORY / "figures").rglob("*.png"))
    assert [p.name for p in drawn if not p.with_suffix(".csv").exists()] == []
    assert [p.name for p in drawn if not re.match(r"0[1-6]_\w+\.png$", p.name)] == []


# ---------------------------------------------------------------- the house

FLOORS = (
    ("core",),
    ("conversations", "models"),
    ("dialogue", "serving"),
    ("cleaning", "training", "simulation"),
    ("evaluation",),
    ("reporting",),
    ("pipeline", "chat"),
    ("cluster",),
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
ALONE = {"pins"}  # runs before anything is installed
MODULES = {
    ".".join(p.relative_to(LIBRARY.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in LIBRARY.rglob("*.py")
}


def wing_of(module):
    return module.split(".")[1] if "." in module else ""


def imports_of(path):
    """(module of the library, name taken from it or None), of every import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(a.name, None) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            found |= {(node.module, a.name) for a in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] == "realm"}


def targets(path):
    """The modules that a file imports: of ``from realm.core import files`` it is ``realm.core.files``."""
    return {f"{m}.{name}" if f"{m}.{name}" in MODULES else m for m, name in imports_of(path)}


def test_the_library_is_its_wings():
    entries = {p.stem for p in LIBRARY.iterdir() if not p.name.startswith("__")}
    assert entries == FLOOR.keys() | ALONE
    assert {wing_of(m) for m in MODULES} == entries | {""}


def test_wings_import_downwards_only():
    upwards = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in targets(path)
        if wing_of(module) not in ALONE | {""}
        and wing_of(target) != wing_of(module)
        and FLOOR[wing_of(target)] >= FLOOR[wing_of(module)]
    ]
    assert upwards == []


def test_nothing_goes_in_circles():
    graph = {module: targets(path) - {module} for module, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_names_with_a_leading_underscore_stay_in_their_file():
    strangers = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rooms = {name for m, name in imports_of(path) if f"{m}.{name}" in MODULES}
        strangers += [f"{module}: {m}.{name}" for m, name in imports_of(path) if name and is_private(name)]
        strangers += [
            f"{module}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in rooms
            and is_private(node.attr)
        ]
    assert strangers == []


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_files_and_functions_are_short():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    sources = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    assert [m for m, text in sources.items() if len(text.splitlines()) > 350] == []
    functions = [(m, n) for m, text in sources.items() for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
    assert [f"{m}.{n.name}" for m, n in functions if n.end_lineno - n.lineno + 1 > 60] == []


@pytest.mark.parametrize("wing", [w for w in FLOOR if (LIBRARY / w).is_dir()])
def test_a_wing_opens_with_its_rooms_and_what_it_may_import(wing):
    tree = ast.parse((LIBRARY / wing / "__init__.py").read_text(encoding="utf-8"))
    [docstring] = tree.body  # no re-exports
    named = set(re.findall(r"``(\w+)``", ast.get_docstring(ast.Module([docstring], []))))
    rooms = {p.stem for p in (LIBRARY / wing).glob("*.py")} - {"__init__", "__main__"}
    assert rooms <= named
    assert named - rooms <= FLOOR.keys()


def test_the_readme_and_the_tests_mirror_the_wings():
    folders = {w for w in FLOOR if (LIBRARY / w).is_dir()}
    assert {w for w in folders if f"| `lib/realm/{w}/` |" not in README} == set()
    assert {p.name for p in (REPOSITORY / "tests").iterdir() if p.is_dir() and not p.name.startswith("__")} == folders


def test_a_wheel_holds_every_module_and_what_it_reads(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = tmp_path / "source"  # the build leaves folders behind
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "lib", copy / "lib", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, copy)
    install = ["install", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), str(copy)]
    subprocess.run([*pip, *install], check=True)
    modules = [m for m in MODULES if not m.endswith("__main__")]
    lines = ["import importlib, realm", "print(realm.__file__)", *(f"importlib.import_module({m!r})" for m in modules)]
    words = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    where = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(words, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.strip() == str(tmp_path / "site" / "realm" / "__init__.py")
    data = {p.relative_to(LIBRARY) for p in LIBRARY.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert {d for d in data if not (tmp_path / "site" / "realm" / d).exists()} == set()


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
