"""Which GPUs of this machine a local server has, where others are served beside it: by one rule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from realm.core.endpoint import GPU_SHARE
from realm.core.profile import Endpoint
from realm.serving.faults import EndpointError


@dataclass(frozen=True)
class Place:
    """Of the GPUs seen, those of one server; ``memory``: its share of each of them."""

    gpus: tuple[str, ...]
    memory: float

    def options(self, tensor_parallel: int) -> list[str]:
        """vLLM's: copies of the model, each over ``tensor_parallel`` of the GPUs."""
        copies = len(self.gpus) // tensor_parallel
        words = ["--gpu-memory-utilization", f"{self.memory:g}"]
        words += ["--tensor-parallel-size", str(tensor_parallel)] if tensor_parallel > 1 else []
        return words + (["--data-parallel-size", str(copies)] if copies > 1 else [])


def seen() -> tuple[str, ...]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them. Slurm sets that variable
    for a job, and whatever is started in it inherits it."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    import torch  # seconds to import, and who talks with a service alone does not need it

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def place(endpoint: Endpoint, gpus: Sequence[str], share: int = 1, number: int = 0) -> Place:
    """What the ``number``-th of ``share`` servers has of ``gpus``: as many as the others, the first ones those that are
    left over; where there are fewer GPUs than servers, all share the first one and divide its memory.

    Raises EndpointError where ``tensor_parallel`` does not go into them.
    """
    each, over = divmod(len(gpus), share)
    if each == 0:
        mine, memory = tuple(gpus[:1]), GPU_SHARE / share
    else:
        first = number * each + min(number, over)
        mine, memory = tuple(gpus[first : first + each + (number < over)]), GPU_SHARE
    width = endpoint.tensor_parallel
    if width > max(1, len(mine)):
        others = f", {share} servers divide {len(gpus)}" if share > 1 else ""
        raise EndpointError(
            "failed",
            f"tensor_parallel {width} of {endpoint.model}: it has {len(mine)} GPUs{others}; lower it or ask for more",
        )
    whole = mine[: len(mine) // width * width]
    return Place(whole, memory if endpoint.gpu_memory_share is None else endpoint.gpu_memory_share)
