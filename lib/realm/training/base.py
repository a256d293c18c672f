"""The model that is trained: the base as the method wants it, and its adapter."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from realm.core.errors import OneLineError
from realm.core.profile import SFT
from realm.models import assets

# Bars of weights being loaded are noise in a notebook; ours show the long work.
transformers_logging.disable_progress_bar()


NO_GRADIENT = "an autograd kernel was not registered"  # PyTorch's words where a gradient is dropped
# It warns, and goes on with a wrong gradient. Nothing here may.
warnings.filterwarnings("error", message=f".*{NO_GRADIENT}")


class TrainingError(OneLineError, RuntimeError):
    """Training that cannot start or go on; the message says why and what to change."""


def compute_dtype(wanted: str) -> torch.dtype:
    """``auto``: bfloat16 where the processor computes in it (it is slower than float32 where it does not)."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def sharded() -> bool:
    """Whether the launcher has the weights shared out over its processes (FSDP): then no device holds a whole model."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def load_base(config: SFT) -> PreTrainedModel:
    """The base model as ``config.method`` wants it: NF4 with double quantization for qlora, plain otherwise.

    On a CPU the rounded weights of qlora are unpacked once, into plain layers of the compute dtype: packed, each batch
    unpacks them anew, and a pass in evaluation mode leaves them in a form that has no gradient
    (``refuse_without_gradient``). On a GPU they stay packed.
    """
    dtype = compute_dtype(config.compute_dtype)
    quantization = None
    if config.method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if config.method == "full":
        dtype = torch.float32  # weights that are trained keep full precision; autocast computes in bfloat16
    device_map = {"": torch.cuda.current_device()} if torch.cuda.is_available() and not sharded() else None
    model = AutoModelForCausalLM.from_pretrained(
        assets.model(config.base_model),
        dtype=dtype,
        quantization_config=quantization,
        use_safetensors=True,
        trust_remote_code=False,
        device_map=device_map,
        # On a CPU the gradient of PyTorch's fused attention takes longer than that of plain products of matrices.
        attn_implementation=None if torch.cuda.is_available() else "eager",
    )
    return model if quantization is None or torch.cuda.is_available() else _unpacked(model, dtype)


def _unpacked(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same rounded weights, in plain linear layers."""
    loudness = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that precision is lost by this: it was lost by rounding
    try:
        plain = model.dequantize(dtype)
    finally:
        transformers_logging.set_verbosity(loudness)
    plain.is_loaded_in_4bit = False  # else peft and accelerate would still take it for packed
    return plain


def refuse_without_gradient(model: torch.nn.Module) -> None:
    """Raise TrainingError if a layer's four-bit weights are in bitsandbytes' layout for inference on CPUs.

    ``Linear4bit.forward`` repacks them in the first pass in evaluation mode on a CPU with AVX-512 bfloat16, and so they
    stay: from then on the gradient that should flow back through the frozen weights is dropped, and PyTorch only warns
    (bitsandbytes 0.50.2).
    """
    for name, parameter in model.named_parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise TrainingError(
                f"{name}: its four-bit weights were repacked by a pass in evaluation mode and have no gradient now; "
                "load the base model again by load_base, which unpacks them"
            )


def add_adapter(model: PreTrainedModel, config: SFT, seed: int) -> PreTrainedModel:
    """LoRA on all linear layers but the head; the model itself for a full fine-tune."""
    if config.method == "full":
        return model
    torch.manual_seed(seed)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()  # else nothing upstream of the first adapter asks for a gradient
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


@contextlib.contextmanager
def adapter_off(model: torch.nn.Module) -> Iterator[None]:
    """The base model inside an adapted one: what "before" means, on the same quantized weights."""
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        yield
