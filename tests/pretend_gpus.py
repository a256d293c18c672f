"""Processes that accelerate takes for GPUs: FSDP itself runs, between CPUs that talk through gloo.

A module for accelerate's launcher in the place of ``realm.training``. Only accelerate's answers are other than on this
machine (which backend, which device), never the library's. ``PRETEND_REPORT``: a folder for what each process says at
its end; ``PRETEND_SLOW``: the number of a process that is late after every barrier.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

RANK = os.environ["RANK"]


def pretend() -> None:
    """From here on accelerate finds this process to be one of several, a GPU each."""
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *arguments, **values: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    PartialState.wait_for_everyone = lambda self: torch.distributed.barrier()  # gloo takes no numbers of devices


def be_late() -> None:
    barrier = torch.distributed.barrier

    @functools.wraps(barrier)
    def late(*arguments, **values):
        barrier(*arguments, **values)
        time.sleep(0.3)

    torch.distributed.barrier = late


def whole_gradients(model: torch.nn.Module) -> int:
    """Bytes of the gradients of whole weights that this process holds, none of them shared out yet."""
    groups = {id(g): g for m in model.modules() if isinstance(m, FSDPModule) and (g := group_of(m)) is not None}
    parameters = [p for g in groups.values() for p in g.fsdp_params if hasattr(p, "_unsharded_param")]
    held = [g for p in parameters for g in (p.unsharded_accumulated_grad, p._unsharded_param.grad)]
    return sum(gradient.nbytes for gradient in held if gradient is not None)


def group_of(module: FSDPModule):
    return module._get_fsdp_state()._fsdp_param_group


def report(path: Path) -> None:
    """Have this process write down which checkpoint it takes for the best, in what it computes and what it holds."""
    says: dict[str, Any] = {"best": None, "computes": set(), "whole_gradients": []}

    def step(trainer: Trainer, model: torch.nn.Module, *arguments, **values):
        layer = model.get_submodule("model.layers.0.mlp.up_proj")
        handle = layer.register_forward_hook(
            lambda m, _, out: says["computes"].update({str(m.weight.dtype), str(out.dtype)})
        )
        loss = training_step(trainer, model, *arguments, **values)
        handle.remove()
        says["whole_gradients"].append(whole_gradients(model))
        return loss

    def finalize(trainer: Trainer, *arguments):
        says["best"] = trainer.state.best_model_checkpoint
        path.write_text(json.dumps({**says, "computes": sorted(says["computes"])}))
        return finalize_training(trainer, *arguments)

    training_step, finalize_training = Trainer.training_step, Trainer._finalize_training
    Trainer.training_step, Trainer._finalize_training = step, finalize


if __name__ == "__main__":
    pretend()
    if os.environ["PRETEND_SLOW"] == RANK:
        be_late()
    report(Path(os.environ["PRETEND_REPORT"]) / f"rank{RANK}.json")
    from realm.training.launch import main

    sys.exit(main())
