"""The training room: QLoRA fine-tuning of either side of the dialogue, and perplexity of either side.

The loss needs logits only where a turn is supervised, a fifth of the tokens on the user's side: the output
head is applied there alone, and tokens after the last supervised one are cut. Neither changes the loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from realm import assets
from realm.conversation import Conversation, Message
from realm.profile import SFT
from realm.provenance import read_json, write_json
from realm.template import IGNORED, ChatFormat, Encoded, Encoder

EVAL_BATCH_TOKENS = 2_048  # its logits over a vocabulary of 49,152, in bfloat16 and float32, take 0.6 GB at most

# Bars of weights being loaded are noise in a notebook; ours show the long work.
transformers_logging.disable_progress_bar()


class TrainingError(RuntimeError):
    """Training that cannot start or go on; the message says why and what to change."""


# ---------------------------------------------------------------- models


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: asset name, local folder or Hub repository."""
    return AutoTokenizer.from_pretrained(assets.model(name))


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
    device_map = {"": torch.cuda.current_device()} if torch.cuda.is_available() and quantization else None
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


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Selection:
    """Rows to train on, their tails cut, and what was left out and why."""

    rows: list[Encoded]
    tokens: int
    supervised: int
    nothing_supervised: int
    over_budget: int


def select_rows(
    conversations: Sequence[Conversation], encoder: Encoder, max_tokens: int | None, seed: int
) -> Selection:
    """Encode conversations in a seeded order until ``max_tokens`` tokens (tails cut) are reached.

    Raises TrainingError if nothing is supervised in any of them.
    """
    order = np.random.default_rng(seed).permutation(len(conversations))
    rows: list[Encoded] = []
    tokens = empty = seen = 0
    bar = tqdm(total=max_tokens, desc="rows to train on", unit="tok", unit_scale=True)
    with bar:
        for first in range(0, len(order), 64):
            for row in encoder.encode_all([conversations[i] for i in order[first : first + 64]]):
                if max_tokens is not None and tokens >= max_tokens:
                    break
                seen += 1
                if row.supervised == 0:
                    empty += 1
                    continue
                rows.append(row.without_tail())
                tokens += len(rows[-1].input_ids)
                bar.update(len(rows[-1].input_ids))
            if max_tokens is not None and tokens >= max_tokens:
                break
    if not rows:
        raise TrainingError(
            f"none of {len(conversations)} conversations has a supervised token: is max_length "
            f"{encoder.max_length} too small, or supervise: {encoder.supervise} the wrong side?"
        )
    return Selection(rows, tokens, sum(r.supervised for r in rows), empty, len(conversations) - seen)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Encoded]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels, "id": row.id}


def collate(features: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Pad on the right to the longest row: tensors of shape (B, T), int64; ``ids`` go along for error messages."""
    longest = max(len(f["input_ids"]) for f in features)
    shape = (len(features), longest)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for i, feature in enumerate(features):
        length = len(feature["input_ids"])
        batch["input_ids"][i, :length] = torch.from_numpy(feature["input_ids"].astype(np.int64))
        batch["attention_mask"][i, :length] = 1
        batch["labels"][i, :length] = torch.from_numpy(feature["labels"].astype(np.int64))
    return {**batch, "ids": [f["id"] for f in features]}


# ---------------------------------------------------------------- loss


def supervised_nll(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood (nats) of each supervised token, and the row each belongs to; both of shape (N,).

    The head is applied at the columns where any row of the batch has a supervised next token
    (``logits_to_keep`` of transformers' causal models), the rest of the logits are never computed.
    """
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORED
    columns = wanted.any(dim=0).nonzero().squeeze(1)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=columns,
        use_cache=False,
    )
    kept = wanted[:, columns]
    loss = functional.cross_entropy(output.logits[kept].float(), targets[:, columns][kept], reduction="none")
    return loss, kept.nonzero()[:, 0]


class _LengthGrouped(torch.utils.data.Sampler):
    """Rows of like length together. The order depends on seed and epoch alone, so a resumed run sees the same."""

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class _SupervisedTrainer(Trainer):
    """transformers' Trainer with the loss above; batching, precision, devices, checkpoints stay its own."""

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(r.input_ids) for r in self.train_dataset.rows]
        return _LengthGrouped(lengths, self.args.train_batch_size, self.args.data_seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs.pop("ids")
        nll, _ = supervised_nll(model, inputs)
        loss = nll.sum() / (num_items_in_batch if num_items_in_batch is not None else max(1, len(nll)))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step} on {', '.join(ids)}; "
                "lower learning_rate or look at these conversations"
            )
        return (loss, None) if return_outputs else loss


class _Progress(TrainerCallback):
    """A text bar, which shows alike in a terminal, a live notebook and an executed one; and a JSON-lines log."""

    def __init__(self, path: Path):
        self.path, self.bar = path, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
            if "loss" in (logs or {}):
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)
                self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: SFT,
    folder: str | Path,
    seed: int,
) -> list[dict[str, float]]:
    """Fine-tune ``model`` in place; checkpoints go to ``folder/checkpoints`` and an interrupted run goes on there.

    Returns one record a step: ``step``, ``loss`` (nats per supervised token), ``learning_rate``, ``grad_norm``.
    Raises TrainingError at the first non-finite loss.
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    content = hashlib.sha256(b"".join(r.input_ids.tobytes() + r.labels.tobytes() for r in rows)).hexdigest()
    _drop_foreign_checkpoints(checkpoints, {"config": config.model_dump(), "seed": seed, "rows": content})
    dtype = compute_dtype(config.compute_dtype)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.schedule,
        bf16=dtype == torch.bfloat16 and config.method == "full",
        activation_checkpointing=config.gradient_checkpointing,
        logging_steps=1,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = _SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows),
        data_collator=lambda features: collate(features, tokenizer.pad_token_id or tokenizer.eos_token_id),
        callbacks=[_Progress(folder / "train_log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(checkpoints))
    model.eval()
    return [r for r in trainer.state.log_history if "loss" in r]


def _last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; what the Trainer writes last is its state."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints))


def _drop_foreign_checkpoints(checkpoints: Path, identity: dict[str, Any]) -> None:
    """Checkpoints of another configuration must not be resumed from."""
    marker = checkpoints / "identity.json"
    if checkpoints.exists() and (not marker.exists() or read_json(marker) != json.loads(json.dumps(identity))):
        shutil.rmtree(checkpoints)
        (checkpoints.parent / "train_log.jsonl").unlink(missing_ok=True)
    if not marker.exists():
        write_json(marker, identity)


# ---------------------------------------------------------------- perplexity


@dataclass(frozen=True)
class Likelihood:
    """Per conversation: negative log-likelihood (nats) and number of supervised tokens; arrays of shape (n,)."""

    ids: list[str]
    nll: np.ndarray
    tokens: np.ndarray

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll.sum() / self.tokens.sum())


@torch.inference_mode()
def likelihood(
    model: torch.nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, desc: str
) -> Likelihood:
    """Likelihood of the supervised turns of each row, in batches of similar length."""
    rows = [r.without_tail() for r in rows if r.supervised]
    if not rows:
        raise TrainingError("no held-out conversation has a supervised token")
    device = next(model.parameters()).device
    nll, tokens = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    pad_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    was_training = model.training
    model.eval()
    with tqdm(total=len(rows), desc=desc, unit="conv") as bar:
        for indices in _batches_by_length([len(r.input_ids) for r in rows]):
            batch = collate([_Rows(rows)[i] for i in indices], pad_id)
            batch.pop("ids")
            losses, owner = supervised_nll(model, {k: v.to(device) for k, v in batch.items()})
            sums = torch.zeros(len(indices), dtype=torch.float64, device=device).index_add_(0, owner, losses.double())
            nll[indices] = sums.cpu().numpy()
            bar.update(len(indices))
    model.train(was_training)
    return Likelihood([r.id for r in rows], nll, tokens)


def _batches_by_length(lengths: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > EVAL_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch


# ---------------------------------------------------------------- sampling


@torch.inference_mode()
def sample_turns(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat,
    contexts: Sequence[Sequence[Message]],
    *,
    reply_as: str,
    system: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """The next turn of ``reply_as`` after each context, sampled in-process with the training template."""
    torch.manual_seed(seed)
    prompts = [chat.render(list(c), system, reply_as=reply_as)[0] for c in contexts]
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    ids = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    longest = max(map(len, ids))
    device = next(model.parameters()).device
    stop = tokenizer.convert_tokens_to_ids(chat.ends[reply_as])
    output = model.generate(
        input_ids=torch.tensor([[pad] * (longest - len(i)) + i for i in ids], device=device),
        attention_mask=torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=device),
        do_sample=True,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    return [tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in output]


# ---------------------------------------------------------------- artefacts


def save_servable(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, config: SFT, folder: str | Path, template: str
) -> dict[str, Path]:
    """Write ``adapter/`` (PEFT) and ``merged/`` (the unquantized base with the adapter added, bfloat16).

    The tokenizer in both carries ``template``, the chat template that servers render. A full fine-tune has
    no adapter. Returns the folders written.
    """
    folder = Path(folder)
    written: dict[str, Path] = {}
    merged = model
    if isinstance(model, PeftModel):
        written["adapter"] = _replace_folder(folder / "adapter", lambda d: _save(model, tokenizer, template, d))
        base = AutoModelForCausalLM.from_pretrained(
            assets.model(config.base_model), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        merged = PeftModel.from_pretrained(base, written["adapter"]).merge_and_unload()
    merged = merged.to(torch.bfloat16)
    written["merged"] = _replace_folder(folder / "merged", lambda d: _save(merged, tokenizer, template, d))
    # Servers need to know whose vocabulary this is.
    (folder / "base_model.txt").write_text(config.base_model + "\n", encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return written


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, template: str, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _replace_folder(folder: Path, write) -> Path:
    """Write a folder beside its place, then move it there: it is whole or not there."""
    workspace = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    write(workspace)
    shutil.rmtree(folder, ignore_errors=True)
    workspace.rename(folder)
    return folder
