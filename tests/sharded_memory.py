"""The memory of a full fine-tune on one of several GPUs, tensor by tensor, with nothing allocated.

``python tests/sharded_memory.py CASES`` (JSON) prints, for each case, the bytes at the peak of two micro-batches and
those held between them. accelerate shards the model, transformers computes, PyTorch's tracker counts; tensors have
shapes and no values, and the other processes do not exist. A program of its own: a process group marks the process it
lives in.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

CPU = torch.device("cpu")


def accelerator(width: int, mesh: distributed.DeviceMesh) -> SimpleNamespace:
    """As much of one as sharding asks for, set up as cluster/fsdp.yaml has it."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    precision = "bf16" if width == 2 else "no"
    if width == 2:
        plugin.set_mixed_precision(precision)
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        parallelism_config=SimpleNamespace(fsdp_dim_names=["shards"]),
        torch_device_mesh=mesh,
        mixed_precision=precision,
        is_main_process=False,
        device=CPU,
    )


def measure(case: dict, mesh: distributed.DeviceMesh) -> dict[str, int]:
    """``peak`` and ``between`` micro-batches, bytes; AdamW's moments come on top. ``sync``: after each micro-batch."""
    config = LlamaConfig(**case["shape"], attn_implementation="sdpa")
    ids = torch.zeros(case["batch"], case["length"], dtype=torch.long)
    supervised = int(case["length"] * case["share"])
    targets = torch.zeros(case["batch"] * supervised, dtype=torch.long)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = LlamaForCausalLM(config).train()
        if case["checkpointing"]:
            model.activation_checkpointing_enable()
        fsdp2_prepare_model(accelerator(case["width"], mesh), model)
        tracker = FSDPMemTracker(model, torch.optim.AdamW(model.parameters(), fused=True))
        tracker.track_inputs(())
        now = lambda kind: tracker.get_tracker_snapshot(kind)[CPU]["Total"]  # noqa: E731
        with tracker, torch.autocast("cpu", torch.bfloat16, enabled=case["width"] == 2):
            held = []
            for last in (False, True):
                model.set_requires_gradient_sync(case["sync"] or last)
                logits = model(ids, use_cache=False, logits_to_keep=slice(-supervised, None)).logits
                functional.cross_entropy(logits.flatten(0, 1).float(), targets).backward()
                del logits
                held.append(now("current"))
    return {"peak": now("peak"), "between": held[0]}


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    [processes] = {case["processes"] for case in cases}
    distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    shards = distributed.device_mesh.init_device_mesh("cpu", (processes,), mesh_dim_names=("shards",))
    print(json.dumps([measure(case, shards) for case in cases]))
