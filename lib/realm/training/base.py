"""The model that is trained: the base as the method wants it, and its adapter."""

from __future__ import annotations

import contextlib
import os
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


class TrainingError(OneLineError, RuntimeError):
    """Training that cannot start or go on; the message says why and what to change."""


def compute_dtype(wanted: str) -> torch.dtype:
    """``auto``: bfloat16 where the processor computes in it (it is slower than float32 where it does not)."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_base(config: SFT) -> PreTrainedModel:
    """The base model as ``config.method`` wants it: NF4 with double quantization for qlora, plain otherwise."""
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
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"  # then no device holds a whole model
    device_map = {"": torch.cuda.current_device()} if torch.cuda.is_available() and not sharded else None
    return AutoModelForCausalLM.from_pretrained(
        assets.model(config.base_model),
        dtype=dtype,
        quantization_config=quantization,
        use_safetensors=True,
        trust_remote_code=False,
        device_map=device_map,
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
