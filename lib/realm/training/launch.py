"""One process a GPU, or several on a CPU: a stage's training by names and files, under a launcher.

``python -m realm.training`` is the same training outside a notebook, for ``accelerate launch``: one process a GPU.
An optimizer step then sees batch_size * accumulation * processes segments; the budget of tokens is that of all
processes together. On GPUs a full fine-tune is sharded over them (FSDP); adapters are repeated on each (DDP), and so is
everything between processes of a CPU (profile value ``cpu_processes``), which PyTorch's own launcher starts:
accelerate's would want MPI there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from realm.conversations.readers import load_conversations
from realm.conversations.splits import apart
from realm.core.errors import exit_code
from realm.core.files import REPOSITORY, atomic_folder
from realm.core.profile import SFT, UserSFT, load_profile
from realm.dialogue.encoder import Encoded, Encoder, encoder_of
from realm.dialogue.segments import split_long, without_context
from realm.training.artefacts import TRAINED
from realm.training.base import TrainingError, add_adapter, load_base
from realm.training.children import run_child
from realm.training.rows import Selection, drawn, rows_sha256, select_rows
from realm.training.trainer import SupervisedTrainer, run_trainer, train

OTHER_SIDES = ("assistant", "both")
CONTROLS = (*OTHER_SIDES, "plain_segments")
FSDP_CONFIG = REPOSITORY / "cluster/fsdp.yaml"


@dataclass(frozen=True)
class Job:
    """A training stage by names and files, from which every process comes to the same rows by itself.

    ``profile``: a name or path; ``block``: usergpt_sft or realm_sft; ``train``, ``valid``: conversation files, the
    second read only if the block has ``eval_steps`` and no ``own_split``; ``folder``: where log and checkpoints go;
    ``control``: train a control instead, of this kind (``controls``). Of the conversations so many are drawn
    (``conversations``), or until the loss has so many tokens (``supervised_tokens``); null is without limit.
    """

    profile: str
    block: str
    train: Path
    valid: Path | None
    folder: Path
    seed: int
    control: str | None = None
    conversations: int | None = None
    supervised_tokens: int | None = None

    @property
    def config(self) -> SFT:
        """The profile's; a control ends with its last step, since no rows say which of its own was the best."""
        config = getattr(load_profile(self.profile), self.block)
        return config if self.control is None else config.model_copy(update={"eval_steps": None})

    def encoder(self) -> Encoder:
        """As the notebooks have it; a control may learn from another side's turns."""
        encoder = encoder_of(load_profile(self.profile), self.block)
        return replace(encoder, supervise=self.control) if self.control in OTHER_SIDES else encoder

    def rows(self, encoder: Encoder) -> list[Encoded]:
        return self.selection(encoder).rows

    def selection(self, encoder: Encoder) -> Selection:
        """What to train on. Simulated conversations come whole and are split here, ShareGPT's were by notebook 01."""
        conversations, _ = apart(load_conversations(self.train), self.config.own_split)
        conversations = drawn(conversations, self.conversations, self.seed)
        if self.block == "realm_sft":
            conversations = [s for parts in split_long(conversations, encoder) for s in parts]
        config, openings = self.config, ()
        if self.control == "plain_segments":
            plain = map(without_context, conversations)
            conversations = [c for c in plain if c.messages]
        elif isinstance(config, UserSFT):
            openings = (config.opening_share, config.opening_rows)
        limits = (config.max_train_tokens, self.seed)
        return select_rows(conversations, encoder, *limits, *openings, max_supervised=self.supervised_tokens)

    def held_out(self, encoder: Encoder) -> list[Encoded]:
        """``valid_conversations`` rows, the same each time, whose loss says which step was the best."""
        own = self.config.own_split
        if self.config.eval_steps is None or (self.valid is None and own is None):
            return []
        if own is None:
            conversations = load_conversations(self.valid)
        else:
            _, conversations = apart(load_conversations(self.train), own)
        order = np.random.default_rng(self.seed).permutation(len(conversations))
        rows = encoder.encode_all([conversations[i] for i in order])
        return list(itertools.islice((r for r in rows if r.supervised), self.config.valid_conversations))

    def command(self) -> list[str]:
        """The command line's words for it."""
        values = {"profile": self.profile, "block": self.block, "train": self.train, "out": self.folder}
        values |= {"seed": self.seed, "valid": self.valid, "control": self.control}
        values |= {"conversations": self.conversations, "supervised-tokens": self.supervised_tokens}
        values = {name: value for name, value in values.items() if value is not None}
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def launch_or_train(
    model: torch.nn.Module, encoder: Encoder, rows: Sequence[Encoded], job: Job
) -> list[dict[str, float]]:
    """``train``, in one process for each GPU where there are several, in ``cpu_processes`` of them without a GPU, else
    right here; the same result in ``model``.

    Raises TrainingError as ``train`` does, and if a launched process failed or came to other rows than ``rows``.
    """
    gpus = torch.cuda.device_count()
    processes = gpus or job.config.cpu_processes
    if processes < 2:
        return train(model, encoder.tokenizer, rows, job.config, job.folder, job.seed, job.held_out(encoder))
    place = next(model.parameters()).device
    if job.config.method != "qlora":  # four-bit weights are small, and stay on the device that packed them
        model.to("cpu")
        torch.cuda.empty_cache()
    launcher = _launcher(job.config, gpus) if gpus else _cpu_launcher(processes)
    run_child([*launcher, *job.command(), "--rows", rows_sha256(rows)])
    _load_trained(model, job.folder / TRAINED)
    model.to(place).eval()
    lines = (job.folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [r for r in map(json.loads, lines) if "loss" in r]


def _launcher(config: SFT, processes: int) -> list[str]:
    """accelerate's launcher: FSDP for all weights, DDP for adapters."""
    sharing = ["--config_file", str(FSDP_CONFIG)] if config.method == "full" else ["--multi_gpu"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    count = ["--num_processes", str(processes), "--main_process_port", "0"]  # 0: any port that is free
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, *sharing, *(plain if config.method != "full" else []), *count, "--module", "realm.training"]


def _cpu_launcher(processes: int) -> list[str]:
    """PyTorch's launcher; the cores are shared out, unless OMP_NUM_THREADS says otherwise."""
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // processes)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return ["env", f"OMP_NUM_THREADS={threads}", *launch, "-m", "realm.training"]


def _load_trained(model: torch.nn.Module, folder: Path) -> None:
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def _write_trained(trainer: SupervisedTrainer, folder: Path) -> None:
    """All processes call it, since each may hold a part of the weights; the main one writes."""
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        whole = trainer.accelerator.unwrap_model(trainer.model)
        with atomic_folder(folder) as workspace:
            whole.save_pretrained(workspace, state_dict=weights)
    trainer.accelerator.wait_for_everyone()


def _train_job(job: Job, expected: str | None) -> None:
    encoder = job.encoder()
    rows = job.rows(encoder)
    if expected not in (None, rows_sha256(rows)):
        raise TrainingError(f"{job.train} gives other rows here than in the notebook that launched this; run it again")
    model = add_adapter(load_base(job.config), job.config, job.seed)
    trainer = run_trainer(model, encoder.tokenizer, rows, job.config, job.folder, job.seed, job.held_out(encoder))
    _write_trained(trainer, job.folder / TRAINED)


def _require_launcher() -> None:
    """Raises TrainingError where the environment speaks of other processes that no launcher started."""
    others = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if others != "1" and missing:
        raise TrainingError(
            f"the environment variable WORLD_SIZE is {others}, and {', '.join(missing)} not set: it leaked out of "
            "another job; unset it, or start this by accelerate launch"
        )


def main(arguments: list[str] | None = None) -> int:
    """Train one stage; under ``accelerate launch`` each process calls it."""
    parser = argparse.ArgumentParser(
        prog="python -m realm.training",
        description=f"Train one stage, alone or under `accelerate launch`. Writes train_log.jsonl and {TRAINED}/ "
        "(an adapter, or the whole model); called again after an interruption, it goes on at the last checkpoint.",
    )
    parser.add_argument("--profile", required=True, help="a name in profiles/, or the path of a YAML file")
    parser.add_argument("--block", required=True, choices=["usergpt_sft", "realm_sft"], help="of the profile")
    parser.add_argument("--train", required=True, type=Path, help="conversations to train on, JSON lines")
    parser.add_argument("--valid", type=Path, help="held-out conversations; needed if the block has eval_steps")
    parser.add_argument("--out", required=True, type=Path, help="folder for log, checkpoints and result")
    parser.add_argument("--seed", type=int, help="default: the profile's")
    parser.add_argument("--control", choices=CONTROLS, help="train this control of notebook 02 instead")
    parser.add_argument("--conversations", type=int, help="train on so many of them, drawn by the seed")
    parser.add_argument("--supervised-tokens", type=int, help="train on rows until the loss has so many tokens")
    parser.add_argument("--rows", help="refuse to train on rows of another hash than this (notebooks give it)")
    given = parser.parse_args(arguments)

    def train_it() -> None:
        _require_launcher()
        state = PartialState(cpu=not torch.cuda.is_available())  # before the model: it chooses each process's device
        seed = load_profile(given.profile).seed if given.seed is None else given.seed
        of_corpus = (given.conversations, given.supervised_tokens)
        job = Job(given.profile, given.block, given.train, given.valid, given.out, seed, given.control, *of_corpus)
        _train_job(job, given.rows)
        state.destroy_process_group()

    return exit_code(train_it, "interrupted; call again to go on at the last checkpoint")
