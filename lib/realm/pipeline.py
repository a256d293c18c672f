"""The stages in order: what each reads and writes, what may be skipped, and how a notebook is run headlessly.

``run_all.sh`` calls this once a stage. Notebooks run by hand use the same artefacts, so the two mix freely.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realm import assets, estimate
from realm.profile import SFT, Profile, ProfileError, load_profile, profile_path, run_folder
from realm.provenance import (
    ArtefactError,
    Metrics,
    atomic_path,
    file_sha256,
    manifest,
    read_json,
    redact,
    redacted,
    register_secret,
    text_sha256,
    write_json,
)
from realm.report import REFERENCE_PROFILE, publish, write_report

LIBRARY = Path(__file__).resolve().parent
REPOSITORY = LIBRARY.parents[1]
NOTEBOOKS = REPOSITORY / "notebooks"
HASH_WHOLE_BELOW = 100_000_000  # larger files are known by size and time


@dataclass(frozen=True)
class Stage:
    """One notebook. ``blocks`` of the profile shape it; paths are relative to the run folder."""

    number: str
    notebook: str
    folder: str
    blocks: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


STAGES = (
    Stage(
        "01",
        "01_data_inspection",
        "01_data",
        ("dialogue", "data_inspection"),
        (),
        ("train.jsonl", "valid.jsonl", "test.jsonl"),
    ),
    Stage(
        "02",
        "02_usergpt_sft",
        "02_usergpt_sft",
        ("dialogue", "usergpt_sft"),
        ("01_data/train.jsonl", "01_data/valid.jsonl", "01_data/test.jsonl"),
        ("merged", "base_model.txt"),
    ),
    Stage(
        "03",
        "03_simulation",
        "03_simulation",
        ("dialogue", "simulation"),
        ("01_data/test.jsonl", "02_usergpt_sft/merged"),
        ("realchat.jsonl",),
    ),
    Stage(
        "04",
        "04_realm_sft",
        "04_realm_sft",
        ("dialogue", "realm_sft"),
        ("01_data/valid.jsonl", "01_data/test.jsonl", "03_simulation/realchat.jsonl"),
        ("merged", "base_model.txt"),
    ),
    Stage("05", "05_mt_bench", "05_mt_bench", ("mt_bench",), ("04_realm_sft/merged",), ("answers",)),
    Stage(
        "06",
        "06_simulator_realism",
        "06_simulator_realism",
        ("simulator_realism",),
        ("01_data/test.jsonl", "02_usergpt_sft/merged"),
        ("turns.json",),
    ),
)


class StageFailed(RuntimeError):
    """A notebook that stopped; one line naming stage, cell, error and the notebook to open."""


def stage_by_number(number: str) -> Stage:
    for stage in STAGES:
        if stage.number == number.zfill(2):
            return stage
    raise ProfileError(f"{number}: no such stage; allowed: {', '.join(s.number for s in STAGES)}")


# ---------------------------------------------------------------- what a notebook calls


@dataclass
class Run:
    """What every notebook opens with: the profile, the seed, the run folder and its own folder in it."""

    profile: Profile
    seed: int
    folder: Path
    stage: Stage
    metrics: Metrics

    @property
    def out(self) -> Path:
        return self.folder / self.stage.folder

    def path(self, relative: str) -> Path:
        """An artefact of an earlier stage. Raises ArtefactError naming the stage to run if it is missing."""
        path = self.folder / relative
        if not path.exists():
            writer = next(s for s in STAGES if s.folder == Path(relative).parts[0])
            raise ArtefactError(f"{path}: missing; run notebooks/{writer.notebook}.ipynb first")
        return path

    def finish(self, asset_names: list[str]) -> Path:
        """Write the manifest and, last, the metrics; returns the metrics' path."""
        values = {b: getattr(self.profile, b).model_dump() for b in self.stage.blocks}
        write_json(self.out / "manifest.json", manifest(self.seed, values, assets.hashes(asset_names)))
        return self.metrics.save(self.out)


def open_run(number: str, profile: str, run_dir: str | None = None, seed: int | None = None) -> Run:
    """Open a stage: ``run_dir`` defaults to ``runs/<profile>`` in the repository, ``seed`` to the profile's."""
    values = load_profile(profile)
    folder = Path(run_dir) if run_dir else run_folder(profile)
    stage = stage_by_number(number)
    try:
        (folder / stage.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(
            f"{folder / stage.folder}: cannot write here ({error.strerror}); check permissions"
        ) from error
    return Run(values, values.seed if seed is None else seed, folder.resolve(), stage, Metrics())


# ---------------------------------------------------------------- what may be skipped


def fingerprint(stage: Stage, profile: Profile, seed: int, folder: Path, *, budget: bool = True) -> str:
    """A hash of all that shapes a stage: its profile blocks, seed, code, pinned assets and input files.

    Without ``budget`` it is that of what was begun: a larger one goes on with it, it does not start anew.
    """
    blocks = {b: getattr(profile, b).model_dump() for b in stage.blocks}
    if not budget and "simulation" in blocks:
        del blocks["simulation"]["budget"]
    parts = {
        "blocks": blocks,
        "seed": seed,
        "code": code_hash(NOTEBOOKS / f"{stage.notebook}.ipynb"),
        "inputs": {r: _content(folder / r) for r in (*stage.reads, *_own_files(stage, profile))},
    }
    return text_sha256(json.dumps(parts, sort_keys=True))


def _own_files(stage: Stage, profile: Profile) -> Iterator[str]:
    """Files of the user's that a profile names, as absolute paths."""
    for name in (profile.data_inspection.source, profile.simulation.seed_source):
        if stage.number in ("01", "03") and name not in assets.ASSETS and Path(name).is_file():
            yield str(Path(name).resolve())


def _content(path: Path) -> Any:
    if path.is_dir():
        return {p.name: _content(p) for p in sorted(path.iterdir()) if not p.name.startswith("model-q8_0")}
    if not path.exists():
        return None
    status = path.stat()
    return file_sha256(path) if status.st_size < HASH_WHOLE_BELOW else [status.st_size, status.st_mtime_ns]


def code_hash(notebook: Path) -> str:
    """A hash of the notebook's cells and of every room of the library that it imports, however indirectly."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    rooms: dict[str, str] = {}
    waiting = _rooms_imported(source)
    while waiting:
        room = waiting.pop()
        # Stages do not change because the way they are run or reported does.
        if room not in rooms and room not in ("pipeline", "report"):
            rooms[room] = (LIBRARY / f"{room}.py").read_text(encoding="utf-8")
            if room == "paper":  # its numbers stand beside it
                for path in sorted((LIBRARY / "published").iterdir()):
                    rooms[f"published/{path.name}"] = path.read_text(encoding="utf-8")
            waiting |= _rooms_imported(rooms[room])
    return text_sha256(source + "".join(rooms[r] for r in sorted(rooms)))


def _rooms_imported(source: str) -> set[str]:
    rooms: set[str] = set()
    # A cell's top-level await is no plain Python; the flag lets it be parsed all the same.
    tree = compile(source, "<source>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "realm":
            rooms |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("realm."):
            rooms.add(node.module.split(".")[1])
    return {r for r in rooms if (LIBRARY / f"{r}.py").exists()}


def is_done(stage: Stage, profile: Profile, seed: int, folder: Path) -> bool:
    """Whether the stage finished with this very fingerprint and its artefacts are still there."""
    record = folder / stage.folder / "done.json"
    if not record.exists():
        return False
    artefacts = [folder / stage.folder / w for w in (*stage.writes, "metrics.json", "manifest.json")]
    return all(a.exists() for a in artefacts) and read_json(record)["fingerprint"] == fingerprint(
        stage, profile, seed, folder
    )


# ---------------------------------------------------------------- running one


def run_stage(stage: Stage, profile_name: str, folder: Path, *, force: bool = False) -> float | None:
    """Execute a stage's notebook; returns seconds, or None if it was skipped.

    Raises StageFailed, one line, if a cell fails; the executed notebook up to there is kept.
    """
    profile = load_profile(profile_name)
    if not force and is_done(stage, profile, profile.seed, folder):
        return None
    out = folder / stage.folder
    begun = out / "begun.json"
    identity = {"fingerprint": fingerprint(stage, profile, profile.seed, folder, budget=False)}
    if force or not begun.exists() or read_json(begun) != identity:
        # What other settings or other code left half done must not leak into this run.
        shutil.rmtree(out, ignore_errors=True)
        write_json(begun, identity)
    started = time.monotonic()
    executed = folder / "notebooks" / f"{stage.notebook}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"PROFILE": profile_name, "RUN_DIR": str(folder), "SEED": profile.seed}
    try:
        _execute(NOTEBOOKS / f"{stage.notebook}.ipynb", executed, parameters, stage)
    finally:
        if executed.exists():
            _scrub(executed)
    seconds = round(time.monotonic() - started, 1)
    _to_html(executed)
    whole = fingerprint(stage, profile, profile.seed, folder)
    write_json(out / "done.json", {"fingerprint": whole, "seconds": seconds})
    return seconds


def _execute(source: Path, target: Path, parameters: dict[str, Any], stage: Stage) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            kernel_name="python3",
            cwd=str(Path.cwd()),  # relative paths in a profile mean what they mean to the caller
            progress_bar={"desc": stage.notebook, "unit": "cell"},
            request_save_on_cell_execute=True,
            stderr_file=_RedactedErrors(),
            log_output=False,
        )
    except PapermillExecutionError as error:
        reason = " ".join(redact(str(error.evalue)).split())[:600]
        raise StageFailed(
            f"stage {stage.number} ({stage.notebook}) failed in cell {error.cell_index + 1}: "
            f"{error.ename}: {reason}; "
            f"open {target}, mend it, and call again: it starts at this stage"
        ) from None
    except DeadKernelError:
        raise StageFailed(
            f"stage {stage.number} ({stage.notebook}) failed: its kernel died, for want of memory perhaps; "
            f"open {target} to see how far it came, and call again: it starts at this stage"
        ) from None


class _RedactedErrors:
    """Standard error for what notebooks write there: bars and warnings, without keys."""

    def write(self, text: str) -> int:
        return sys.stderr.write(redact(text))

    def flush(self) -> None:
        sys.stderr.flush()


def _scrub(notebook: Path) -> None:
    """No key stays in an executed notebook, whatever printed it."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    if (clean := redacted(content)) != content:
        write_json(notebook, clean)


def _to_html(notebook: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(embed_images=True).from_filename(str(notebook))
    with atomic_path(notebook.with_suffix(".html")) as temporary:
        temporary.write_text(redact(body), encoding="utf-8")


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One run at a time in a folder. Raises ArtefactError if another is at work or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot write here ({error.strerror}); check permissions and space") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtefactError(f"{folder}: another run is at work here; wait for it or stop it") from None
        yield


# ---------------------------------------------------------------- command line


def describe(stage: Stage, profile: Profile, folder: Path, force: bool) -> str:
    """What ``--dry-run`` says of a stage."""
    blocks = "; ".join(
        f"{b}: " + ", ".join(f"{k}={v}" for k, v in getattr(profile, b).model_dump().items() if not isinstance(v, dict))
        for b in stage.blocks
    )
    state = "would be skipped: done" if not force and is_done(stage, profile, profile.seed, folder) else "would run"
    return (
        f"{stage.number} {stage.notebook}: {state}\n"
        f"   reads   {', '.join(stage.reads) or profile.data_inspection.source}\n"
        f"   writes  {', '.join(f'{stage.folder}/{w}' for w in (*stage.writes, 'metrics.json'))}\n"
        f"   values  {blocks}"
    )


def estimates(stages: list[Stage], profile: Profile, folder: Path, gpus: int | None) -> str:
    """What ``--dry-run`` says of the cost of the training stages among ``stages``; empty if there is none."""
    blocks = [b for s in stages for b in s.blocks if isinstance(getattr(profile, b), SFT)]
    data = folder / "01_data"
    measured = {m.name: m.value for m in Metrics.load(data)} if (data / "metrics.json").exists() else {}
    return estimate.table(profile, blocks, measured, gpus) if blocks else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m realm.pipeline", description="Run or describe stages.")
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    parser.add_argument("--stage", help="01 to 06")
    parser.add_argument("--from", dest="first", default="01", help="with --dry-run: describe from this stage on")
    parser.add_argument("--force", action="store_true", help="run it even if nothing changed")
    parser.add_argument("--dry-run", action="store_true", help="validate, describe and estimate, run nothing")
    parser.add_argument(
        "--gpus", type=int, help="with --dry-run: GPUs to estimate for (default: 4 for a full fine-tune, else 1)"
    )
    parser.add_argument("--report", action="store_true", help="write report.html of the run folder")
    parser.add_argument("--publish", action="store_true", help="make this run a reference in figures/ and README.md")
    given = parser.parse_args(arguments)
    try:
        return _dispatch(given)
    except (ProfileError, ArtefactError, StageFailed, assets.AssetError) as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
    except PermissionError as error:
        print(f"error: {error.filename}: cannot write here ({error.strerror}); check permissions", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"interrupted in stage {given.stage}; what is finished is kept, call again to go on", file=sys.stderr)
        return 130
    return 1


def _dispatch(given: argparse.Namespace) -> int:
    profile, folder = load_profile(given.profile), run_folder(given.profile)
    for endpoint in profile.endpoints():
        register_secret(os.environ.get(endpoint.api_key_env or ""))
    if given.gpus is not None and given.gpus < 1:
        raise ProfileError(f"--gpus {given.gpus}: at least 1")
    if given.dry_run:
        first = stage_by_number(given.first).number
        stages = [stage_by_number(given.stage)] if given.stage else [s for s in STAGES if s.number >= first]
        for stage in stages:
            print(describe(stage, profile, folder, given.force))
        if text := estimates(stages, profile, folder, given.gpus):
            print(text)
        return 0
    with run_lock(folder):
        if given.stage:
            stage = stage_by_number(given.stage)
            seconds = run_stage(stage, given.profile, folder, force=given.force)
            took = "skipped: nothing changed" if seconds is None else f"{seconds:.0f} s"
            print(f"{stage.number} {stage.notebook:24s} {took}", flush=True)
        finished = [_finished(s, folder) for s in STAGES if (folder / s.folder / "done.json").exists()]
        if given.report:
            print(f"report: {write_report(folder, profile_path(given.profile).stem, finished)}")
        if given.publish and folder.name == REFERENCE_PROFILE and len(finished) < len(STAGES):
            missing = ", ".join(s.number for s in STAGES if s.folder not in {f["folder"] for f in finished})
            raise ArtefactError(f"{folder}: stages {missing} are not done; only a whole run becomes the reference")
        if given.publish:
            publish(folder, finished)
    return 0


def _finished(stage: Stage, folder: Path) -> dict[str, Any]:
    seconds = read_json(folder / stage.folder / "done.json")["seconds"]
    return {"number": stage.number, "notebook": stage.notebook, "folder": stage.folder, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
