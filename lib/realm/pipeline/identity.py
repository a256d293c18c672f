"""May this stage be skipped? What it is made of: all that shapes it, by name, each with a hash or a value.

The other question, whether a journal belongs to these words, is ``simulation.identity``'s and ``serving.words``'s, on
lower floors: who keeps answers is run without the pipeline too, and wings import downwards only. Nothing is deleted for
either; what becomes of a stage that may not be skipped is in ``marks``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from realm.core.files import REPOSITORY, file_sha256, matching, text_sha256
from realm.core.profile import SFT, Endpoint, Profile
from realm.models import assets
from realm.models.weights import content_sha256, weights_of
from realm.pipeline.imports import files_behind
from realm.serving.words import flat

LOCK = REPOSITORY / "requirements.lock"
TRAINING = "import realm.training.launch"  # what decides whether a checkpoint may be gone on with


class Made(Protocol):
    """What is asked of a stage."""

    number: str
    reads: tuple[str, ...]

    @property
    def path(self) -> Path: ...

    def parts(self, profile: Profile) -> dict[str, Any]: ...

    def values(self, profile: Profile) -> dict[str, Any]: ...


def made_of(stage: Made, profile: Profile, seed: int, folder: Path) -> dict[str, Any]:
    """Name -> value or hash, of all that shapes a stage: profile values, seed, code with templates and data files, the
    lock file, input files, and the weights that it reads. ``folder``: the run's. Raises UnknownImport."""
    inputs = (*(r for r in stage.reads if "*" not in r), *matching(folder, (r for r in stage.reads if "*" in r)))
    inputs += (*_own_files(stage, profile),)
    return {
        "seed": seed,
        **{f"profile {k}": v for k, v in flat(json.loads(json.dumps(stage.values(profile)))).items()},
        **{f"code {name}": found for name, found in code_behind(stage.path).items()},
        "requirements.lock": content_sha256(LOCK),
        **{f"input {r}": content_sha256(folder / r) for r in inputs},
        **{f"weights {name}": weights_of(name, folder) for name in _models(stage, profile)},
    }


def _own_files(stage: Made, profile: Profile) -> Iterator[str]:
    """Files and folders of the user's that a profile names, as absolute paths."""
    seeds = [config.seed_source for config in (profile.simulation, *profile.corpora().values())]
    for name in dict.fromkeys([profile.data_inspection.source, *seeds]):
        if stage.number in ("01", "03") and name not in assets.ASSETS and Path(name).exists():
            yield str(Path(name).resolve())


def _models(stage: Made, profile: Profile) -> list[str]:
    """The models that a stage loads or serves on this machine."""
    names: list[str] = []
    for key, part in stage.parts(profile).items():
        names += _models_in(part)
        if key.rpartition(".")[2] == "base_model":
            names.append(part)
    return list(dict.fromkeys(names))


def _models_in(block: Any) -> Iterator[str]:
    if isinstance(block, Endpoint):
        if block.engine != "api":
            yield block.model
        return
    if isinstance(block, SFT):
        yield block.base_model
    if isinstance(block, dict):
        for value in block.values():
            yield from _models_in(value)
    elif hasattr(type(block), "model_fields"):
        for name in type(block).model_fields:
            if name == "embedder":
                yield block.embedder
            yield from _models_in(getattr(block, name))


def code_behind(notebook: Path) -> dict[str, str]:
    """Name -> hash, of a notebook's cells and of every file of the library behind them. Raises UnknownImport."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    files = {name: file_sha256(path) for name, path in sorted(files_behind(source, notebook.name).items())}
    return {notebook.name: text_sha256(source), **files}


def of_training(made: dict[str, Any]) -> dict[str, Any]:
    """The part of ``made`` that decides what a checkpoint of training is worth, besides rows and settings, which it
    notes itself: the code behind training, the libraries, and the weights that it started from."""
    behind = {f"code {name}" for name in files_behind(TRAINING, "training")}
    return {k: v for k, v in made.items() if k in behind or k == "requirements.lock" or k.startswith("weights ")}
