"""Sending a run to Slurm: what is left to do as a chain of jobs, each after the one before it has ended well."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from realm.cluster import slurm
from realm.cluster.jobs import Job, jobs_of, left_to_do, ranges
from realm.cluster.record import Submitted, latest, note_submission
from realm.cluster.script import FOLDER, script_of
from realm.cluster.slurm import SlurmError
from realm.core.errors import note
from realm.core.files import atomic_path, make_folder
from realm.core.profile import Profile, ProfileError, profile_path
from realm.pipeline.checks import NOTE, STOPS, TRAINED, findings
from realm.pipeline.counts import counts_of
from realm.pipeline.stages import STAGES, Stage


def planned(chosen: Sequence[Stage], profile: Profile, name: str, folder: Path) -> list[Job]:
    """The jobs for what of ``chosen`` is left to do. Raises ProfileError for what would stop them; what is missing on
    this machine alone, a GPU say, is told."""
    left = left_to_do(chosen, profile, folder)
    asked = [profile.cluster.of(stage.notebook).gpus or 0 for stage in left if stage.folder in TRAINED]
    counted = not left_to_do(STAGES[:1], profile, folder)
    found = findings(profile, left, lambda: counts_of(profile, folder, counted), max(asked, default=0) or None)
    for finding in found:
        if finding.kind == STOPS:
            raise ProfileError(f"{profile_path(name)}: {finding}")
        where = "" if finding.kind == NOTE else f"{finding.kind}, which need not be so where the job runs: "
        note(f"{where}{finding}")
    return jobs_of(left, profile, name, folder)


def show(jobs: Sequence[Job], profile: Profile, folder: Path) -> None:
    """Every script as it would be submitted, and the command that would."""
    for i, job in enumerate(jobs):
        after = f"--dependency=afterok:<job of {jobs[i - 1].name}> " if i else ""
        print(f"# sbatch --parsable {after}{folder / FOLDER / job.name}.sh\n{script_of(job, profile.cluster, folder)}")


def submit(jobs: Sequence[Job], profile: Profile, folder: Path) -> list[Submitted]:
    """Write the scripts into the run's folder and submit them. Raises SlurmError while jobs of this run are still
    queued or at work, and where Slurm refuses one: those before it stay queued."""
    require_idle(folder)
    make_folder(folder / FOLDER)
    at, sent = time.strftime("%Y-%m-%d %H:%M:%S"), []
    for job in jobs:
        path = folder / FOLDER / f"{job.name}.sh"
        with atomic_path(path) as temporary:
            temporary.write_text(script_of(job, profile.cluster, folder), encoding="utf-8")
        number = slurm.submit(path, [j.number for j in sent[-1:]])
        sent.append(Submitted(job.name, number, job.tasks))
        note_submission(folder, at, sent)
        tasks = f", tasks {ranges(job.tasks)}" if job.tasks else ""
        print(f"{job.name:24s} job {number}{tasks}", flush=True)
    return sent


def require_idle(folder: Path) -> None:
    """Raises SlurmError while jobs of this run are queued or at work: two of them would wait for each other's lock."""
    known = slurm.states(job.number for job in latest(folder).values())
    busy = sorted({name.partition("_")[0] for name, state in known.items() if not state.ended}, key=int)
    if busy:
        raise SlurmError(
            f"{folder}: jobs {', '.join(busy)} of this run are queued or at work; wait for them (--status), or "
            f"`scancel {' '.join(busy)}`, and call again"
        )
