"""Where the time of a whole run goes: ``python -m benchmarks.whole_run [--profile NAME] [--keep FOLDER]``.

A fresh clone with an environment and a cache of its own, ``./run_all.sh`` in it, watched twice a second: memory of its
processes, and how long the machine's cores were idle. Set against the executed notebooks, that gives a line a cell. The
machine should have nothing else to do. ``--render`` writes README's table anew from the results, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil

from realm.core.files import REPOSITORY
from realm.pipeline.stages import STAGES
from realm.reporting.report import write_between

RESULTS = Path(__file__).parent / "results" / "whole_run.csv"
README, BEGIN, END = REPOSITORY / "README.md", "<!-- whole run: begin -->", "<!-- whole run: end -->"
SAMPLED, LONG, GIB = 0.5, 10.0, 2**30  # seconds between looks; seconds from which a cell has a line of its own
OUTSIDE = "installation, downloads, checks"


class Look(NamedTuple):
    """One look at the run. ``largest``: bytes resident in its largest process; ``idle``: of the machine's cores,
    seconds so far."""

    at: float
    largest: int
    idle: float


def run(folder: Path, profile: str) -> tuple[float, float, list[Look]]:
    """Begin, end (seconds since the epoch) and looks. Raises SystemExit with its last words where the run fails."""
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder / "clone"], check=True)
    own = {"REALM_CACHE": str(folder / "cache"), "REALM_RUNS": str(folder / "runs")}
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")} | own
    looks, begin = [], time.time()
    with (folder / "log").open("w") as log:
        command = [folder / "clone" / "run_all.sh", "--profile", profile]
        with subprocess.Popen(command, env=environment, cwd=folder / "clone", stdout=log, stderr=log) as child:
            while child.poll() is None:
                looks.append(look(child.pid))
                time.sleep(SAMPLED)
    if child.returncode:
        raise SystemExit(f"the run failed; its last words: {(folder / 'log').read_text(errors='replace')[-2_000:]}")
    return begin, time.time(), looks


def look(pid: int) -> Look:
    largest = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:  # it ended meanwhile
        family = []
    for process in family:
        try:
            largest = max(largest, process.memory_info().rss)
        except psutil.Error:
            continue
    return Look(time.time(), largest, psutil.cpu_times().idle)


def cells(notebook: Path) -> list[dict]:
    """A record a code cell of an executed notebook: cell (its number), what (the heading above), begin and end."""
    found, heading = [], ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "markdown" and lines and lines[0].startswith("#"):
            heading = lines[0].lstrip("# ")
        ran = cell["metadata"].get("papermill", {})
        if cell["cell_type"] == "code" and ran.get("start_time"):
            begin, end = (datetime.fromisoformat(ran[at]).timestamp() for at in ("start_time", "end_time"))
            found.append({"cell": len(found) + 1, "what": heading, "begin": begin, "end": end})
    return found


def measured(found: list[dict], looks: list[Look]) -> pd.DataFrame:
    """Records with begin and end -> seconds, peak_gib of the largest process, idle (share of the cores' time)."""
    rows = []
    for record in found:
        begin, end = record.pop("begin"), record.pop("end")
        within = [one for one in looks if begin - SAMPLED <= one.at <= end + SAMPLED]
        peak = max((one.largest for one in within), default=0) / GIB
        idle = None
        if len(within) > 1:
            idle = (within[-1].idle - within[0].idle) / (within[-1].at - within[0].at) / psutil.cpu_count()
        rows.append({**record, "seconds": end - begin, "peak_gib": peak, "idle": idle})
    return pd.DataFrame(rows).round({"seconds": 2, "peak_gib": 3, "idle": 3})


def table_of(runs: Path, begin: float, end: float, looks: list[Look]) -> pd.DataFrame:
    """All cells, each stage as a whole (cell 0), the run as a whole (stage "all")."""
    found = [{"stage": "all", "cell": 0, "what": "all of it", "begin": begin, "end": end}]
    for stage in STAGES:
        own = cells(runs / "notebooks" / f"{stage.notebook}.ipynb")
        whole = {"cell": 0, "what": stage.notebook, "begin": own[0]["begin"], "end": own[-1]["end"]}
        found += [{"stage": stage.number, **record} for record in (whole, *own)]
    first = min(record["begin"] for record in found[1:])
    found.insert(1, {"stage": "00", "cell": 0, "what": OUTSIDE, "begin": begin, "end": first})
    return measured(found, looks)


def block(path: Path = RESULTS) -> str:
    """README's table as Markdown: stages, and of their cells those of ten seconds and more."""
    if not path.exists():
        return "Not measured yet: `python -m benchmarks.whole_run`."
    table = pd.read_csv(path, dtype={"stage": str})
    lines = ["| stage | what | seconds | largest process, GiB | cores idle |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        if row.cell and row.seconds < LONG:
            continue
        what = f"{row.what} (cell {row.cell})" if row.cell else f"**{row.what}**"
        idle = "" if pd.isna(row.idle) else f"{row.idle:.0%}"
        lines.append(f"| {row.stage} | {what} | {row.seconds:,.0f} | {row.peak_gib:.2f} | {idle} |")
    return "\n".join(lines)


def render() -> None:
    """Raises ArtefactError if the markers are not there."""
    write_between(README, BEGIN, END, block)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--keep", type=Path, help="where clone, cache and run stay; else all goes")
    parser.add_argument("--render", action="store_true", help="the table in README.md anew, nothing is run")
    given = parser.parse_args()
    if not given.render:
        with tempfile.TemporaryDirectory(prefix="realm-whole-") as passing:
            folder = (given.keep or Path(passing)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            table = table_of(folder / "runs" / given.profile, *run(folder, given.profile))
        table.to_csv(RESULTS, index=False)
        print(block())
    render()


if __name__ == "__main__":
    main()
