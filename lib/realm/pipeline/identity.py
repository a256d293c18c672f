"""What may be skipped: hashes of all that shapes a stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realm.core.files import file_sha256, read_json, text_sha256
from realm.core.profile import Profile
from realm.models import assets
from realm.pipeline import stages
from realm.pipeline.imports import files_behind
from realm.pipeline.stages import Stage

HASH_WHOLE_BELOW = 100_000_000  # larger files are known by size and time


def fingerprint(stage: Stage, profile: Profile, seed: int, folder: Path, *, budget: bool = True) -> str:
    """A hash of all that shapes a stage: its profile blocks, seed, code, pinned assets and input files.

    Without ``budget`` it is that of what was begun: a larger one goes on with it, it does not start anew.
    """
    blocks = stage.values(profile)
    if not budget and "simulation" in blocks:
        del blocks["simulation"]["budget"]
    parts = {
        "blocks": blocks,
        "seed": seed,
        "code": code_hash(stages.NOTEBOOKS / f"{stage.notebook}.ipynb"),
        "inputs": {r: _content(folder / r) for r in (*stage.reads, *_own_files(stage, profile))},
    }
    return text_sha256(json.dumps(parts, sort_keys=True))


def _own_files(stage: Stage, profile: Profile) -> Iterator[str]:
    """Files and folders of the user's that a profile names, as absolute paths."""
    for name in (profile.data_inspection.source, profile.simulation.seed_source):
        if stage.number in ("01", "03") and name not in assets.ASSETS and Path(name).exists():
            yield str(Path(name).resolve())


def _content(path: Path) -> Any:
    if path.is_dir():
        return {p.name: _content(p) for p in sorted(path.iterdir()) if not p.name.startswith("model-q8_0")}
    if not path.exists():
        return None
    status = path.stat()
    return file_sha256(path) if status.st_size < HASH_WHOLE_BELOW else [status.st_size, status.st_mtime_ns]


def code_hash(notebook: Path) -> str:
    """A hash of the notebook's cells and of every file of the library behind them.

    How stages are run, hashed and reported is not behind them: no notebook imports it. Raises UnknownImport.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    files = {name: file_sha256(path) for name, path in files_behind(source, notebook.name).items()}
    return text_sha256(source + json.dumps(files, sort_keys=True))


def is_done(stage: Stage, profile: Profile, seed: int, folder: Path) -> bool:
    """Whether the stage finished with this very fingerprint and its artefacts are still there."""
    record = folder / stage.folder / "done.json"
    if not record.exists():
        return False
    artefacts = [folder / stage.folder / w for w in (*stage.writes, "metrics.json", "manifest.json")]
    return all(a.exists() for a in artefacts) and read_json(record)["fingerprint"] == fingerprint(
        stage, profile, seed, folder
    )
