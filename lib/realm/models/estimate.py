"""Before a run is paid for: parameters, memory, tokens, steps and time of a fine-tune, from its profile alone.

No weights are loaded and nothing is fetched. The CPU's time is held against the measured reference run by tests, the
memory of a sharded fine-tune against the tensors of its very passes (``tests/sharded_memory.py``); times on GPUs are
estimates that no run has tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from realm.core.profile import SFT, Profile
from realm.models.architecture import Architecture, UnknownArchitecture, architecture
from realm.models.workload import Workload, optimizer_steps, workload

GIB = 2**30
# One byte an 8-bit scale for each block of 64 weights, one float32 for 256 scales (QLoRA, arXiv 2305.14314, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
STATE_BYTES = 4 + 8  # what is trained is float32: its gradient, and AdamW's two moments
FULL_GPUS = 4  # of the paper, and of profile paper's jobs
# Bytes a layer keeps for its backward pass, a token: so many times the hidden and the intermediate width.
# Counted from what autograd saves (tests/test_estimate.py); adapters in bfloat16 keep float32 copies of inputs.
ACTIVATION_BYTES = {
    ("full", 4): (40, 16),
    ("full", 2): (34, 8),
    ("adapter", 4): (32, 16),
    ("adapter", 2): (40, 10),
}


@dataclass(frozen=True)
class Device:
    """``flops``: published dense peak a second; ``gib``: memory; ``utilization``: the share of the peak assumed."""

    flops: float
    gib: float
    utilization: tuple[float, float]


# Two AVX-512 cores that multiply bfloat16: twice the 2 multiply-adds of 16 float32 lanes a cycle, at 2.5 GHz; the range
# takes in cores that have float32 or AVX2 only.
CPU = {"2 CPU cores": Device(2 * 128 * 2.5e9, float("inf"), (0.075, 0.6))}
# NVIDIA's data sheets: bfloat16 on tensor cores with float32 sums, no sparsity. PaLM (arXiv 2204.02311) reached 46 %.
GPUS = {
    "RTX 4090 24 GB": Device(165.2e12, 24, (0.2, 0.5)),
    "A100 80 GB": Device(312e12, 80, (0.2, 0.5)),
    "H100 80 GB": Device(989e12, 80, (0.2, 0.5)),
}
# Assumed, not measured: what the CUDA context and NCCL take of a card, and the share that the allocator's holes take.
LIBRARIES_GIB, HOLES = 1.5, 0.1


def memory(
    shape: Architecture, config: SFT, length: int, share: float, processes: int, width: int, fused: bool = True
) -> dict[str, float]:
    """Bytes on each device at the peak of a step over rows of ``length`` tokens; ``width``: bytes of the compute dtype;
    ``fused``: attention keeps no matrix of a row's tokens by its tokens, as on a GPU.

    ``full`` is sharded over ``processes`` (FSDP), adapters are repeated on each (DDP). Gradients are shared out after
    each micro-batch: none holds the whole one, which would be ``width`` bytes a parameter more. Tensors alone:
    libraries, the CUDA context and the allocator's holes come on top (``fits``); benchmarks/training.py measures the
    peaks of processes.
    """
    full, tokens = config.method == "full", config.batch_size * length
    sharded = full and processes > 1
    trained = shape.parameters if full else shape.adapter(config.lora_rank)
    other = shape.parameters - shape.linear
    weights = {
        "qlora": NF4_BYTES * shape.linear + width * other,
        "lora": width * shape.parameters,
        "full": 4 * shape.parameters / processes + _working_copy(shape, processes, width),
    }[config.method]
    hidden, intermediate = ACTIVATION_BYTES["full" if full else "adapter", width]
    layer = tokens * (hidden * shape.hidden + intermediate * shape.intermediate)
    if not fused:  # probabilities in float32, and in a smaller compute dtype too; keys and values for each head
        layer += tokens * (shape.heads * length * (4 if width == 4 else 4 + width) + 2 * shape.hidden * width)
    # The layer's input, all that checkpointing keeps: under autocast what layers hand on stays float32.
    kept = tokens * shape.hidden * (4 if full and not sharded else width)
    supervised = tokens * share  # the head is applied there alone
    return {
        "weights": weights,
        "adapter": 0 if full else 4 * trained,
        "gradients, AdamW": STATE_BYTES * trained / (processes if full else 1),
        "activations": shape.layers * kept + layer if config.gradient_checkpointing else shape.layers * layer,
        # Three times float32 beside the logits: log-probabilities and two gradients.
        "logits": shape.vocab * supervised * (width + 12),
    }


def _working_copy(shape: Architecture, processes: int, width: int) -> float:
    """What a full fine-tune holds beside its float32 weights.

    Sharded, the most of: embedding, head and two layers gathered, one that computes and one that is fetched; a layer
    gathered while the next one is, with its gradient and what of it is shared out; embedding or head likewise, and
    where they are one, with two gradients. On one device: the bfloat16 copies that autocast keeps.
    """
    if processes == 1:
        return 0 if width == 4 else width * shape.parameters
    layer = shape.linear / shape.layers
    gathered = shape.parameters - shape.linear + 2 * layer
    return width * max(gathered, 4 * layer, (4 if shape.tied else 3) * shape.head)


def fits(size: float, device: Device) -> bool:
    """Whether ``size`` bytes of tensors leave room on ``device`` for libraries and the allocator's holes."""
    return size / GIB <= (1 - HOLES) * device.gib - LIBRARIES_GIB


def stage_flops(shape: Architecture, config: SFT, load: Workload) -> float:
    """Operations of training and of the perplexity before and after it.

    A forward pass takes 2 a weight and token, and 4 * layers * hidden * length for attention (arXiv 2204.02311,
    appendix B, per forward pass). The backward pass repeats it for the inputs and takes 2 a trained weight; attention
    counts twice. Checkpointing adds a forward pass. The head counts where it is applied.
    """
    full = config.method == "full"
    adapter = 0 if full else shape.adapter(config.lora_rank)
    weights = shape.linear + adapter + shape.head * load.share
    attention = 4 * shape.layers * shape.hidden * load.length
    again = int(config.gradient_checkpointing)
    step = (2 + again) * 2 * weights + 2 * (weights if full else adapter) + (3 + again) * attention
    evaluated = 2 * config.test_conversations * load.length
    return config.epochs * load.tokens * step + evaluated * (2 * weights + attention)


def seconds(flops: float, device: Device, processes: int) -> tuple[float, float]:
    """Least and most, over the device's range of utilization."""
    low, high = device.utilization
    return flops / (device.flops * high * processes), flops / (device.flops * low * processes)


HEADING = "estimate before training; untested on a GPU (times at 20 to 50 % of its peak; models under 1B reach less)"


def _duration(value: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.{int(value < 10 * size)}f} {unit}"
    return f"{value:.0f} s"


def stage_rows(profile: Profile, block: str, measured: Mapping[str, float], gpus: int | None) -> dict[str, str]:
    """Label -> text of one training stage. Raises UnknownArchitecture for a model whose shape is not known.

    ``gpus`` null: 4 for a full fine-tune, else 1. ``compute_dtype: auto`` counts as bfloat16 if GPUs are asked for.
    Processes of a CPU share its time, and hold their tensors each.
    """
    config = getattr(profile, block)
    on_gpu = config.compute_dtype == "bfloat16" or (config.compute_dtype == "auto" and gpus is not None)
    processes = gpus or (config.cpu_processes if not on_gpu else FULL_GPUS if config.method == "full" else 1)
    shape, load = architecture(config.base_model), workload(profile, block, measured)
    devices, width = (processes, 2) if on_gpu else (1, 4)
    parts = memory(shape, config, profile.dialogue.max_length, load.share, devices, width, fused=on_gpu)
    total, flops = sum(parts.values()), stage_flops(shape, config, load)
    # The notebook compares before and after on one device, where nothing else is then.
    whole = 4 * shape.parameters if config.method == "full" else 0
    trained = shape.parameters if config.method == "full" else shape.adapter(config.lora_rank)
    rows = {
        "parameters": f"{shape.parameters + (0 if config.method == 'full' else trained):,}",
        "trained": f"{trained:,}",
        "method, processes": f"{config.method}, {processes}",
        **{f"GiB per device: {name}": f"{size / GIB:.2f}" for name, size in parts.items()},
        "GiB per device: total": f"{total / GIB:.2f}",
        **({"GiB on one, to compare": f"{whole / GIB:.2f}"} if whole and processes > 1 else {}),
        "training tokens, at most": f"{config.epochs * load.tokens:,}",
        "optimizer steps": f"{'>= ' if load.few_segments else ''}{optimizer_steps(config, load.segments, processes):,}",
    }
    for name, device in (GPUS if on_gpu else CPU).items():
        span = " to ".join(map(_duration, seconds(flops, device, devices)))
        rows[f"time, {name}"] = span if fits(max(total, whole), device) else "does not fit"
    return rows


def table(profile: Profile, blocks: list[str], measured: Mapping[str, float], gpus: int | None = None) -> str:
    """Estimates of the training stages side by side, what they rest on, and the stages that cannot be estimated."""
    columns, notes = {}, []
    for block in blocks:
        try:
            columns[block] = stage_rows(profile, block, measured, gpus)
            notes.append(f"   {block}: {workload(profile, block, measured).basis}")
        except UnknownArchitecture as error:
            notes.append(f"   {block}: cannot estimate: {error}")
    labels = list(dict.fromkeys(label for rows in columns.values() for label in rows))
    lines = [
        "   " + f"{label:34s}" + "".join(f"{rows.get(label, ''):>20s}" for rows in columns.values()) for label in labels
    ]
    head = "   " + " " * 34 + "".join(f"{block:>20s}" for block in columns)
    if columns:
        room = f"{LIBRARIES_GIB} GiB and {HOLES:.0%} of a card"
        notes.append(f"   memory is that of tensors; what fits leaves {room} for libraries and the allocator's holes")
    return "\n".join([HEADING, *([head] if columns else []), *lines, *notes])
