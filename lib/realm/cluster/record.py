"""What was submitted, and when: one file in the run's folder, which every submission adds to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from realm.cluster.script import FOLDER
from realm.core.files import read_json, write_json


class Submitted(NamedTuple):
    """A job by its name in the profile and its number in Slurm; ``tasks``: of an array."""

    name: str
    number: str
    tasks: tuple[int, ...]

    @property
    def keys(self) -> list[str]:
        """As Slurm lists it, or its tasks."""
        return [f"{self.number}_{task}" for task in self.tasks] or [self.number]


def submissions(folder: Path) -> list[tuple[str, list[Submitted]]]:
    """(when, jobs), the last one last; ``folder``: the run's. Raises ArtefactError for a broken file."""
    path = folder / FOLDER / "jobs.json"
    entries = read_json(path) if path.exists() else []
    return [(e["at"], [Submitted(j["name"], j["job"], tuple(j["tasks"])) for j in e["jobs"]]) for e in entries]


def note_submission(folder: Path, at: str, jobs: Sequence[Submitted]) -> None:
    """The jobs that were submitted at that time. Written anew after each: whatever breaks off a submission, what was
    sent is known."""
    entries = [*((then, sent) for then, sent in submissions(folder) if then != at), (at, jobs)]
    as_json = [
        {"at": then, "jobs": [{"name": j.name, "job": j.number, "tasks": list(j.tasks)} for j in sent]}
        for then, sent in entries
    ]
    write_json(folder / FOLDER / "jobs.json", as_json)


def latest(folder: Path) -> dict[str, Submitted]:
    """Name -> the job of that name that was submitted last."""
    return {job.name: job for _, jobs in submissions(folder) for job in jobs}
