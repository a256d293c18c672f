"""Training by processes of its own: under accelerate's launcher, one and two of them, and killed at any step.

Two processes on a CPU talk through gloo. Their method is lora: what is tested is how work is shared out, and
bitsandbytes' kernels have no part in that.
"""

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from accelerate.commands import launch
from accelerate.commands.config import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from peft import load_peft_weights
from tiny_model import conversations, write_job, write_tiny_model

from realm.conversations.writers import write_conversations
from realm.core.profile import load_profile
from realm.models.estimate import FULL_GPUS
from realm.models.workload import optimizer_steps
from realm.training import launch as launch_room
from realm.training.artefacts import TRAINED, sweep
from realm.training.base import add_adapter, load_base
from realm.training.controls import train_control
from realm.training.launch import FSDP_CONFIG, launch_or_train, main

SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Sums in one order, and here as in the processes that are started.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def job(folder, tmp_path):
    """Makes a job of 13 rows for the tiny model, with a profile of its own. ``values``: of the training block."""

    def make(name, **values):
        train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
        write_conversations(train, conversations(13))
        write_conversations(valid, conversations(20)[13:])
        return write_job(tmp_path, folder, name, train, valid, SEED, **{"epochs": 2, **values})

    return make


def in_process(job):
    """Log and adapter of the call that a notebook makes on one device."""
    encoder = job.encoder()
    model = add_adapter(load_base(job.config), job.config, job.seed)
    log = launch_or_train(model, encoder, job.rows(encoder), job)
    return log, {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def losses(job):
    return {r["step"]: r["loss"] for r in map(json.loads, lines_of(job)) if "loss" in r}


def lines_of(job):
    return (job.folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()


def adapter(job):
    return load_peft_weights(str(job.folder / TRAINED), device="cpu")


def same(found, wanted, **tolerance):
    """Adapters in memory name their set, ``default``; those in files do not."""
    wanted = {n.replace(".default", ""): p for n, p in wanted.items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **tolerance)


def accelerate(job):
    """One process under accelerate's launcher. On a CPU it starts no second one; ``--multi_gpu``, which does, is
    what ``launch_or_train`` asks for."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, *plain, "--module", "realm.training", *job.command()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("block", ["usergpt_sft", "realm_sft"])
def test_an_own_split_validates_on_conversations_that_are_not_trained_on(job, block):
    split = {"train_share": 0.7, "seed": 125}
    made = replace(job("own", eval_steps=2, own_split=split, valid_conversations=100), block=block)
    encoder = made.encoder()
    rows, held = made.rows(encoder), made.held_out(encoder)
    trained, apart_from = ({r.id.partition("/")[0] for r in some} for some in (rows, held))
    assert (len(trained), len(apart_from)) == (9, 4)  # of 13
    assert trained | apart_from == {c.id for c in conversations(13)}
    assert replace(made, valid=None).held_out(encoder)[0].id == held[0].id  # no other file is read


# ---------------------------------------------------------------- one process and two


def test_one_launched_process_trains_the_adapter_of_the_call_in_a_notebook(job):
    here, launched = job("here"), job("launched")
    log, weights = in_process(here)
    accelerate(launched)
    assert losses(launched) == pytest.approx({r["step"]: r["loss"] for r in log}, abs=1e-3)
    same(adapter(launched), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gpus", [2, 0])
def test_two_processes_train_as_one_with_batches_of_twice_the_rows(job, monkeypatch, capfd, gpus):
    alone = job("alone", batch_size=4, eval_steps=2)
    together = job("together", eval_steps=2, **({} if gpus else {"cpu_processes": 2}))
    one, _ = in_process(alone)
    capfd.readouterr()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    two, weights = in_process(together)
    assert len(one) == len(two) == optimizer_steps(together.config, segments=13, processes=2)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-3)
    # The last batch of an epoch has no fellow: the second process repeats a row there.
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=0.05)
    same(adapter(together), weights, rtol=0, atol=0)  # the notebook's model has what the processes learned
    assert losses(together) == {r["step"]: r["loss"] for r in two}
    assert {p.name for p in together.folder.iterdir()} == {"checkpoints", "train_log.jsonl", TRAINED}
    said = capfd.readouterr().err
    assert len(re.findall(rf"^training: {len(two)} of {len(two)} steps", said, re.MULTILINE)) == 1  # one process speaks


@pytest.mark.parametrize("kind", ["assistant", "plain_segments"])
def test_a_control_is_trained_by_the_same_launcher(job, monkeypatch, kind):
    whole = job("whole", epochs=1, batch_size=4, controls=[kind], eval_steps=2)
    alone = train_control(kind, whole)
    log = losses(replace(whole, folder=whole.folder / f"control_{kind}"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shared = job("shared", epochs=1, controls=[kind], eval_steps=2)
    together = train_control(kind, shared)
    folder = shared.folder / f"control_{kind}"
    assert losses(replace(shared, folder=folder)) == pytest.approx(log, rel=0.05)
    learned = {n: p.detach() for n, p in together.named_parameters() if p.requires_grad}
    same(load_peft_weights(str(folder / TRAINED), device="cpu"), learned, rtol=0, atol=0)
    assert alone.training is together.training is False
    sweep(shared.folder)
    assert {p.name for p in folder.iterdir()} == {"train_log.jsonl", "checkpoints"}


def test_rows_that_differ_from_the_notebooks_are_refused(job, capsys):
    wanted = job("differs")
    assert main([*wanted.command(), "--rows", "0f" * 32]) == 1
    assert "gives other rows here than in the notebook" in capsys.readouterr().err
    assert not (wanted.folder / TRAINED).exists()


@pytest.mark.parametrize(
    ("missing", "expected"), [("profile", "no such profile"), ("train", "nothing.jsonl"), ("block", "invalid choice")]
)
def test_the_command_line_names_what_is_wrong(job, capsys, missing, expected):
    command = dict(zip(*[iter(job("wrong").command())] * 2, strict=True))
    words = [w for pair in {**command, f"--{missing}": "nothing.jsonl"}.items() for w in pair]
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code and expected in capsys.readouterr().err


# ---------------------------------------------------------------- killed


def killed(job, number, step):
    """Train in a process of its own until the log shows ``step``; then send it signal ``number``."""
    log = job.folder / "train_log.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "realm.training", *job.command()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (log.exists() and f'{{"step": {step}, "loss"' in log.read_text()):
            time.sleep(0.001)
        process.send_signal(number)
    assert process.returncode == -number
    assert not (job.folder / TRAINED).exists()


def test_a_run_killed_at_random_steps_ends_with_the_same_adapter(job):
    values = {"epochs": 15, "checkpoint_steps": 3, "eval_steps": 3}  # 60 steps
    whole, cut = job("whole", **values), job("cut", **values)
    log, weights = in_process(whole)
    draw = random.Random(SEED)
    killed(cut, signal.SIGKILL, draw.randint(2, 25))
    killed(cut, signal.SIGTERM, draw.randint(30, 50))
    assert main(cut.command()) == 0
    assert losses(cut) == pytest.approx({r["step"]: r["loss"] for r in log}, abs=1e-3)
    assert len(lines_of(cut)) == len(lines_of(whole))  # nothing twice
    same(adapter(cut), weights, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- several GPUs, as far as none can tell


def as_accelerate_reads(config, processes):
    """The launcher's options and the environment that accelerate makes of them for each process."""
    words = launch_room._launcher(config, processes)
    at = words.index("accelerate.commands.launch") + 1
    options = launch.launch_command_parser().parse_args([*words[at:], "--profile", "paper"])
    options, _, _ = launch._validate_launch_command(options)
    return options, prepare_multi_gpu_env(options)


def test_the_papers_full_fine_tune_is_sharded_over_four_processes(monkeypatch):
    profile = load_profile("paper")
    options, environment = as_accelerate_reads(profile.usergpt_sft, 4)
    assert (options.use_fsdp, options.num_processes, options.nproc_per_node) == (True, 4, "4")
    assert (options.mixed_precision, options.module, options.training_script) == ("bf16", True, "realm.training")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    config = profile.usergpt_sft
    assert config.batch_size * config.accumulation * options.num_processes == 128  # the authors'


def test_adapters_are_repeated_on_each_process():
    options, environment = as_accelerate_reads(load_profile("gpu").usergpt_sft, 2)
    assert (options.multi_gpu, options.use_fsdp, options.nproc_per_node) == (True, False, "2")
    assert "FSDP_VERSION" not in environment
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_the_fsdp_file_is_one_that_accelerate_takes():
    read = load_config_from_file(str(FSDP_CONFIG))
    assert (read.distributed_type, read.num_processes, read.use_cpu) == (DistributedType.FSDP, FULL_GPUS, False)
    known = {key.dest for key in launch.launch_command_parser()._actions}
    assert set(read.fsdp_config) <= known


def test_the_cluster_job_asks_for_the_gpus_that_are_used():
    cluster = load_profile("paper").cluster
    assert [cluster.of(job).gpus for job in ("02_usergpt_sft", "04_realm_sft")] == [FULL_GPUS] * 2
