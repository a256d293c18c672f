"""The command line of a run on a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from realm.cluster.fetch import fetch
from realm.cluster.status import status
from realm.cluster.submission import planned, require_idle, show, submit
from realm.core.errors import exit_code
from realm.core.profile import ProfileError, profile_and_folder, profile_path
from realm.pipeline.stages import STAGES, stage_by_number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m realm.cluster", description="A profile's run as jobs of Slurm.")
    parser.add_argument("--profile", default="cpu", help="a name in profiles/, or the path of a YAML file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--slurm", action="store_true", help="fetch, then submit what is not done")
    what.add_argument(
        "--status", action="store_true", help="how stages, jobs and conversations stand, and what is spent"
    )
    what.add_argument("--fetch", action="store_true", help="bring in all that jobs need from outside")
    parser.add_argument("--stage", help="with --slurm: this stage alone")
    parser.add_argument("--from", dest="first", default="01", help="with --slurm: from this stage")
    parser.add_argument("--dry-run", action="store_true", help="with --slurm: print every script, submit nothing")
    given = parser.parse_args(arguments)
    return exit_code(lambda: _dispatch(given), "interrupted; call again to go on")


def _dispatch(given: argparse.Namespace) -> None:
    profile, folder = profile_and_folder(given.profile)
    if given.dry_run and not given.slurm:
        raise ProfileError("--dry-run: goes with --slurm here")
    if given.status:
        print(status(profile, given.profile, folder))
        return
    if given.fetch:
        fetch(profile)
        return
    first = stage_by_number(given.first).number
    chosen = [stage_by_number(given.stage)] if given.stage else [s for s in STAGES if s.number >= first]
    if not given.dry_run:
        require_idle(folder)
        fetch(profile)
    # A job starts elsewhere: a path is written whole.
    name = given.profile if not Path(given.profile).suffix else str(profile_path(given.profile).resolve())
    jobs = planned(chosen, profile, name, folder)
    if not jobs:
        print(f"{folder}: nothing is left to do")
    elif given.dry_run:
        show(jobs, profile, folder)
    else:
        submit(jobs, profile, folder)
        print(f"./run_all.sh --profile {given.profile} --status shows how they stand; logs are in {folder / 'slurm'}")
