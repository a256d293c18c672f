"""Which jobs a run is: one for each stage, and before notebook 03 an array of shards that hold its conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from realm.core.cluster import SHARDS, Resources
from realm.core.profile import Profile
from realm.pipeline import stages
from realm.pipeline.identity import made_of
from realm.pipeline.marks import changes
from realm.pipeline.stages import Stage
from realm.simulation.progress import open_shards

SIMULATION = "03"


@dataclass(frozen=True)
class Job:
    """``words``: of its command, after the interpreter. ``tasks``: shards that an array has, counted from 1; none for a
    plain job."""

    name: str
    words: tuple[str, ...]
    asks: Resources
    tasks: tuple[int, ...] = ()


def ranges(numbers: Sequence[int]) -> str:
    """As Slurm writes them: ``1-3,5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def left_to_do(chosen: Sequence[Stage], profile: Profile, folder: Path) -> list[Stage]:
    """Of ``chosen`` what is not done, or not any more, and what reads from such a stage."""
    left: list[Stage] = []
    for stage in stages.STAGES:
        stale = {s.folder for s in left} & {Path(r).parts[0] for r in stage.reads}
        if stage in chosen and (stale or changes(stage, made_of(stage, profile, profile.seed, folder), folder) != []):
            left.append(stage)
    return left


def jobs_of(left: Sequence[Stage], profile: Profile, name: str, folder: Path) -> list[Job]:
    """The jobs for ``left``, in order; each waits for the one before it. ``name``: the profile's, as it was given.

    A shard whose conversations have all ended is no task of the array, and an array without tasks is no job.
    """
    found: list[Job] = []
    before = stages.STAGES[: [s.number for s in stages.STAGES].index(SIMULATION)]
    unread = bool(left_to_do(before, profile, folder))  # then no conversation of these weights and seeds can be there
    for stage in left:
        if stage.number == SIMULATION and (tasks := _tasks(profile, folder, unread)):
            words = ("-m", "realm.simulation", "--profile", name, "--beside", "--shard")
            found.append(Job(SHARDS, words, profile.cluster.of(SHARDS), tasks))
        words = ("-m", "realm.pipeline", "--profile", name, "--stage", stage.number, "--report")
        found.append(Job(stage.notebook, words, profile.cluster.of(stage.notebook)))
    return found


def _tasks(profile: Profile, folder: Path, unread: bool) -> tuple[int, ...]:
    of = profile.cluster.shards
    return tuple(range(1, of + 1)) if unread else open_shards(profile, profile.seed, folder, of)
