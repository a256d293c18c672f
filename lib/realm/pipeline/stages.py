"""The stages in order: what each reads and writes, and what every notebook opens with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from realm.core.files import REPOSITORY, ArtefactError, file_sha256, make_folder, write_json
from realm.core.manifest import TRAINED_ON, manifest
from realm.core.metrics import Metrics
from realm.core.profile import Endpoint, Profile, ProfileError, load_profile, run_folder
from realm.models import assets
from realm.pipeline import marks
from realm.pipeline.identity import made_of
from realm.pipeline.surroundings import leave_group

NOTEBOOKS = REPOSITORY / "notebooks"
# What of the training of UserGPT decides how conversations become tokens, before it and after it.
USER_TOKENS = ("usergpt_sft.base_model", "usergpt_sft.learn_ending")


@dataclass(frozen=True)
class Stage:
    """One notebook. ``blocks`` of the profile shape it, whole (``dialogue``) or one value of them
    (``usergpt_sft.learn_ending``); what it reads is named from the run folder on. What it ``writes``, ``keeps`` and
    ``resumes``: as ``marks`` has them, patterns within the stage's own, as what it reads may be."""

    number: str
    notebook: str
    folder: str
    blocks: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    resumes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return NOTEBOOKS / f"{self.notebook}.ipynb"

    def parts(self, profile: Profile) -> dict[str, Any]:
        """Name -> block, or value of one, of all that shapes the stage."""
        return {name: attrgetter(name)(profile) for name in self.blocks}

    def values(self, profile: Profile) -> dict[str, Any]:
        """The same as plain values, for hashes and manifests."""
        parts = self.parts(profile).items()
        return {name: part.model_dump(mode="json") if isinstance(part, BaseModel) else part for name, part in parts}


STAGES = (
    Stage(
        "01",
        "01_data_inspection",
        "01_data",
        ("dialogue", "data_inspection", *USER_TOKENS),
        (),
        ("train.jsonl", "seeds.jsonl", "valid.jsonl", "test.jsonl"),
    ),
    Stage(
        "02",
        "02_usergpt_sft",
        "02_usergpt_sft",
        ("dialogue", "usergpt_sft"),
        ("01_data/train.jsonl", "01_data/valid.jsonl", "01_data/test.jsonl"),
        ("merged", "base_model.txt"),
        resumes=("checkpoints/*", "control_*/*"),
    ),
    Stage(
        "03",
        "03_simulation",
        "03_simulation",
        ("dialogue", "simulation", *USER_TOKENS),
        ("01_data/train.jsonl", "01_data/seeds.jsonl", "01_data/test.jsonl", "02_usergpt_sft/merged"),
        ("realchat.jsonl", "beside/*/realchat.jsonl"),
        keeps=("journal-*", "beside/*/journal-*"),
    ),
    Stage(
        "04",
        "04_realm_sft",
        "04_realm_sft",
        ("dialogue", "realm_sft", "teaching"),
        (
            "01_data/valid.jsonl",
            "01_data/test.jsonl",
            "03_simulation/realchat.jsonl",
            "03_simulation/beside/*/realchat.jsonl",
        ),
        ("merged", "base_model.txt"),
        resumes=("checkpoints/*", "student_*/*"),
    ),
    Stage(
        "05",
        "05_mt_bench",
        "05_mt_bench",
        ("mt_bench",),
        ("04_realm_sft/merged",),
        ("model_answer",),
        keeps=("answers/*.journal*", "judgments/*.journal*"),
    ),
    Stage(
        "06",
        "06_simulator_realism",
        "06_simulator_realism",
        ("simulator_realism", "dialogue.template", *USER_TOKENS[:1], "usergpt_sft.method", "usergpt_sft.compute_dtype"),
        (
            "01_data/train.jsonl",
            "01_data/test.jsonl",
            "02_usergpt_sft/merged",
            "03_simulation/realchat.jsonl",
            "03_simulation/beside/*/realchat.jsonl",
        ),
        ("turns.json",),
        keeps=("openings/*.journal*",),
    ),
)


def stage_by_number(number: str) -> Stage:
    for stage in STAGES:
        if stage.number == number.zfill(2):
            return stage
    raise ProfileError(f"{number}: no such stage; allowed: {', '.join(s.number for s in STAGES)}")


@dataclass
class Run:
    """What every notebook opens with: the profile, the seed, the run folder and its own folder in it."""

    profile: Profile
    seed: int
    folder: Path
    stage: Stage
    metrics: Metrics
    made: dict[str, Any]  # of what, as it was when the notebook was opened
    since: float = field(default_factory=time.monotonic)

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

    def finish(self, asset_names: list[str], trained_on: Sequence[str] = (), left: Sequence[str] = ()) -> Path:
        """Write the manifest, the metrics and, last, the mark that the stage is done; returns the metrics' path.

        Its assets are those named and the GGUF files that the stage's endpoints serve, each with its SHA-256.
        ``trained_on``: artefacts of the run, as ``path`` takes them, that nothing evaluated later may come from.
        ``left``: phrases of what the next run would still do, though nothing changed.
        """
        values = self.stage.values(self.profile)
        served = [e.model for part in self.stage.parts(self.profile).values() for e in _endpoints(part)]
        known = assets.hashes(asset_names) | assets.gguf_hashes(served)
        written = manifest(self.seed, values, known)
        write_json(
            self.out / "manifest.json",
            {**written, TRAINED_ON: {name: file_sha256(self.path(name)) for name in trained_on}},
        )
        path = self.metrics.save(self.out)
        marks.finish(self.stage, self.made, self.folder, round(time.monotonic() - self.since, 1), left)
        return path


def _endpoints(part: Any) -> Iterator[Endpoint]:
    """The endpoints that start a server in a part of a profile."""
    if isinstance(part, Endpoint):
        yield from [part] if part.engine != "api" else []
    elif isinstance(part, BaseModel | dict):
        for _, inner in part if isinstance(part, BaseModel) else part.items():
            yield from _endpoints(inner)


def open_run(number: str, profile: str, run_dir: str | None = None, seed: int | None = None) -> Run:
    """Open a stage: ``run_dir`` defaults to ``runs/<profile>`` in the repository, ``seed`` to the profile's.

    What stands in the stage's folder and no longer fits is set aside first, in one line of words.
    """
    values = load_profile(profile)
    folder = Path(run_dir) if run_dir else run_folder(profile)
    stage = stage_by_number(number)
    make_folder(folder / stage.folder)
    leave_group()
    seed, folder = values.seed if seed is None else seed, folder.resolve()
    made = made_of(stage, values, seed, folder)
    marks.begin(stage, made, folder)
    return Run(values, seed, folder, stage, Metrics(), made)
