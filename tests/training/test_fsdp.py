"""FSDP itself, between two processes that accelerate takes for GPUs (``tests/pretend_gpus.py``)."""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file
from tiny_model import conversations, write_job, write_tiny_model

from realm.conversations.writers import write_conversations
from realm.core.stopping import STOP_VARIABLE
from realm.training import launch as launch_room
from realm.training.artefacts import TRAINED
from realm.training.base import load_base
from realm.training.trainer import train

SEED = 5
TESTS = Path(__file__).parents[1]
STEPS = 8  # four an epoch
# It learns to the end: where the last step is the best, no later one sets right which was taken for it.
LEARNS = {"epochs": 2, "learning_rate": 0.1, "schedule": "constant", "eval_steps": 1, "checkpoint_steps": 1}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Makes a job, a full fine-tune of the tiny model on ``count`` rows. ``values``: of the training block."""
    root = tmp_path_factory.mktemp("fsdp")
    model = write_tiny_model(root / "tiny")
    for count in (16, 29):
        write_conversations(root / f"{count}.jsonl", conversations(count))
    write_conversations(root / "valid.jsonl", conversations(36)[29:])

    def make(name, count=29, **values):
        return write_job(
            root, model, name, root / f"{count}.jsonl", root / "valid.jsonl", SEED, method="full", **values
        )

    return make


def command(job, processes=2):
    """The very command that a notebook runs, in it the one module that pretends."""
    words = [*launch_room._launcher(job.config, processes), *job.command()]
    return ["pretend_gpus" if word == "realm.training" else word for word in words]


def environment(job, slow=None):
    """``slow``: the process that is late after every barrier."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    mine = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **mine, "PRETEND_REPORT": str(job.folder), "PRETEND_SLOW": str(slow)}


def end_all(launcher):
    """The launcher and its processes at once, as by a power cut."""
    for process in [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]:
        process.kill()


def run(job, slow=None):
    says = job.folder.with_suffix(".txt")
    with (
        says.open("w") as handle,
        subprocess.Popen(command(job), env=environment(job, slow), stderr=handle) as launcher,
    ):
        try:
            code = launcher.wait(timeout=60)
        except subprocess.TimeoutExpired:
            end_all(launcher)
            raise
    assert code == 0, says.read_text()[-3_000:]
    return [json.loads((job.folder / f"rank{n}.json").read_text()) for n in range(2)]


def killed(job, step):
    """Train until the log shows ``step``."""
    log = job.folder / "train_log.jsonl"
    with subprocess.Popen(command(job), env=environment(job), stderr=subprocess.DEVNULL) as launcher:
        while launcher.poll() is None and not (log.exists() and f'{{"step": {step}, "loss"' in log.read_text()):
            time.sleep(0.001)
        end_all(launcher)
    assert not (job.folder / TRAINED).exists()


def lines(job, key):
    records = map(json.loads, (job.folder / "train_log.jsonl").read_text().splitlines())
    return {r["step"]: r[key] for r in records if key in r}


def trained(job):
    return load_file(job.folder / TRAINED / "model.safetensors")


def same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **tolerance)


@pytest.fixture(scope="module")
def whole(job):
    """A run that nothing interrupts, and what each of its processes says; one is late after every barrier."""
    done = job("whole", compute_dtype="bfloat16", **LEARNS)
    return done, run(done, slow=1)


def test_all_processes_end_with_the_same_best_checkpoint(whole, tmp_path):
    done, reports = whole
    losses = lines(done, "eval_loss")
    assert min(losses, key=losses.get) == STEPS  # or this test would show little
    folder = done.folder / "checkpoints" / f"checkpoint-{STEPS}"
    assert [r["best"] for r in reports] == [str(folder)] * 2
    merge_fsdp_weights(str(folder / "pytorch_model_fsdp_0"), str(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    same({n: stored[n] for n in trained(done)}, trained(done), rtol=0, atol=0)


def test_a_killed_and_resumed_run_ends_with_the_same_weights(whole, job):
    cut = job("cut", compute_dtype="bfloat16", **LEARNS)
    killed(cut, 6)  # in the middle of an epoch, whether its last checkpoint is that of step 5 or 6
    run(cut)
    done, _ = whole
    assert lines(cut, "loss") == lines(done, "loss") and lines(cut, "eval_loss") == lines(done, "eval_loss")
    same(trained(cut), trained(done), rtol=0, atol=0)


def test_processes_that_are_asked_to_stop_agree_on_the_step_and_go_on_there(whole, job, tmp_path):
    stopped = job("stopped", compute_dtype="bfloat16", **{**LEARNS, "eval_steps": 4, "checkpoint_steps": 4})
    wish, says = tmp_path / "stop", tmp_path / "says"
    log = stopped.folder / "train_log.jsonl"
    variables = {**environment(stopped, slow=1), STOP_VARIABLE: str(wish)}
    with says.open("w") as out, subprocess.Popen(command(stopped), env=variables, stderr=out) as launcher:
        while launcher.poll() is None and not (log.exists() and '{"step": 1, "loss"' in log.read_text()):
            time.sleep(0.001)
        wish.touch()
        launcher.wait(timeout=60)
    assert launcher.returncode and "asked to stop: a checkpoint is written at step" in says.read_text()
    done = max(lines(stopped, "loss"))
    assert done < 4 and (stopped.folder / "checkpoints" / f"checkpoint-{done}" / "trainer_state.json").exists()
    run(stopped)
    same(trained(stopped), trained(whole[0]), rtol=0, atol=0)


def test_between_micro_batches_no_process_holds_the_whole_gradient(whole):
    _, reports = whole
    assert [r["whole_gradients"] for r in reports] == [[0] * 2 * STEPS] * 2  # two micro-batches a step


def test_the_profiles_precision_is_computed_in(whole, job):
    _, reports = whole
    assert [r["computes"] for r in reports] == [["torch.bfloat16"]] * 2
    full = job("float32", 16)
    assert [r["computes"] for r in run(full)] == [["torch.float32"]] * 2
    alone = job("alone", 16, batch_size=4)  # the same rows at one time
    encoder, model = alone.encoder(), load_base(alone.config)
    train(model, encoder.tokenizer, alone.rows(encoder), alone.config, alone.folder, SEED)
    assert lines(full, "loss") == pytest.approx(lines(alone, "loss"), rel=1e-5)
    moved = {n: p for n, p in model.state_dict().items() if n in trained(full)}
    same(trained(full), moved, rtol=1e-3, atol=1e-4)
