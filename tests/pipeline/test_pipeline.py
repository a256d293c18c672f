import ast
import contextlib
import dataclasses
import functools
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from realm.core import secrets
from realm.core.files import REPOSITORY, ArtefactError, file_sha256, read_json, write_json
from realm.core.profile import ProfileError, load_profile, run_folder
from realm.core.secrets import redact
from realm.models import assets, weights
from realm.pipeline import commands, identity, imports, marks, runner, stages
from realm.pipeline.commands import main
from realm.pipeline.identity import code_behind, made_of
from realm.pipeline.runner import StageFailed, run_lock, run_stage
from realm.pipeline.stages import NOTEBOOKS, STAGES, Stage, open_run, stage_by_number

KEY = "sk-not-a-real-key-0123456789"
AWKWARD = 'pass"word&<not>real\\0123'
TINY = Stage("01", "01_tiny", "01_data", ("dialogue", "data_inspection"), (), ("artefact.txt",))


@pytest.fixture
def profile():
    return load_profile("smoke")


def write_notebook(folder, *cells, name=TINY.notebook):
    """A notebook whose first code cell is the parameters cell."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    parameters = nbformat.v4.new_code_cell(
        "PROFILE = None\nRUN_DIR = None\nSEED = None", metadata={"tags": ["parameters"]}
    )
    book.cells = [nbformat.v4.new_markdown_cell("# Tiny"), parameters, *map(nbformat.v4.new_code_cell, cells)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A pipeline of one stage with notebooks in a folder of its own, and results in another."""
    monkeypatch.setattr(stages, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(stages, "STAGES", (TINY,))
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "runs"))
    return tmp_path


# ---------------------------------------------------------------- what may be skipped

hashed_once = functools.cache(code_behind)


@pytest.fixture
def same_code(monkeypatch):
    """Where a test changes no code, it is read once for all tests."""
    monkeypatch.setattr(identity, "code_behind", hashed_once)


@pytest.fixture
def house(monkeypatch, tmp_path):
    """A copy of library, notebooks and cluster files that a test may change."""
    monkeypatch.setattr(imports, "LIBRARY", tmp_path / "lib" / "realm")
    monkeypatch.setattr(stages, "NOTEBOOKS", tmp_path / "notebooks")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("lib/realm", "notebooks", "cluster"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


def prints(profile, folder, seed=1):
    return {s.number: made_of(s, profile, seed, folder) for s in STAGES}


def changed(before, after):
    return {number for number in before if before[number] != after[number]}


def with_value(profile, block, **values):
    return profile.model_copy(update={block: getattr(profile, block).model_copy(update=values)})


@pytest.mark.parametrize(
    ("block", "values", "stages"),
    [
        ("dialogue", {"max_length": 300}, {"01", "02", "03", "04"}),
        ("data_inspection", {"test_share": 0.2}, {"01"}),
        ("usergpt_sft", {"learning_rate": 0.5}, {"02"}),
        ("simulation", {"max_rounds": 9}, {"03"}),
        ("realm_sft", {"epochs": 2}, {"04"}),
        ("mt_bench", {"questions": 16}, {"05"}),
        ("simulator_realism", {"repeats": 3}, {"06"}),
    ],
)
@pytest.mark.usefixtures("same_code")
def test_a_profile_block_changes_its_own_stages(profile, tmp_path, block, values, stages):
    other = with_value(profile, block, **values)
    assert changed(prints(profile, tmp_path), prints(other, tmp_path)) == stages


@pytest.mark.usefixtures("same_code")
def test_the_seed_changes_every_stage(profile, tmp_path):
    assert len(changed(prints(profile, tmp_path, 1), prints(profile, tmp_path, 2))) == 6


@pytest.mark.usefixtures("same_code")
def test_the_same_things_give_the_same_fingerprint(profile, tmp_path):
    assert prints(profile, tmp_path) == prints(load_profile("smoke"), tmp_path)


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("01_data/train.jsonl", {"02", "03", "06"}),
        ("01_data/test.jsonl", {"02", "03", "04", "06"}),
        ("01_data/seeds.jsonl", {"03"}),
        ("02_usergpt_sft/merged/model.safetensors", {"03", "06"}),
        ("03_simulation/realchat.jsonl", {"04", "06"}),
        ("04_realm_sft/merged/model.safetensors", {"05"}),
        ("02_usergpt_sft/merged/model-q8_0.gguf", set()),  # written by the stage that reads the folder
    ],
)
@pytest.mark.usefixtures("same_code")
def test_an_input_file_changes_the_stages_that_read_it(profile, tmp_path, path, stages):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).parent.joinpath("config.json").write_text("{}")
    before = prints(profile, tmp_path)
    (tmp_path / path).write_text("one")
    first = prints(profile, tmp_path)
    (tmp_path / path).write_text("two")
    assert changed(before, first) == changed(first, prints(profile, tmp_path)) == stages


@pytest.mark.usefixtures("same_code")
def test_the_users_own_seed_file_counts(profile, tmp_path):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("{}")
    own = with_value(profile, "simulation", seed_source=str(seeds))
    before = prints(own, tmp_path)
    seeds.write_text("{} ")
    assert "03" in changed(before, prints(own, tmp_path))


@pytest.mark.usefixtures("same_code")
def test_the_users_own_folder_counts(profile, tmp_path):
    talks = tmp_path / "copy" / "data" / "talks.jsonl"
    talks.parent.mkdir(parents=True)
    talks.write_text("{}")
    own = with_value(profile, "data_inspection", source=str(tmp_path / "copy"))
    before = prints(own, tmp_path)
    talks.write_text("{} ")
    assert "01" in changed(before, prints(own, tmp_path))


def test_a_code_cell_changes_its_stage_and_a_text_cell_does_not(profile, house):
    before = prints(profile, house)
    path = house / "notebooks" / "02_usergpt_sft.ipynb"
    book = nbformat.read(path, as_version=4)
    next(c for c in book.cells if c.cell_type == "markdown").source += "\nMore words."
    nbformat.write(book, path)
    assert changed(before, prints(profile, house)) == set()
    next(c for c in book.cells if c.cell_type == "code").source += "\nx = 1"
    nbformat.write(book, path)
    assert changed(before, prints(profile, house)) == {"02"}


REALLY_IMPORTED = """
import json, sys
found = {}
for line in sys.stdin:
    name, imports = json.loads(line)
    for module in [m for m in sys.modules if m.split(".")[0] == "realm"]:
        del sys.modules[module]
    exec(imports)
    found[name] = sorted(m for m in sys.modules if m.split(".")[0] == "realm")
print(json.dumps(found))
"""
# Templates and data files, and the module that reads each.
READ_BY = {
    "models/model_card.md.j2": "realm.models.model_card",
    "simulation/data_card.md.j2": "realm.simulation.export",
    "pipeline/kernel.json": "realm.pipeline.lab",
    "reporting/report.html.j2": "realm.reporting.report",
    "evaluation/metric_names.yaml": "realm.evaluation.names",
    "evaluation/published/paper.yaml": "realm.evaluation.published",
    "evaluation/published/mt_bench_gpt4_single.csv": "realm.evaluation.published",
    "../../cluster/fsdp.yaml": "realm.training.launch",
}


def really_imported():
    """Stage -> modules of the library that Python itself holds after all of the notebook's imports."""
    lines = []
    for stage in STAGES:
        book = nbformat.read(REPOSITORY / "notebooks" / f"{stage.notebook}.ipynb", as_version=4)
        cells = (c.source for c in book.cells if c.cell_type == "code")
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        nodes = (node for cell in cells for node in ast.walk(compile(cell, stage.notebook, "exec", flags)))
        found = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        lines.append(json.dumps([stage.number, "\n".join(found)]))
    words = [sys.executable, "-W", "ignore", "-c", REALLY_IMPORTED]
    done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True, check=True)
    return {number: set(modules) for number, modules in json.loads(done.stdout.splitlines()[-1]).items()}


def module_of(path):
    parts = path.relative_to(imports.LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_file_changes_exactly_the_stages_that_import_it(profile, house):
    imported, before = really_imported(), prints(profile, house)
    library = house / "lib" / "realm"
    files = {p: module_of(p) for p in library.rglob("*.py")} | {library / p: m for p, m in READ_BY.items()}
    assert {p.resolve() for p in library.rglob("*") if p.is_file()} <= {p.resolve() for p in files}
    for path, module in files.items():
        text = path.read_bytes()
        path.write_bytes(text + b"\n# changed\n")
        touched = {number for number, modules in imported.items() if module in modules}
        assert changed(before, prints(profile, house)) == touched, path
        path.write_bytes(text)
    used = set().union(*imported.values())
    assert {"realm.conversations.json_stream", "realm.serving.llama_cpp", "realm.core.seeds"} <= used
    assert "realm.pipeline.runner" not in used and "realm.reporting.report" not in used


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from realm.core.fils import redact", "realm.core.fils"),
        ("from realm.core import fils", "realm.core.fils"),
        ("import realm.gone.files", "realm.gone.files"),
        ("from realm import gone", "realm.gone"),
        ("from .files import redact", ".files"),
    ],
)
def test_an_import_that_leads_nowhere_is_refused(profile, house, line, told):
    with (house / "lib" / "realm" / "core" / "seeds.py").open("a") as handle:
        handle.write(f"\n{line}\n")
    with pytest.raises(imports.UnknownImport, match=re.escape("seeds.py: imports ")) as refused:
        prints(profile, house)
    assert told in str(refused.value)


def test_a_value_of_another_block_that_shapes_the_tokens_counts(profile, tmp_path):
    other = with_value(profile, "usergpt_sft", learn_ending=False)
    assert changed(prints(profile, tmp_path), prints(other, tmp_path)) == {"01", "02", "03"}


def finish(stage, profile, folder, seed=1):
    """What a finished stage leaves behind."""
    out = folder / stage.folder
    out.mkdir(parents=True)
    for name in (*stage.writes, "metrics.json", "manifest.json"):
        if "*" not in name:
            (out / name).write_text("[]")
    marks.finish(stage, made_of(stage, profile, seed, folder), folder, 1.5)


def changes(stage, profile, folder, seed=1):
    return marks.changes(stage, made_of(stage, profile, seed, folder), folder)


@pytest.mark.usefixtures("same_code")
def test_a_stage_is_done_while_nothing_changes(profile, tmp_path):
    stage = STAGES[2]
    assert changes(stage, profile, tmp_path) is None
    finish(stage, profile, tmp_path)
    assert changes(stage, profile, tmp_path) == []
    assert changes(stage, profile, tmp_path, seed=2) == ["seed 1 -> 2"]
    other = with_value(profile, "simulation", free=9)
    assert changes(stage, other, tmp_path) == ["profile simulation.free 2 -> 9"]


@pytest.mark.usefixtures("same_code")
def test_a_stage_that_left_something_to_do_is_not_skipped(profile, tmp_path):
    stage, left = STAGES[2], ["2 failed conversations are asked again"]
    finish(stage, profile, tmp_path)
    marks.finish(stage, made_of(stage, profile, 1, tmp_path), tmp_path, 1.5, left)
    assert changes(stage, profile, tmp_path) == left


@pytest.mark.usefixtures("same_code")
def test_a_corpus_beside_realchat_is_of_the_stage_that_wrote_it_and_of_the_one_that_reads_it(profile, tmp_path):
    path = tmp_path / "03_simulation/beside/humans/realchat.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    for stage in STAGES[2:4]:
        (tmp_path / stage.folder).mkdir(exist_ok=True)
        for name in (*stage.writes, "metrics.json", "manifest.json"):
            if "*" not in name:
                (tmp_path / stage.folder / name).write_text("[]")
        marks.finish(stage, made_of(stage, profile, 1, tmp_path), tmp_path, 1.5)
        assert changes(stage, profile, tmp_path) == []
    path.write_text("{ }")
    assert changes(STAGES[2], profile, tmp_path) == ["beside/humans/realchat.jsonl was changed"]
    assert changes(STAGES[3], profile, tmp_path) == ["input 03_simulation/beside/humans/realchat.jsonl"]
    path.unlink()
    assert changes(STAGES[2], profile, tmp_path) == ["beside/humans/realchat.jsonl is gone"]
    assert len(changes(STAGES[3], profile, tmp_path)) == 1


def test_the_manifest_knows_every_gguf_that_the_stage_serves(profile, tmp_path):
    file = tmp_path / "judge.gguf"
    file.write_bytes(b"GGUF, or nearly")
    judge = profile.mt_bench.base.model_copy(update={"model": str(file)})
    base = judge.model_copy(update={"model": "qwen2.5-coder-1.5b"})
    asked = judge.model_copy(update={"engine": "api", "base_url": "http://127.0.0.1:1/v1", "model": "smollm2-135m"})
    block = profile.mt_bench.model_copy(update={"judge": judge, "base": base, "realm": asked})
    run = open_run("05", "smoke", str(tmp_path / "run"))
    run.profile = profile.model_copy(update={"mt_bench": block})
    run.finish(["minilm"])
    known = read_json(tmp_path / "run" / "05_mt_bench" / "manifest.json")["assets"]
    assert known == {
        "minilm": assets.ASSETS["minilm"].sha256,
        "qwen2.5-coder-1.5b": assets.ASSETS["qwen2.5-coder-1.5b"].sha256,
        str(file): file_sha256(file),
    }


@pytest.mark.parametrize("lost", ["realchat.jsonl", "metrics.json", "manifest.json", "done.json"])
@pytest.mark.usefixtures("same_code")
def test_a_stage_without_one_of_its_artefacts_is_not_done(profile, tmp_path, lost):
    finish(STAGES[2], profile, tmp_path)
    (tmp_path / "03_simulation" / lost).unlink()
    assert changes(STAGES[2], profile, tmp_path) != []


@pytest.mark.usefixtures("same_code")
def test_a_stage_whose_artefact_another_run_wrote_is_not_done(profile, tmp_path):
    finish(STAGES[2], profile, tmp_path)
    (tmp_path / "03_simulation" / "realchat.jsonl").write_text("[1]")
    assert changes(STAGES[2], profile, tmp_path) == ["realchat.jsonl was changed"]


def test_the_lock_file_and_local_weights_count_by_content(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "LOCK", tmp_path / "requirements.lock")
    model = tmp_path / "model"
    model.mkdir()
    own = with_value(profile, "usergpt_sft", base_model=str(model))
    own = with_value(own, "simulation", responder=own.simulation.responder.model_copy(update={"model": str(model)}))
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    before = prints(own, tmp_path)
    status = weights.stat()
    weights.write_bytes(b"two")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    second = prints(own, tmp_path)
    assert changed(before, second) == {"01", "02", "03", "06"}
    (tmp_path / "requirements.lock").write_text("torch==2\n")
    assert changed(second, prints(own, tmp_path)) == {s.number for s in STAGES}


def test_large_weights_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setenv("REALM_CACHE", str(tmp_path / "cache"))
    large = tmp_path / "model.safetensors"
    large.write_bytes(b"a" * weights.SMALL)
    reads = []
    monkeypatch.setattr(weights, "file_sha256", lambda path: reads.append(path) or file_sha256(path))
    found = weights.content_sha256(large)
    weights._large_file.cache_clear()  # another process
    assert weights.content_sha256(large) == found == file_sha256(large) and len(reads) == 1
    status = large.stat()
    large.write_bytes(b"b" * weights.SMALL)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.content_sha256(large) == file_sha256(large) != found


# ---------------------------------------------------------------- running, without a kernel


@pytest.fixture
def fake_kernel(monkeypatch, tiny):
    """Stands for the notebook: counts its runs and fails while it is told to."""
    write_notebook(tiny / "notebooks", "pass")
    state = {"runs": 0, "fail": False, "found": [], "words": "said so far"}

    def execute(source, target, parameters, stage):
        state["runs"] += 1
        out = Path(parameters["RUN_DIR"]) / stage.folder
        out.mkdir(parents=True, exist_ok=True)
        state["found"] = sorted(p.name for p in out.iterdir())
        (out / "journal").write_text(state["words"])
        target.write_text(source.read_text())
        if state["fail"]:
            raise StageFailed("stopped in the middle")
        for name in (*stage.writes, "metrics.json"):
            if "*" not in name:
                (out / name).write_text("[]")
        write_json(out / "manifest.json", {"commit": "", "seed": 1, "device": "CPU"})

    monkeypatch.setattr(runner, "_execute", execute)
    return state


def stop_in_the_middle(fake_kernel, folder):
    fake_kernel["fail"] = True
    with pytest.raises(StageFailed):
        run_stage(TINY, "smoke", folder)
    fake_kernel["fail"] = False


def contents(folder):
    """Every file's content, wherever it stands; marks, which are about files, are none."""
    names = (marks.BEGUN, marks.DONE, ".lock")
    return sorted(p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in names)


def aside(folder):
    """Place within the stage -> content, of all that was set aside."""
    files = [p for p in folder.glob("set_aside/*/**/*") if p.is_file()]
    return {"/".join(p.relative_to(folder).parts[2:]): p.read_text() for p in files}


def test_a_second_run_is_skipped_and_force_repeats_it(fake_kernel, tiny):
    assert run_stage(TINY, "smoke", tiny / "out") is not None
    assert run_stage(TINY, "smoke", tiny / "out") is None
    assert fake_kernel["runs"] == 1
    assert run_stage(TINY, "smoke", tiny / "out", force=True) is not None
    assert fake_kernel["found"] == ["begun.json"]
    assert aside(tiny / "out").keys() == {
        "artefact.txt",
        "begun.json",
        "done.json",
        "journal",
        "manifest.json",
        "metrics.json",
    }


def test_an_interrupted_stage_finds_what_it_had_written(fake_kernel, tiny):
    stop_in_the_middle(fake_kernel, tiny / "out")
    assert not (tiny / "out" / "01_data" / "done.json").exists()
    assert run_stage(TINY, "smoke", tiny / "out") is not None
    assert "journal" in fake_kernel["found"]


def test_what_other_code_left_half_done_is_set_aside_and_one_line_says_why(fake_kernel, tiny, capsys):
    stop_in_the_middle(fake_kernel, tiny / "out")
    write_notebook(tiny / "notebooks", "pass  # changed")
    run_stage(TINY, "smoke", tiny / "out")
    assert fake_kernel["found"] == ["begun.json"]
    assert aside(tiny / "out")["journal"] == "said so far"
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "01_data: run anew (code 01_tiny.ipynb)" in line and "set_aside" in line


KEEPING = dataclasses.replace(TINY, keeps=("journal*",))


def test_a_stage_that_is_rerun_takes_its_journal_along(fake_kernel, tiny):
    for force in (False, True):
        run_stage(KEEPING, "smoke", tiny / "out", force=force)
        write_notebook(tiny / "notebooks", f"pass  # changed, {force}")
        run_stage(KEEPING, "smoke", tiny / "out", force=force)
        assert fake_kernel["found"] == ["begun.json", "journal"]


@pytest.mark.parametrize("file", ["training/loss.py", "reporting/figures.py"])
def test_checkpoints_of_the_same_training_stay_and_others_are_set_aside(profile, house, file):
    stage, run = STAGES[1], house / "run"
    checkpoint = run / stage.folder / "checkpoints" / "checkpoint-3" / "adapter.safetensors"
    marks.begin(stage, made_of(stage, profile, 1, run), run)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("hours")
    with (house / "lib" / "realm" / file).open("a") as handle:
        handle.write("\n# changed\n")
    marks.begin(stage, made_of(stage, profile, 1, run), run)
    same = file.startswith("reporting")
    assert checkpoint.exists() == same
    assert ("checkpoints/checkpoint-3/adapter.safetensors" in aside(run)) != same


def test_nothing_on_disk_is_gone_whatever_is_rerun(fake_kernel, tiny):
    folder, seen = tiny / "out", []
    for n in range(6):
        fake_kernel["words"] = f"words {n}"
        write_notebook(tiny / "notebooks", f"pass  # {n}")
        if n % 2:
            stop_in_the_middle(fake_kernel, folder)
        else:
            run_stage(TINY, "smoke", folder, force=n == 4)
        seen += [f"words {n}".encode()]
        write_notebook(tiny / "notebooks", f"pass  # {n}, again")
        run_stage(TINY, "smoke", folder)
        assert set(seen) <= set(contents(folder))


def test_a_changed_notebook_runs_again(fake_kernel, tiny):
    run_stage(TINY, "smoke", tiny / "out")
    write_notebook(tiny / "notebooks", "pass  # changed")
    assert run_stage(TINY, "smoke", tiny / "out") is not None
    assert fake_kernel["runs"] == 2


def test_an_interrupt_is_one_line_and_its_own_exit_code(monkeypatch, fake_kernel, capsys):
    monkeypatch.setattr(commands, "run_stage", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["--profile", "smoke", "--stage", "01"]) == 130
    assert capsys.readouterr().err.startswith("interrupted in stage 01; what is finished is kept")


# ---------------------------------------------------------------- running, with a kernel

GOOD_CELLS = (
    "import os\nfrom realm.pipeline.stages import open_run\nrun = open_run('01', PROFILE, RUN_DIR, SEED)",
    "for name in ('OPENAI_API_KEY', 'SERVICE_PASSWORD'):\n    print(os.environ[name])\nos.environ['OPENAI_API_KEY']",
    "run.metrics.add('answer', 42, unit=os.environ['OPENAI_API_KEY'])\n"
    "(run.out / 'artefact.txt').write_text('done')\n"
    "run.finish([os.environ['OPENAI_API_KEY']])",
)


@dataclass
class Finished:
    codes: list
    printed: list
    folder: Path


def call(*arguments):
    """main's exit code and what it printed on standard output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*arguments])
    return code, output.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny notebook that prints keys, run twice through the command line's entry."""
    place = tmp_path_factory.mktemp("tiny")
    write_notebook(place / "notebooks", *GOOD_CELLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "NOTEBOOKS", place / "notebooks")
        patch.setattr(stages, "STAGES", (TINY,))
        patch.setenv("REALM_RUNS", str(place / "runs"))
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("SERVICE_PASSWORD", AWKWARD)
        results = [call("--profile", "smoke", "--stage", "1", "--report") for _ in range(2)]
    codes, printed = zip(*results, strict=True)
    return Finished(list(codes), list(printed), place / "runs" / "smoke")


def test_a_stage_leaves_notebook_page_metrics_manifest_and_report(finished):
    assert finished.codes == [0, 0]
    for name in ("notebooks/01_tiny.ipynb", "notebooks/01_tiny.html", "report.html"):
        assert (finished.folder / name).stat().st_size > 0
    [metric] = json.loads((finished.folder / "01_data" / "metrics.json").read_text())
    assert (metric["name"], metric["value"]) == ("answer", 42)
    recorded = json.loads((finished.folder / "01_data" / "manifest.json").read_text())
    assert recorded["seed"] == load_profile("smoke").seed
    tokens = {"usergpt_sft.base_model", "usergpt_sft.learn_ending"}
    assert recorded["profile"].keys() == {"dialogue", "data_inspection", *tokens}
    assert recorded["versions"]["torch"] != "not installed"


def test_the_report_names_the_stage_and_its_metric(finished):
    page = (finished.folder / "report.html").read_text()
    assert "01_tiny" in page and "answer" in page and "42" in page
    assert str(finished.folder / "report.html") in finished.printed[0]


def test_the_second_run_is_skipped_and_says_so(finished):
    assert "skipped" not in finished.printed[0]
    assert "01 01_tiny" in finished.printed[1] and "skipped: nothing changed" in finished.printed[1]


def test_a_key_of_any_name_that_the_profile_uses_is_known(tiny, monkeypatch, capsys):
    monkeypatch.setattr(secrets, "_REGISTERED", set())
    monkeypatch.setenv("SERVICE_CREDENTIAL", KEY)
    own = tiny / "own.yaml"
    judge = (
        "judge: {engine: api, model: m, base_url: 'http://x/v1', api_key_env: SERVICE_CREDENTIAL, max_new_tokens: 9}"
    )
    own.write_text((REPOSITORY / "profiles" / "smoke.yaml").read_text().replace("judge: null", judge))
    assert main(["--profile", str(own), "--dry-run"]) == 0
    assert redact(f"key {KEY}") == "key [redacted]"


def test_a_key_that_a_notebook_prints_stays_nowhere(finished):
    files = [p for p in finished.folder.rglob("*") if p.is_file()]
    assert len(files) >= 7
    assert [p.name for p in files if KEY.encode() in p.read_bytes()] == []
    assert "[redacted]" in (finished.folder / "notebooks" / "01_tiny.ipynb").read_text()
    assert "[redacted]" in (finished.folder / "notebooks" / "01_tiny.html").read_text()


def test_a_password_with_quotes_stays_nowhere(finished):
    book = nbformat.read(finished.folder / "notebooks" / "01_tiny.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for c in book.cells for o in c.get("outputs", []))
    assert AWKWARD not in printed
    assert html.escape(AWKWARD) not in (finished.folder / "notebooks" / "01_tiny.html").read_text()


@dataclass
class Failed:
    code: int
    shown: str
    executed: Path


def call_failing(place):
    """main's exit code and what it printed on standard error, for the notebook in ``place``."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(["--profile", "smoke", "--stage", "01"])
    return Failed(code, errors.getvalue(), place / "runs" / "smoke" / "notebooks" / "01_tiny.ipynb")


BAD_CELL = (
    "import os, sys\n"
    "print('using', os.environ['OPENAI_API_KEY'], file=sys.stderr)\n"
    "raise ValueError('mend\\nme, ' + os.environ['OPENAI_API_KEY'])"
)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A tiny notebook whose last cell shows a key and fails."""
    place = tmp_path_factory.mktemp("failed")
    write_notebook(place / "notebooks", "x = 1", BAD_CELL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "NOTEBOOKS", place / "notebooks")
        patch.setattr(stages, "STAGES", (TINY,))
        patch.setenv("REALM_RUNS", str(place / "runs"))
        patch.setenv("OPENAI_API_KEY", KEY)
        return call_failing(place)


def message_of(failed):
    return failed.shown[failed.shown.index("error: ") :].strip()


def test_a_failing_cell_is_named_with_stage_error_and_file(failed):
    assert failed.code == 1
    message = message_of(failed)
    assert re.search(r"stage 01 \(01_tiny\) failed in cell \d+: ValueError: mend me, \[redacted\]", message)
    assert str(failed.executed) in message
    assert "Traceback" not in failed.shown
    assert not (failed.executed.parents[1] / "01_data" / "done.json").exists()


def test_a_failed_notebook_is_kept_without_the_key(failed):
    text = failed.executed.read_text()
    assert "ValueError" in text and "[redacted]" in text
    assert KEY not in text and KEY not in message_of(failed)


def test_a_failing_cell_is_one_line(failed):
    assert len(message_of(failed).splitlines()) == 1


def test_a_key_on_standard_error_is_not_passed_on(failed):
    assert "using" in failed.shown
    assert KEY not in failed.shown


def test_a_kernel_that_dies_is_one_line(tiny):
    write_notebook(tiny / "notebooks", "import os\nos._exit(9)")
    failed = call_failing(tiny)
    assert failed.code == 1
    assert message_of(failed).startswith("error: stage 01 (01_tiny) failed")
    assert str(failed.executed) in message_of(failed) and "\n" not in message_of(failed)


@pytest.fixture
def own_profile(tiny, monkeypatch):
    """A profile and a data file of the user's, beside each other, and the user is there too."""
    place = tiny / "work"
    place.mkdir()
    values = (REPOSITORY / "profiles" / "smoke.yaml").read_text()
    (place / "mine.yaml").write_text(values.replace("source: sharegpt", "source: talks.jsonl"))
    (place / "talks.jsonl").write_text("{}\n")
    monkeypatch.chdir(place)
    return "mine.yaml"


def test_profile_and_data_may_be_given_by_relative_paths(tiny, own_profile):
    cell = (
        "from realm.models import assets\nfrom realm.pipeline.stages import open_run\n"
        "run = open_run('01', PROFILE, RUN_DIR, SEED)\n"
        "with open(assets.data(run.profile.data_inspection.source)) as handle:\n    assert handle.read()"
    )
    write_notebook(tiny / "notebooks", cell)
    assert main(["--profile", own_profile, "--stage", "01"]) == 0


# ---------------------------------------------------------------- where results go, and who may write there


def test_results_go_to_runs_in_the_repository(monkeypatch):
    monkeypatch.delenv("REALM_RUNS", raising=False)
    assert run_folder("smoke") == REPOSITORY / "runs" / "smoke"


def test_realm_runs_moves_the_results(monkeypatch, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "elsewhere"))
    assert run_folder("smoke") == tmp_path / "elsewhere" / "smoke"
    own = tmp_path / "mine.yaml"
    own.write_text((REPOSITORY / "profiles" / "smoke.yaml").read_text())
    assert run_folder(str(own)) == tmp_path / "elsewhere" / "mine"
    run = open_run("03", "smoke")
    assert run.out == tmp_path / "elsewhere" / "smoke" / "03_simulation"
    assert run.out.is_dir()


@pytest.mark.parametrize("arguments", [["--stage", "01"], ["--report"]])
def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, capsys, arguments):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "file" / "runs"))
    assert main(["--profile", "smoke", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith(f"error: {tmp_path / 'file' / 'runs' / 'smoke'}: cannot write here")


def test_a_notebook_names_a_folder_it_cannot_write(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtefactError, match="cannot write here"):
        open_run("01", "smoke", str(tmp_path / "file" / "run"))


def test_an_artefact_that_is_missing_names_the_notebook_to_run(tmp_path):
    run = open_run("04", "smoke", str(tmp_path))
    with pytest.raises(ArtefactError, match=r"realchat\.jsonl: missing; run notebooks/03_simulation\.ipynb first"):
        run.path("03_simulation/realchat.jsonl")


def test_one_run_at_a_time_in_a_folder(tmp_path):
    with run_lock(tmp_path / "run"):
        with pytest.raises(ArtefactError, match="another run is at work here"), run_lock(tmp_path / "run"):
            pytest.fail("the lock was given twice")
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path / "run"):
        pass  # free again


def test_a_second_process_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    command = [sys.executable, "-m", "realm.pipeline", "--profile", "smoke", "--stage", "01"]
    with run_lock(tmp_path / "smoke"):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {tmp_path / 'smoke'}: another run is at work here; wait for it or stop it"


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", ["smoke", "cpu", "cpu-long", "gpu", "paper"])
@pytest.mark.usefixtures("same_code")
def test_a_dry_run_describes_every_stage(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    assert main(["--profile", name, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    profile = load_profile(name)
    for stage in STAGES:
        assert f"{stage.number} {stage.notebook}: would run" in shown
        assert f"{stage.folder}/metrics.json" in shown
        assert all(name in shown for name in stage.reads)
    assert f"learning_rate={profile.usergpt_sft.learning_rate}" in shown
    assert f"max_length={profile.dialogue.max_length}" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("same_code")
def test_a_dry_run_says_what_would_be_skipped(profile, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    finish(STAGES[0], profile, tmp_path / "smoke", seed=profile.seed)
    monkeypatch.setattr(commands, "check", lambda *_: [])  # there are no seeds in what stands for stage 01
    assert main(["--profile", "smoke", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "01 01_data_inspection: would be skipped: done" in shown
    assert shown.count("would run") == 5
    assert main(["--profile", "smoke", "--dry-run", "--force"]) == 0
    assert "would be skipped" not in capsys.readouterr().out


def test_a_dry_run_of_one_stage(capsys):
    assert main(["--profile", "smoke", "--dry-run", "--stage", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("03 03_simulation") and "01_data_inspection" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "smoke", "--stage", "07"], "07: no such stage; allowed: 01, 02, 03, 04, 05, 06"),
        (["--profile", "laptop"], "laptop: no such profile; there are "),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    assert main([*arguments, "--dry-run"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {words}")
    assert shown.count("\n") == 1


def test_stages_are_found_by_number():
    assert stage_by_number("3") is stage_by_number("03") is STAGES[2]
    with pytest.raises(ProfileError, match="no such stage"):
        stage_by_number("7")


def test_every_stage_reads_what_an_earlier_one_writes():
    written = set()
    for stage in STAGES:
        assert set(stage.reads) <= written
        written |= {f"{stage.folder}/{w}" for w in stage.writes}
        assert (NOTEBOOKS / f"{stage.notebook}.ipynb").exists()


# ---------------------------------------------------------------- stale, tidy, whose folder


@pytest.fixture
def two_stages(monkeypatch, tiny, fake_kernel):
    """A second stage that reads what the first writes; both were run."""
    second = Stage("02", "02_tiny", "02_next", ("usergpt_sft",), ("01_data/artefact.txt",), ("more.txt",))
    monkeypatch.setattr(stages, "STAGES", (TINY, second))
    write_notebook(tiny / "notebooks", "pass", name=second.notebook)
    assert main(["--profile", "smoke", "--all", "--report"]) == 0
    return tiny


def page(place):
    return (place / "runs" / "smoke" / "report.html").read_text()


def test_a_report_marks_what_is_stale_and_what_was_made_from_it(two_stages, capsys):
    assert 'class="stale"' not in page(two_stages)
    write_notebook(two_stages / "notebooks", "pass  # changed")
    capsys.readouterr()
    assert main(["--profile", "smoke", "--report"]) == 0
    assert page(two_stages).count('<span class="stale">stale</span>') == 2
    assert "code 01_tiny.ipynb" in page(two_stages) and "made from stage 01, which is stale" in page(two_stages)
    assert "note: stage 01 is stale in the report: code 01_tiny.ipynb" in capsys.readouterr().err
    assert main(["--profile", "smoke", "--all", "--report"]) == 0
    assert 'class="stale"' not in page(two_stages)


def test_a_stale_stage_is_not_published(two_stages, monkeypatch, capsys):
    published = []
    monkeypatch.setattr(commands, "publish", lambda *given: published.append(given))
    write_notebook(two_stages / "notebooks", "pass  # changed")
    assert main(["--profile", "smoke", "--publish"]) == 1
    assert re.search(r"error: .*not published, stages are stale: 01 \(code 01_tiny.ipynb\)", capsys.readouterr().err)
    assert published == []
    assert main(["--profile", "smoke", "--all", "--publish"]) == 0
    assert len(published) == 1


def test_tidy_lists_and_removes_after_a_yes_alone(two_stages, capsys, monkeypatch):
    assert main(["--profile", "smoke", "--tidy"]) == 0
    assert "nothing was set aside" in capsys.readouterr().out
    assert main(["--profile", "smoke", "--all", "--force"]) == 0
    place = two_stages / "runs" / "smoke" / "set_aside"
    kept = sorted(p.name for p in place.iterdir())
    assert len(kept) == 2
    capsys.readouterr()
    for answer in (None, "", "n"):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        if answer is not None:
            monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
            monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(["--profile", "smoke", "--tidy"]) == 0
        shown = capsys.readouterr().out
        assert all(f"bytes  {place / name}" in shown or f"kB  {place / name}" in shown for name in kept)
        assert sorted(p.name for p in place.iterdir()) == kept
    assert main(["--profile", "smoke", "--tidy", "--yes"]) == 0
    assert list(place.iterdir()) == []
    assert (two_stages / "runs" / "smoke" / "02_next" / "more.txt").exists()


def test_yes_goes_with_tidy_alone(tiny, capsys):
    assert main(["--profile", "smoke", "--yes"]) == 1
    assert capsys.readouterr().err == "error: --yes: goes with --tidy alone\n"


def test_a_profile_of_the_users_does_not_land_in_the_run_of_the_shipped_one(monkeypatch, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "runs"))
    own = tmp_path / "cpu.yaml"
    shutil.copy(REPOSITORY / "profiles" / "cpu.yaml", own)
    shipped = REPOSITORY / "profiles" / "cpu.yaml"
    assert run_folder("cpu") == run_folder(str(shipped)) == tmp_path / "runs" / "cpu"
    assert run_folder(str(own)) == tmp_path / "runs" / "cpu-own"
    monkeypatch.chdir(tmp_path)
    assert run_folder("cpu.yaml") == tmp_path / "runs" / "cpu-own"
    monkeypatch.chdir(REPOSITORY)
    assert run_folder("profiles/cpu.yaml") == tmp_path / "runs" / "cpu"
