"""The command line of the pipeline: run, describe and estimate stages.

``run_all.sh`` calls this once a stage. Notebooks run by hand use the same artefacts, so the two mix freely.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from realm.core.errors import exit_code, note
from realm.core.files import ArtefactError
from realm.core.metrics import Metrics
from realm.core.profile import SFT, Profile, ProfileError, profile_and_folder, profile_path
from realm.models import assets, estimate
from realm.pipeline import marks, stages
from realm.pipeline.checks import HERE, STOPS, Finding, findings
from realm.pipeline.counts import counts_of
from realm.pipeline.identity import made_of
from realm.pipeline.runner import run_lock, run_stage
from realm.pipeline.stages import Stage, stage_by_number
from realm.pipeline.tidy import tidy
from realm.reporting import full_scale
from realm.reporting.reference import REFERENCE_PROFILE
from realm.reporting.report import publish, write_report
from realm.serving.words import in_few

CHECKED = "checks of counts, lengths, memory, keys and programs; found:"


def describe(stage: Stage, profile: Profile, folder: Path, force: bool) -> str:
    """What ``--dry-run`` says of a stage."""
    blocks = "; ".join(
        f"{name}: " + ", ".join(f"{k}={v}" for k, v in values.items() if not isinstance(v, dict))
        if isinstance(values, dict)
        else f"{name}={values}"
        for name, values in stage.values(profile).items()
    )
    changed = None if force else _changes(stage, profile, folder)
    if changed is None:
        state = "would run"
    else:
        state = f"would run again ({in_few(changed)})" if changed else "would be skipped: done"
    return (
        f"{stage.number} {stage.notebook}: {state}\n"
        f"   reads   {', '.join(stage.reads) or profile.data_inspection.source}\n"
        f"   writes  {', '.join(f'{stage.folder}/{w}' for w in (*stage.writes, 'metrics.json'))}\n"
        f"   values  {blocks}"
    )


def _changes(stage: Stage, profile: Profile, folder: Path) -> list[str] | None:
    """As ``marks.changes``; what was never finished needs no reading of all that it is made of."""
    if not marks.is_done(stage, folder):
        return None
    return marks.changes(stage, made_of(stage, profile, profile.seed, folder), folder)


def estimates(chosen: list[Stage], profile: Profile, folder: Path, gpus: int | None) -> str:
    """What ``--dry-run`` says of the cost of the training stages among ``chosen``; empty if there is none."""
    blocks = [b for s in chosen for b, values in s.parts(profile).items() if isinstance(values, SFT)]
    data = folder / "01_data"
    measured = {m.name: m.value for m in Metrics.load(data)} if (data / "metrics.json").exists() else {}
    return estimate.table(profile, blocks, measured, gpus) if blocks else ""


def check(chosen: list[Stage], given: argparse.Namespace, profile: Profile, folder: Path) -> list[Finding]:
    """What would stop those of ``chosen`` that are not done. Data are counted for a dry run alone: a run itself counts
    them in notebook 01, and is checked again after that."""
    left = [s for s in chosen if given.force or _changes(s, profile, folder) != []]
    first = stages.STAGES[0]
    counted = _changes(first, profile, folder) == []
    count = lambda: counts_of(profile, folder, counted) if counted or given.dry_run else None  # noqa: E731
    return findings(profile, left, count, given.gpus)


def refuse(found: list[Finding], profile: str, kinds: tuple[str, ...]) -> None:
    """Raise ProfileError with the first of the findings of these ``kinds``, if there is one."""
    stops = [f for f in found if f.kind in kinds]
    if stops:
        more = f" (and {len(stops) - 1} more; see --dry-run)" if len(stops) > 1 else ""
        raise ProfileError(f"{profile_path(profile)}: {stops[0]}{more}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m realm.pipeline", description="Run or describe stages.")
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stage", help="01 to 06")
    what.add_argument("--all", action="store_true", help="run the stages in order")
    parser.add_argument("--from", dest="first", default="01", help="with --all, --dry-run, --check: from this stage")
    parser.add_argument("--force", action="store_true", help="run it even if nothing changed")
    parser.add_argument("--dry-run", action="store_true", help="validate, describe, estimate and check, run nothing")
    parser.add_argument("--check", action="store_true", help="end with an error if something would stop the run here")
    parser.add_argument(
        "--gpus", type=int, help="with --dry-run: GPUs to estimate for (default: 4 for a full fine-tune, else 1)"
    )
    parser.add_argument("--report", action="store_true", help="write report.html of the run folder")
    parser.add_argument("--publish", action="store_true", help="make this run a reference in figures/ and README.md")
    parser.add_argument("--tidy", action="store_true", help="list what was set aside; remove it after a yes")
    parser.add_argument("--yes", action="store_true", help="with --tidy: remove it without asking")
    given = parser.parse_args(arguments)
    where = lambda: f"interrupted in stage {given.stage}" if given.stage else "interrupted"  # noqa: E731
    return exit_code(lambda: _dispatch(given), lambda: f"{where()}; what is finished is kept, call again to go on")


def _dispatch(given: argparse.Namespace) -> None:
    profile, folder = profile_and_folder(given.profile)
    if given.gpus is not None and given.gpus < 1:
        raise ProfileError(f"--gpus {given.gpus}: at least 1")
    if given.yes and not given.tidy:
        raise ProfileError("--yes: goes with --tidy alone")
    first = stage_by_number(given.first).number
    later = [s for s in stages.STAGES if s.number >= first]
    if given.dry_run or given.check:
        chosen = [stage_by_number(given.stage)] if given.stage else later
        if given.check:
            return refuse(check(chosen, given, profile, folder), given.profile, (STOPS, HERE))
        for stage in chosen:
            print(describe(stage, profile, folder, given.force))
        print(assets.to_fetch(profile))
        found = check(chosen, given, profile, folder)
        print("\n".join([CHECKED, *(f"   {f.kind}: {f}" for f in found)]) if found else f"{CHECKED} nothing")
        if not given.stage and (text := full_scale.dry_run(profile, given.gpus)):
            print(text)
        if text := estimates(chosen, profile, folder, given.gpus):
            print(text)
        return refuse(found, given.profile, (STOPS,))
    chosen = [stage_by_number(given.stage)] if given.stage else later if given.all else []
    with run_lock(folder):
        if given.tidy:
            tidy(folder, yes=given.yes)
            return
        for stage in chosen:
            given.stage = stage.number
            seconds = run_stage(stage, given.profile, folder, force=given.force)
            took = "skipped: nothing changed" if seconds is None else f"{seconds:.0f} s"
            print(f"{stage.number} {stage.notebook:24s} {took}", flush=True)
            if given.report:
                _report(profile, folder)
            if given.all and stage is stages.STAGES[0]:  # now against the sessions that are there
                refuse(check(later[1:], given, profile, folder), given.profile, (STOPS, HERE))
        if given.report and not chosen:
            _report(profile, folder)
        if given.publish:
            _publish(profile, folder)


def _report(profile: Profile, folder: Path) -> None:
    finished = finished_stages(profile, folder)
    print(f"report: {write_report(folder, folder.name, finished)}", flush=True)
    for stage in finished:
        if stage["stale"]:
            note(f"stage {stage['number']} is stale in the report: {in_few(stage['stale'])}")


def _publish(profile: Profile, folder: Path) -> None:
    """Raises ArtefactError for a stage that is stale, and for a reference that is not whole."""
    finished = finished_stages(profile, folder)
    if stale := [s for s in finished if s["stale"]]:
        words = "; ".join(f"{s['number']} ({in_few(s['stale'], 2)})" for s in stale)
        raise ArtefactError(f"{folder}: not published, stages are stale: {words}; run them again first")
    if folder.name == REFERENCE_PROFILE and len(finished) < len(stages.STAGES):
        missing = ", ".join(s.number for s in stages.STAGES if s.folder not in {f["folder"] for f in finished})
        raise ArtefactError(f"{folder}: stages {missing} are not done; only a whole run becomes the reference")
    publish(folder, finished)
    if folder.name == REFERENCE_PROFILE:
        full_scale.write_plan()


def finished_stages(profile: Profile, folder: Path) -> list[dict[str, Any]]:
    """Of every finished stage its number, notebook, folder, seconds, and ``stale``: what changed since, in phrases; a
    stage is stale too if one is whose artefacts it read."""
    finished: list[dict[str, Any]] = []
    stale: dict[str, str] = {}  # folder -> number
    for stage in stages.STAGES:
        if (changed := _changes(stage, profile, folder)) is None:
            continue
        read = dict.fromkeys(Path(r).parts[0] for r in stage.reads)
        changed += [f"made from stage {stale[r]}, which is stale" for r in read if r in stale]
        if changed:
            stale[stage.folder] = stage.number
        seconds = marks.seconds_of(stage, folder)
        finished.append(
            {
                "number": stage.number,
                "notebook": stage.notebook,
                "folder": stage.folder,
                "seconds": seconds,
                "stale": changed,
            }
        )
    return finished
