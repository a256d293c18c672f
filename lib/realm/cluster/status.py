"""How a run stands: its stages by the marks that they leave, its jobs by what Slurm says, its talks by the journals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from realm.cluster import slurm
from realm.cluster.jobs import ranges
from realm.cluster.record import Submitted, latest, submissions
from realm.cluster.slurm import SlurmError, State
from realm.core.cluster import JOBS, SHARDS
from realm.core.errors import OneLineError
from realm.core.profile import Profile
from realm.pipeline import marks
from realm.pipeline.identity import made_of
from realm.pipeline.stages import STAGES, Stage
from realm.serving.words import in_few
from realm.simulation.progress import Progress, progress

UNKNOWN = "not known to Slurm any more"


def status(profile: Profile, name: str, folder: Path) -> str:
    """The whole account, some lines. ``name``: the profile's, as it was given."""
    sent, known, problem = latest(folder), {}, ""
    try:
        known = slurm.states(job.number for job in sent.values())
    except SlurmError as error:
        problem = f"Slurm does not answer: {error}\n"
    times = [at for at, _ in submissions(folder)]
    head = (
        f"submitted {times[-1]}" + (f", {len(times)} times in all" if times[1:] else "")
        if times
        else "no jobs submitted"
    )
    stages = {stage.notebook: _stage(stage, profile, folder) for stage in STAGES}
    talks = dict(_talks(profile, folder))
    stages[SHARDS] = talks.get("RealChat", "")
    lines = [_line(job, sent.get(job), known, stages[job]) for job in JOBS]
    spent = [f"   {corpus}: {words}" for corpus, words in talks.items()]
    after = _what_now(name, sent, known, stages, bool(problem))
    return "\n".join(
        [f"{folder}: {head}", *lines, *(["conversations"] if spent else []), *spent, problem + after]
    ).strip()


def _line(job: str, sent: Submitted | None, known: Mapping[str, State], stage: str) -> str:
    number = f"job {sent.number}" if sent else ""
    return f"{job:22s} {number:12s} {_job(sent, known) if sent else '':44s} {stage}".rstrip()


def _job(sent: Submitted, known: Mapping[str, State]) -> str:
    if not sent.tasks:
        return _in_words(known.get(sent.number))
    by_word: dict[str, list[int]] = {}
    for task, key in zip(sent.tasks, sent.keys, strict=True):
        by_word.setdefault(known[key].word if key in known else UNKNOWN, []).append(task)
    return "; ".join(f"{len(tasks)} {word} ({ranges(tasks)})" for word, tasks in by_word.items())


def _in_words(state: State | None) -> str:
    if state is None:
        return UNKNOWN
    if state.word == "PENDING":
        return f"PENDING ({state.reason})"
    return f"{state.word} {state.elapsed}" + (f" on {state.node}" if state.node and not state.ended else "")


def _stage(stage: Stage, profile: Profile, folder: Path) -> str:
    changed = (
        marks.changes(stage, made_of(stage, profile, profile.seed, folder), folder)
        if marks.is_done(stage, folder)
        else None
    )
    if changed is None:
        return _training(folder / stage.folder) or "not done"
    return f"stale: {in_few(changed, 2)}" if changed else f"done in {marks.seconds_of(stage, folder):.0f} s"


def _training(out: Path) -> str:
    """How far a training came that is not done."""
    log = out / "train_log.jsonl"
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8").splitlines()[-1:]
    try:
        step = json.loads(lines[0])["step"] if lines else 0
    except ValueError:  # half a line, of a process that is writing or was killed
        return "not done; training"
    kept = [
        int(p.name.rpartition("-")[2])
        for p in (out / "checkpoints").glob("checkpoint-*")
        if (p / "trainer_state.json").exists()
    ]
    return f"not done; training at step {step}" + (f", checkpoint at {max(kept)}" if kept else "")


def _talks(profile: Profile, folder: Path) -> Iterator[tuple[str, str]]:
    if not (folder / "01_data" / marks.DONE).exists():
        return
    for corpus in (None, *profile.corpora()):
        try:
            yield corpus or "RealChat", _in_numbers(progress(profile, profile.seed, folder, corpus))
        except OneLineError as error:
            yield corpus or "RealChat", str(error)


def _in_numbers(found: Progress) -> str:
    failed = f", {found.failed} of them failed" if found.failed else ""
    return f"{found.ended:,} of {found.planned:,} ended{failed}; {found.turns:,} turns; {found.spent}"


def _what_now(
    name: str, sent: Mapping[str, Submitted], known: Mapping[str, State], stages: Mapping[str, str], silent: bool
) -> str:
    busy = sum(not state.ended for state in known.values())
    if silent or busy:
        return f"{busy} jobs and tasks are queued or at work" if busy else ""
    if all(words.startswith("done") for job, words in stages.items() if job != SHARDS):
        return "all stages are done"
    logs = " (logs in slurm/ of that folder)" if sent else ""
    return f"no job is queued or at work{logs}; ./run_all.sh --profile {name} --slurm goes on with what is not done"
