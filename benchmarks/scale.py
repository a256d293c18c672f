"""Time and memory of every stage at three sizes, and what they would come to at the paper's.

``python -m benchmarks.scale``: small profiles, profile ``cpu`` in all but how much there is, run through the pipeline's
own stages as ``run_all.sh`` runs them, start and loading included. Of a stage the size is what it works through
(conversations read, tokens trained on or generated, answers, openings); its cost is fitted by ``benchmarks.growth``.
The paper's sizes are those of the full-scale plan. What is extrapolated is this machine and these small models: the GPU
plan stands beside it.

Writes ``results/scale.csv`` and the table in ``cluster/README.md``. ``--smallest`` runs the smallest size once and
writes nothing; ``--render`` makes the table anew from the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import yaml

from benchmarks.growth import Growth, grown
from realm.core.files import REPOSITORY
from realm.core.metrics import Metrics
from realm.core.profile import RUNS_VARIABLE, Profile, load_profile, profile_path
from realm.models.estimate import GIB
from realm.models.full_scale import Figure, plan
from realm.pipeline.stages import STAGES, Stage
from realm.reporting.full_scale import PROFILE, README, amount, figure_words, inputs
from realm.reporting.report import write_between

RESULTS = Path(__file__).parent / "results" / "scale.csv"
BEGIN, END = "<!-- measured growth: begin -->", "<!-- measured growth: end -->"
REPETITIONS = 2
SAMPLED = 0.5  # seconds from one look at the memory to the next
NOT_YET = "Not measured yet: `python -m benchmarks.scale` on an idle machine fits every stage at three sizes."


@dataclass(frozen=True)
class Size:
    """``conversations`` read, ``tokens`` UserGPT is trained on, ``talks`` simulated and learned from, MT-Bench
    ``questions``, ``openings`` compared."""

    name: str
    conversations: int
    tokens: int
    talks: int
    questions: int
    openings: int

    def profile(self, folder: Path) -> Path:
        """Write the profile of this size."""
        values = yaml.safe_load(profile_path("cpu").read_text(encoding="utf-8"))
        # More of the sessions are held out, so that the smallest size has enough of them.
        values["data_inspection"] |= {"max_conversations": self.conversations, "test_share": 0.3}
        few = {"valid_conversations": 8, "test_conversations": 16}
        values["usergpt_sft"] |= {"max_train_tokens": self.tokens, "cpu_processes": 1, **few}
        values["realm_sft"] |= {"cpu_processes": 1, **few}
        values["simulation"] |= {"free": self.talks, "seeded": 0, "beside": {}}
        values["teaching"] = None
        values["mt_bench"] |= {"questions": self.questions}
        values["simulator_realism"] |= {"conversations": self.openings, "sizes": [self.openings]}
        path = folder / f"scale-{self.name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path


SIZES = (
    Size("small", 2_000, 6_000, 4, 8, 24),
    Size("middle", 6_000, 18_000, 10, 24, 48),
    Size("large", 16_000, 54_000, 24, 48, 96),
)


@dataclass(frozen=True)
class Work:
    """What a stage works through: in a run that is done, and at the paper's scale."""

    words: str
    done: Callable[[Profile, Metrics], float]
    paper: Callable[[Profile, dict[tuple[str, str], Figure]], float]


def _answers(profile: Profile, *_) -> float:
    return 2 * len(profile.mt_bench.answerers) * profile.mt_bench.questions


def _openings(profile: Profile, *_) -> float:
    return profile.simulator_realism.conversations


def _generated(metrics: Metrics) -> float:
    return metrics["realchat_user_new_tokens"].value + metrics["realchat_assistant_new_tokens"].value


TRAINED = "tokens trained on"
MADE = ("user, tokens generated", "responder, tokens generated")
WORK = {
    "01": Work(
        "conversations read",
        lambda p, m: m["conversations_read"].value,
        lambda p, f: f["01", "time on two cores"].parts[0].ends[0],
    ),
    "02": Work(
        TRAINED,
        lambda p, m: p.usergpt_sft.epochs * m["usergpt_train_tokens"].value,
        lambda p, f: f["02", TRAINED].ends[1],
    ),
    "03": Work("tokens generated", lambda p, m: _generated(m), lambda p, f: sum(f["03", w].ends[1] for w in MADE)),
    "04": Work(
        TRAINED, lambda p, m: p.realm_sft.epochs * m["realm_train_tokens"].value, lambda p, f: f["04", TRAINED].ends[1]
    ),
    "05": Work("answers", _answers, _answers),
    "06": Work("openings of each", _openings, _openings),
}


# ---------------------------------------------------------------- measuring


def measured(size: Size, repetition: int, folder: Path) -> list[dict]:
    """All stages of one size in a run folder of their own: a record each. Raises SystemExit where one fails."""
    path = size.profile(folder)
    profile, runs = load_profile(path), folder / f"{size.name}-{repetition}"
    found = []
    for stage in STAGES:
        command = [sys.executable, "-m", "realm.pipeline", "--profile", str(path), "--stage", stage.number]
        seconds, peak = watched(command, {RUNS_VARIABLE: str(runs)})
        done = WORK[stage.number].done(profile, Metrics.load(runs / path.stem / stage.folder))
        found.append(
            {
                "size": size.name,
                "repetition": repetition,
                "stage": stage.number,
                "work": done,
                "seconds": round(seconds, 2),
                "peak_gib": round(peak / GIB, 3),
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    return found


def watched(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the most bytes that it and all processes below it held at once, shared pages counted once.

    Raises SystemExit with its last words where it fails.
    """
    peak, started = 0.0, time.monotonic()
    with tempfile.TemporaryFile() as says:
        with subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=REPOSITORY, stdout=says, stderr=says
        ) as child:
            while child.poll() is None:
                peak = max(peak, held(child.pid))
                time.sleep(SAMPLED)
        seconds = time.monotonic() - started
        if child.returncode:
            says.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{says.read().decode(errors='replace')[-2_000:]}")
    return seconds, peak


def held(pid: int) -> float:
    """Bytes of a process and all below it, each shared page divided among those that share it."""
    total = 0.0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:  # it ended meanwhile
        return total
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def with_paper(found: list[dict]) -> pd.DataFrame:
    """The records with what the paper's scale is and what the GPU plan says of it, as both are now."""
    profile = load_profile(PROFILE)
    figures = {(f.stage, f.what): f for f in plan(inputs(profile))}
    hours = {s: figures.get((s, "GPU hours"), figures.get((s, "time on two cores"))) for s in WORK}
    table = pd.DataFrame(found)
    table["paper_work"] = [WORK[s].paper(profile, figures) for s in table.stage]
    table["plan"] = [f"{figure_words(hours[s])} {hours[s].what}" if hours[s] else "" for s in table.stage]
    return table


# ---------------------------------------------------------------- the table


def block(path: Path = RESULTS) -> str:
    """The table of ``cluster/README.md`` as Markdown, from the results alone."""
    if not path.exists():
        return NOT_YET
    table = pd.read_csv(path, dtype={"stage": str, "plan": str}, keep_default_na=False)
    lines = [
        f"Measured by `python -m benchmarks.scale`, {table.repetition.nunique()} runs of each of "
        f"{table['size'].nunique()} sizes, with profile `cpu`'s models on two cores; in brackets 95 % intervals. "
        "Far beyond the sizes measured, all rests on the exponent: where that is taken for 1, the next column holds.",
        "",
        "| stage | works through | measured at | the paper's | exponent of time | time there | if linear | peak memory "
        "there | the plan, on GPUs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(stage, table[table.stage == stage.number]) for stage in STAGES)])


def _line(stage: Stage, rows: pd.DataFrame) -> str:
    paper = rows.paper_work.iloc[0]
    seconds, memory = (grown(rows.work, rows[cost], paper) for cost in ("seconds", "peak_gib"))
    cells = [
        stage.number,
        WORK[stage.number].words,
        f"{amount(rows.work.min())} to {amount(rows.work.max())}",
        amount(paper),
        f"{seconds.exponent:.2f} [{seconds.exponent_interval[0]:.2f} to {seconds.exponent_interval[1]:.2f}]",
        _with_interval(seconds.target, seconds.target_interval, 3_600, "h"),
        _with_interval(seconds.linear, seconds.linear_interval, 3_600, "h"),
        _with_interval(memory.target, memory.target_interval, 1, "GiB"),
        rows.plan.iloc[0],
    ]
    return "| " + " | ".join(cells) + " |"


def _with_interval(value: float, interval: tuple[float, float], unit: float, words: str) -> str:
    low, high = (amount(end / unit) for end in interval)
    return f"{amount(value / unit)} {words} [{low} to {high}]"


def render() -> None:
    """Raises ArtefactError if the markers are not there."""
    write_between(README, BEGIN, END, block)


def report(table: pd.DataFrame) -> None:
    for stage, rows in table.groupby("stage"):
        fit: Growth = grown(rows.work, rows.seconds, rows.paper_work.iloc[0])
        print(f"exponent_{stage}={fit.exponent:.3g}")
        print(f"hours_at_paper_{stage}={fit.target / 3_600:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--smallest", action="store_true", help="the smallest size once; nothing is written")
    parser.add_argument("--render", action="store_true", help="the table in cluster/README.md anew, nothing is run")
    given = parser.parse_args()
    if given.render:
        return render()
    with tempfile.TemporaryDirectory() as folder:
        if given.smallest:
            measured(SIZES[0], 0, Path(folder))
            return
        found = []
        for repetition in range(REPETITIONS):
            for size in SIZES:
                found += measured(size, repetition, Path(folder))
    table = with_paper(found)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False)
    render()
    report(table)


if __name__ == "__main__":
    main()
