"""What only a GPU can show: ``python -m benchmarks.gpu``, on one card, without a network.

Real conversations, the packaged model, the trainer of notebook 02. Each check is a training or two in processes of
their own, so that one that fails is a row and no end. Checks compare losses step by step, on the same rows in the same
order: the card with the CPU (float32, four-bit weights), two processes with one, FSDP with none, a resumed run with a
whole one. Speed and memory stand beside the estimate of ``--dry-run`` (``realm.models.estimate``).

Two processes share a card through gloo, by way of the computer's memory, since NCCL refuses that; FSDP runs in one
process a card through NCCL.

It is meant to end within ten minutes, which nobody has timed. The table goes to ``results/gpu.csv`` and, as Markdown,
to the screen. Without a card every check is untested; what somebody ran on a card before stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

from realm.conversations.conversation import Conversation
from realm.conversations.readers import read_conversations
from realm.conversations.writers import write_conversations
from realm.core.files import REPOSITORY
from realm.core.manifest import device_name, git_commit
from realm.core.profile import profile_path
from realm.models import assets, estimate
from realm.models.architecture import architecture
from realm.models.workload import Workload
from realm.training import launch
from realm.training.artefacts import TRAINED
from realm.training.launch import Job

RESULTS = Path(__file__).parent / "results" / "gpu.csv"
UNTESTED, NO_CARD = "untested", "no CUDA device"
HOLDS, FAILS, FAILED = "holds", "does not hold", "failed"
SEED, BATCH = 20230823, 2
SHARED, REPORT = "REALM_GPU_SHARED", "REALM_GPU_REPORT"  # variables: one card for all; a folder for what processes say
VISIBLE = "CUDA_VISIBLE_DEVICES"
FIRST_CARD = os.environ.get(VISIBLE, "0").split(",")[0]
ALONE = (sys.executable, "-m")  # before the module's name: one process
LIMIT = 600  # seconds for one training


@dataclass(frozen=True)
class Row:
    """One check. ``measured`` of an untested one is the reason."""

    check: str
    expected: str
    measured: str
    verdict: str
    device: str = ""
    commit: str = ""


class CheckFailed(Exception):
    """A training that ended with an error: its last words."""


@dataclass(frozen=True)
class Bench:
    """Where to work, on what. Without ``cards`` the checks run on the CPU, to try them out: such rows mean nothing."""

    folder: Path
    model: str
    talks: Sequence[Conversation]
    cards: int

    def job(self, name: str, count: int, **values) -> Job:
        """A training of UserGPT on so many conversations. ``values``: of the profile's block."""
        profile = yaml.safe_load(profile_path("cpu").read_text(encoding="utf-8"))
        usual = {"base_model": self.model, "opening_share": None, "opening_rows": "segment", "learn_ending": False}
        usual |= {"max_train_tokens": None, "batch_size": BATCH, "accumulation": 1, "checkpoint_steps": 10_000}
        profile["usergpt_sft"] |= {**usual, "cpu_processes": 1, **values}
        path, data = self.folder / f"{name}.yaml", self.folder / f"{name}.jsonl"
        path.write_text(yaml.safe_dump(profile), encoding="utf-8")
        write_conversations(data, self.talks[:count])
        return Job(str(path), "usergpt_sft", data, None, self.folder / name, SEED)


@dataclass(frozen=True)
class Trained:
    """``losses`` by step; ``seconds`` of training; ``peak``: most bytes of a card, of any process, null without one."""

    losses: dict[int, float]
    seconds: float
    peak: int | None


# ---------------------------------------------------------------- one training, in processes of its own


def run(job: Job, launcher: Sequence[str] = ALONE, *, shared: bool = False, cards: str | None = FIRST_CARD) -> Trained:
    """``cards``: those that the processes see, null for all. Raises CheckFailed with the last words of a training that
    failed."""
    folder = job.folder.with_suffix(".says")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mine = {REPORT: str(folder), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # accelerate else takes the number of a process for that of its card.
    mine |= {SHARED: "1", "ACCELERATE_BYPASS_DEVICE_MAP": "true"} if shared else {}
    mine |= {} if cards is None else {VISIBLE: cards}
    command = [*launcher, "benchmarks.gpu", "--train", *job.command()]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **mine}, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"no end after {LIMIT} s") from None
    if done.returncode:
        raise CheckFailed(last_error(done.stderr))
    return said_by(job, folder)


def last_error(text: str) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in reversed(lines) if "rror: " in line), lines[-1])[:300]


def said_by(job: Job, folder: Path) -> Trained:
    records = [json.loads(line) for line in (job.folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    peaks = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return Trained(
        {r["step"]: r["loss"] for r in records if "loss" in r},
        next(r["train_runtime"] for r in reversed(records) if "train_runtime" in r),
        max((p for p in peaks if p is not None), default=None),
    )


def train(arguments: list[str]) -> int:
    """``realm.training`` in one of a launcher's processes; then the most memory of the card that it held."""
    if os.environ.get(SHARED):
        _share_one_card()
    code = launch.main(arguments)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    (Path(os.environ[REPORT]) / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(peak))
    return code


def _share_one_card() -> None:
    """From here on accelerate takes the first card, or where there is none the CPU, for that of every process."""
    torch.distributed.init_process_group("gloo")
    place = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    PartialState._prepare_backend = lambda *arguments, **values: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", place)
    PartialState.wait_for_everyone = lambda self: torch.distributed.barrier()  # gloo takes no numbers of devices


def torchrun(processes: int) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*words, "--nproc-per-node", str(processes), "-m"]


# ---------------------------------------------------------------- the checks


def apart(one: Trained, other: Trained, first: int = 1) -> float:
    """The largest difference of the two losses at a step, from step ``first`` on; the last, which may be a short one,
    left out. Raises CheckFailed where they made other steps."""
    if one.losses.keys() != other.losses.keys() or len(one.losses) < first + 1:
        raise CheckFailed(f"{len(one.losses)} steps and {len(other.losses)}: nothing to compare")
    return max(abs(one.losses[s] - other.losses[s]) for s in sorted(one.losses)[first - 1 : -1])


def equal(check: str, difference: float, most: float, more: str = "") -> Row:
    measured = f"{difference:.2g} nats at most{more}"
    return Row(check, f"losses within {most:g} nats", measured, HOLDS if difference <= most else FAILS)


def nf4(bench: Bench) -> Iterator[Row]:
    """The same arithmetic: four-bit weights packed on the card, unpacked on the CPU, float32 on both."""
    job = bench.job("nf4", 24, method="qlora", compute_dtype="float32")
    card = run(job)
    cpu = run(replace(job, folder=job.folder.with_name("nf4_cpu")), cards="")
    yield equal(CHECKS[nf4][0], apart(card, cpu), 0.02, f", {len(cpu.losses)} steps")


def speed_and_memory(bench: Bench) -> Iterator[Row]:
    """QLoRA in bfloat16 as profile ``gpu`` has it, against the estimate before training."""
    job = bench.job("speed", 320, method="qlora", compute_dtype="bfloat16", batch_size=8)
    found = run(job)
    chosen = job.selection(job.encoder())
    longest = max(len(r.input_ids) for r in chosen.rows)
    share, shape = chosen.supervised / chosen.tokens, architecture(job.config.base_model)
    load = Workload(chosen.tokens, len(chosen.rows), chosen.tokens / len(chosen.rows), share, False, "")
    fast, slow = CHECKS[speed_and_memory]
    yield _speed(fast, chosen.tokens / found.seconds, estimate.stage_flops(shape, job.config, load) / chosen.tokens)
    whole = sum(estimate.memory(shape, job.config, longest, share, 1, 2).values()) / estimate.GIB
    if found.peak is None:
        yield Row(slow, f"{whole:.2f} GiB of tensors", NO_CARD, UNTESTED)
        return
    peak = found.peak / estimate.GIB
    verdict = HOLDS if 0.8 <= peak / whole <= 1.1 else FAILS
    yield Row(slow, f"{whole:.2f} GiB of tensors", f"{peak:.2f} GiB allocated at the peak", verdict)


def _speed(check: str, measured: float, operations: float) -> Row:
    """``operations`` a token."""
    card = known_card()
    if card is None:
        return Row(check, "a card that estimate.GPUS does not know", f"{measured:,.0f} tokens/s", "measured")
    low, high = (card.flops * share / operations for share in card.utilization)
    verdict = HOLDS if low <= measured <= high else FAILS
    return Row(check, f"{low:,.0f} to {high:,.0f} tokens/s; under 1B less", f"{measured:,.0f} tokens/s", verdict)


def known_card() -> estimate.Device | None:
    """What the estimate knows of the card that is here."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((d for known, d in estimate.GPUS.items() if known.rsplit(" ", 2)[0] in name), None)


def two_processes(bench: Bench) -> Iterator[Row]:
    """The same segments a step: two processes, or one with twice as many in a pass."""
    values = {"method": "qlora", "compute_dtype": "float32"}
    one = run(bench.job("one", 48, batch_size=2 * BATCH, **values))
    two = run(bench.job("two", 48, **values), torchrun(2), shared=True)
    yield equal(CHECKS[two_processes][0], apart(one, two), 0.005)


def fsdp(bench: Bench) -> Iterator[Row]:
    """All weights in bfloat16, shared out by FSDP over the cards there are, against one process without it."""
    values = {"method": "full", "compute_dtype": "bfloat16", "learning_rate": 1e-4}  # so that a wrong gradient shows
    processes = bench.cards or 2
    plain = run(bench.job("full", 48 * processes, batch_size=BATCH * processes, **values))
    job = bench.job("fsdp", 48 * processes, **values)
    launcher = launch._launcher(job.config, processes)[:-1]
    sharded = run(job, launcher, shared=not bench.cards, cards=None)
    more = f", {processes} card" + ("s" if processes > 1 else "")
    if sharded.peak is not None:
        more += f", {sharded.peak / estimate.GIB:.2f} GiB at the peak (unsharded {plain.peak / estimate.GIB:.2f})"
    yield equal(CHECKS[fsdp][0], apart(plain, sharded), 0.02, more)


def resume(bench: Bench) -> Iterator[Row]:
    """As if it had been stopped after the checkpoint in the middle: the last one is taken away."""
    steps = 6
    job = bench.job("resume", 4 * steps, method="qlora", compute_dtype="bfloat16", checkpoint_steps=steps)
    whole = run(job)
    middle = job.folder / "checkpoints" / f"checkpoint-{steps}"
    for later in [p for p in middle.parent.glob("checkpoint-*") if p != middle]:
        shutil.rmtree(later)
    shutil.rmtree(job.folder / TRAINED)
    written = (middle / "trainer_state.json").stat().st_mtime_ns
    again = run(job)
    if (middle / "trainer_state.json").stat().st_mtime_ns != written:
        raise CheckFailed(f"it started anew, and not at step {steps}")
    yield equal(CHECKS[resume][0], apart(whole, again, steps + 1), 0.005, f", from step {steps + 1} on")


# Check -> the names of its rows.
CHECKS: dict[Callable[[Bench], Iterator[Row]], tuple[str, ...]] = {
    nf4: ("QLoRA: losses on the card equal the CPU's",),
    speed_and_memory: ("QLoRA, bfloat16: tokens a second", "QLoRA, bfloat16: peak memory"),
    two_processes: ("two processes on one card equal one",),
    fsdp: ("full fine-tune, bfloat16: FSDP equals one process",),
    resume: ("QLoRA: a resumed run goes on as if never stopped",),
}


# ---------------------------------------------------------------- the table


def untested(reason: str = NO_CARD) -> list[Row]:
    return [Row(name, "", reason, UNTESTED) for names in CHECKS.values() for name in names]


def measure(bench: Bench) -> list[Row]:
    """All checks; one that fails has its reason in its rows."""
    found: list[Row] = []
    for check, names in CHECKS.items():
        print(f"{', '.join(names)} ...", file=sys.stderr, flush=True)
        try:
            found += check(bench)
        except CheckFailed as error:
            done = {row.check for row in found}
            found += [Row(name, "", str(error), FAILED) for name in names if name not in done]
    return [replace(row, device=device_name(), commit=git_commit()[:12]) for row in found]


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Of each check what was run last; an untested row never takes the place of one that was run."""
    kept = {row.check: row for row in before if row.verdict != UNTESTED}
    return [kept.get(row.check, row) if row.verdict == UNTESTED else row for row in now]


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    names = [field.name for field in fields(Row)]
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return [Row(**{name: record[name] for name in names}) for record in table.to_dict("records")]


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| check | expected | measured | verdict | device |", "|---|---|---|---|---|"]
    lines += [f"| {r.check} | {r.expected} | {r.measured} | {r.verdict} | {r.device} |" for r in rows]
    return "\n".join(lines)


def real_talks(most: int) -> list[Conversation]:
    """Of the packaged ShareGPT, conversations that open with a human turn and have an answer."""
    found = (c for c in read_conversations(assets.data("sharegpt")) if c.rounds and c.messages[0].role == "user")
    return list(itertools.islice(found, most))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", default="smollm2-135m", help="an asset, or a folder of a LLaMA (default: %(default)s)"
    )
    given = parser.parse_args()
    cards = torch.cuda.device_count()
    rows = untested()
    if cards:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(Bench(Path(folder), given.model, real_talks(1_000), cards))
    rows = merged(read_rows(RESULTS), rows)
    RESULTS.parent.mkdir(exist_ok=True)
    pd.DataFrame(map(asdict, rows)).to_csv(RESULTS, index=False)
    print(markdown(rows))


if __name__ == "__main__":
    sys.exit(train(sys.argv[2:]) if sys.argv[1:2] == ["--train"] else main())
