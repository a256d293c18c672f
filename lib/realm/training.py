"""The training room: QLoRA fine-tuning of either side of the dialogue, and perplexity of either side.

The loss needs logits only where a turn is supervised, a fifth of the tokens on the user's side: the output
head is applied there alone, and tokens after the last supervised one are cut. Neither changes the loss.

Rows of like length share a batch, and are not packed into one: what packing saves is padding, and length groups leave
little of it, while conversations in one row need a mask between them, for which attention falls back to slower kernels.
benchmarks/training.py runs both on the CPU (``ratio_to_ours_packed``): among about as many rows as profile ``cpu`` has,
groups are faster; among 16 of at most 512 tokens, which match badly, packing is. On a GPU this is reasoning, untested;
kernels for packed rows (flash attention with sequence bounds) would be one more library to build there.

``python -m realm.training`` is the same training outside a notebook, for ``accelerate launch``: one process a GPU.
An optimizer step then sees batch_size * accumulation * processes segments; the budget of tokens is that of all
processes together. A full fine-tune is sharded over them (FSDP), adapters are repeated on each (DDP).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
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
from realm.conversation import Conversation, ConversationFileError, Message, load_conversations
from realm.model_card import public_name
from realm.profile import SFT, ProfileError, load_profile
from realm.provenance import ArtefactError, atomic_path, read_json, write_json
from realm.template import IGNORED, ChatFormat, Encoded, Encoder, TemplateError, chat_format, load_tokenizer, split_long

FSDP_CONFIG = Path(__file__).resolve().parents[2] / "cluster" / "fsdp.yaml"
TRAINED = "trained"  # where launched processes leave their weights: an adapter, or the whole model
EVAL_BATCH_TOKENS = 2_048  # its logits over a vocabulary of 49,152, in bfloat16 and float32, take 0.6 GB at most

# Bars of weights being loaded are noise in a notebook; ours show the long work.
transformers_logging.disable_progress_bar()


class TrainingError(RuntimeError):
    """Training that cannot start or go on; the message says why and what to change."""


# ---------------------------------------------------------------- models


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
    with _bar(total=max_tokens, desc="rows to train on", unit="tok", unit_scale=True) as bar:
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


def rows_sha256(rows: Sequence[Encoded]) -> str:
    """A hash of all tokens and labels, in order."""
    return hashlib.sha256(b"".join(r.input_ids.tobytes() + r.labels.tobytes() for r in rows)).hexdigest()


def _bar(**values: Any) -> tqdm:
    """A text bar, on the main process alone."""
    return tqdm(disable=os.environ.get("RANK", "0") != "0", **values)


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
        "labels": torch.full(shape, IGNORED),
    }
    for i, feature in enumerate(features):
        length = len(feature["input_ids"])
        batch["input_ids"][i, :length] = torch.from_numpy(feature["input_ids"].astype(np.int64))
        batch["labels"][i, :length] = torch.from_numpy(feature["labels"].astype(np.int64))
    return {**batch, "ids": [f["id"] for f in features]}


# ---------------------------------------------------------------- loss


def supervised_logits(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of the N supervised tokens: logits (N, V) that foretell it, its id, its row and its column, (N,) each.

    The head sees the N hidden states before a supervised token and no other; the rest of the logits, most of
    them, are never computed.
    """
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORED
    # No attention mask: rows are padded on the right, where causal attention never looks from a token of the row.
    # Without one, attention runs by kernels that skip the upper triangle.
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with _head_at(model, wanted):
        logits = model(**inputs, use_cache=False).logits
    row, column = wanted.nonzero(as_tuple=True)
    return logits, targets[wanted], row, column + 1


@contextlib.contextmanager
def _head_at(model: torch.nn.Module, wanted: torch.Tensor) -> Iterator[None]:
    """The output head gets the hidden states at ``wanted``, (B, T - 1), as (N, hidden): its logits are (N, V)."""
    # By a hook, because a call around the model's own forward would pass by what wraps it: DDP, FSDP, autocast.
    head = getattr(model, "module", model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :-1][wanted],))
    try:
        yield
    finally:
        handle.remove()


def supervised_nll(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood (nats) of each supervised token, and the row each belongs to; both of shape (N,)."""
    logits, targets, row, _ = supervised_logits(model, batch)
    return functional.cross_entropy(logits.float(), targets, reduction="none"), row


class _LengthGrouped(torch.utils.data.Sampler):
    """Rows of like length share a batch, batches come in random order: else a step would see long turns or short
    ones only. The order depends on seed and epoch alone, so a resumed run sees the same."""

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch, generator=generator)
        batches = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        whole = len(rows) // self.batch  # a short batch stays the last one, or those after it would be cut anew
        order = torch.randperm(whole, generator=generator).tolist() + list(range(whole, len(batches)))
        return iter([row for i in order for row in batches[i]])


class _SupervisedTrainer(Trainer):
    """transformers' Trainer with the loss above; batching, precision, devices, checkpoints stay its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, **values: Any):
        pad_id = tokenizer.pad_token_id or tokenizer.eos_token_id
        super().__init__(data_collator=lambda features: collate(features, pad_id), **values)
        self.padding = tokenizer

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(r.input_ids) for r in self.train_dataset.rows]
        return _LengthGrouped(lengths, self.args.train_batch_size, self.args.data_seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs.pop("ids")
        nll, _ = supervised_nll(model, inputs)
        # Gradients are averaged over processes, and the tokens counted are those of all of them.
        loss = self.accelerator.num_processes * nll.sum() / num_items_in_batch
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step} on {', '.join(ids)}; "
                "lower learning_rate or look at these conversations"
            )
        return (loss, None) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Nats per supervised token of the few validation rows, all of them on every process.

        FSDP needs the same calls everywhere; and all must agree on which step was the best, to the last bit.
        """
        found = likelihood(self.model, self.eval_dataset.rows, self.padding, "validation")
        [loss] = broadcast_object_list([float(found.nll.sum() / found.tokens.sum())])
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss is {loss} at step {self.state.global_step}; lower learning_rate")
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _KeepEvaluated(TrainerCallback):
    """What was evaluated is stored, at the last step too: the best is loaded from there."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save = True


class _Progress(TrainerCallback):
    """A text bar, which shows alike in a terminal, a live notebook and an executed one; and a JSON-lines log."""

    def __init__(self, path: Path):
        self.path, self.bar = path, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = _bar(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        if state.is_world_process_zero:
            # Steps after the checkpoint are done again: the log goes back to it too.
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(_log_line(r) for r in state.log_history), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(_log_line({"step": state.global_step, **(logs or {})}))
            if "loss" in (logs or {}):
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)
                self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def _log_line(record: dict[str, Any]) -> str:
    return json.dumps({"step": record["step"], **record}) + "\n"


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: SFT,
    folder: str | Path,
    seed: int,
    valid: Sequence[Encoded] = (),
) -> list[dict[str, float]]:
    """Fine-tune ``model`` in place; checkpoints go to ``folder/checkpoints`` and an interrupted run goes on there.

    With ``config.eval_steps``, ``valid`` is evaluated every so many steps and at the end (``eval_loss`` in
    ``train_log.jsonl``, nats per supervised token), and ``model`` ends as it was where that was lowest.
    Returns one record a step: ``step``, ``loss`` (nats per supervised token), ``learning_rate``, ``grad_norm``.
    Raises TrainingError at the first non-finite loss, naming the conversations of its batch.
    """
    trainer = _trained(model, tokenizer, rows, config, Path(folder), seed, valid)
    return [r for r in trainer.state.log_history if "loss" in r]


def _trained(model, tokenizer, rows, config: SFT, folder: Path, seed: int, valid) -> _SupervisedTrainer:
    """The trainer when it is done; under FSDP it holds the only whole view of the weights."""
    checkpoints = folder / "checkpoints"
    if config.eval_steps is not None and not valid:
        raise TrainingError("eval_steps is set, but there are no validation rows; give some, or set it to null")
    arguments = _arguments(config, checkpoints, seed)
    if arguments.n_gpu > 1:
        raise TrainingError("more than one GPU in one process; use `accelerate launch`, which starts one for each")
    identity = {
        "config": config.model_dump(),
        "seed": seed,
        "rows": rows_sha256(rows),
        "valid": rows_sha256(valid),
        "processes": arguments.world_size,  # they share out the rows: another number sees them in another order
    }
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            _drop_foreign_checkpoints(checkpoints, identity)
            _drop_broken_checkpoints(checkpoints)
    trainer = _SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows),
        eval_dataset=_Rows([r.without_tail() for r in valid]),
        tokenizer=tokenizer,
        callbacks=[_Progress(folder / "train_log.jsonl"), _KeepEvaluated()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    model.eval()
    return trainer


def _arguments(config: SFT, checkpoints: Path, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.schedule,
        bf16=compute_dtype(config.compute_dtype) == torch.bfloat16 and config.method == "full",
        activation_checkpointing=config.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number stops the run; it is not averaged away
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=1,  # the last one, and the best if that is another
        eval_strategy="no" if config.eval_steps is None else "steps",
        eval_steps=config.eval_steps,
        load_best_model_at_end=config.eval_steps is not None,
        metric_for_best_model="loss",
        greater_is_better=False,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # an adapter's weights all take part in every pass
        use_cpu=not torch.cuda.is_available(),
    )


def _drop_broken_checkpoints(checkpoints: Path) -> None:
    """Keep what was written to its end: the Trainer writes its state last, and half a JSON file does not parse."""
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            read_json(folder / "trainer_state.json")
        except ArtefactError:
            shutil.rmtree(folder)


def _drop_foreign_checkpoints(checkpoints: Path, identity: dict[str, Any]) -> None:
    """Checkpoints of another configuration must not be resumed from."""
    marker = checkpoints / "identity.json"
    if checkpoints.exists() and (not marker.exists() or read_json(marker) != json.loads(json.dumps(identity))):
        shutil.rmtree(checkpoints)
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


@torch.no_grad()
def likelihood(
    model: torch.nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, desc: str
) -> Likelihood:
    """Likelihood of the supervised turns of each row, in batches of similar length."""
    rows = [r.without_tail() for r in rows if r.supervised]
    if not rows:
        raise TrainingError("no held-out conversation has a supervised token")
    nll, tokens = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    for indices, batch in held_out_batches(model, rows, tokenizer, desc):
        losses, owner = supervised_nll(model, batch)
        sums = torch.zeros(len(indices), dtype=torch.float64, device=losses.device)
        nll[indices] = sums.index_add_(0, owner, losses.double()).cpu().numpy()
    return Likelihood([r.id for r in rows], nll, tokens)


def held_out_batches(
    model: torch.nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, desc: str
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Indices and tensors on the model's device, rows of similar length together, the model in evaluation mode."""
    device = next(model.parameters()).device
    pad_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    was_training = model.training
    model.eval()
    with _bar(total=len(rows), desc=desc, unit="conv") as bar:
        for indices in _batches_by_length([len(r.input_ids) for r in rows]):
            batch = collate([_Rows(rows)[i] for i in indices], pad_id)
            batch.pop("ids")
            yield indices, {k: v.to(device) for k, v in batch.items()}
            bar.update(len(indices))
    model.train(was_training)


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
    if not contexts:
        return []
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
        _name_base(written["adapter"], config.base_model)
        base = AutoModelForCausalLM.from_pretrained(
            assets.model(config.base_model), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        merged = PeftModel.from_pretrained(base, written["adapter"]).merge_and_unload()
    merged = merged.to(torch.bfloat16)
    written["merged"] = _replace_folder(folder / "merged", lambda d: _save(merged, tokenizer, template, d))
    # Servers need to know whose vocabulary this is.
    (folder / "base_model.txt").write_text(config.base_model + "\n", encoding="utf-8")
    for done_with in ("checkpoints", TRAINED):
        shutil.rmtree(folder / done_with, ignore_errors=True)
    return written


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, template: str, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _name_base(folder: Path, base_model: str) -> None:
    """peft notes from where the base was loaded: a path of this machine, where its name would serve anywhere.

    The README.md that peft adds holds the path too, and nothing that ``realm.model_card`` does not say better.
    """
    path = folder / "adapter_config.json"
    write_json(path, {**read_json(path), "base_model_name_or_path": public_name(base_model)})
    (folder / "README.md").unlink(missing_ok=True)


def _replace_folder(folder: Path, write) -> Path:
    """Write a folder beside its place, then move it there: it is whole or not there."""
    workspace = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    write(workspace)
    shutil.rmtree(folder, ignore_errors=True)
    workspace.rename(folder)
    return folder


# ---------------------------------------------------------------- one process a GPU


@dataclass(frozen=True)
class Job:
    """A training stage by names and files, from which every process comes to the same rows by itself.

    ``profile``: a name or path; ``block``: usergpt_sft or realm_sft; ``train``, ``valid``: conversation files, the
    second read only if the block has ``eval_steps``; ``folder``: where log and checkpoints go.
    """

    profile: str
    block: str
    train: Path
    valid: Path | None
    folder: Path
    seed: int

    @property
    def config(self) -> SFT:
        return getattr(load_profile(self.profile), self.block)

    def encoder(self) -> Encoder:
        """As the notebooks build it."""
        dialogue, config = load_profile(self.profile).dialogue, self.config
        tokenizer = load_tokenizer(config.base_model)
        chat = chat_format(dialogue.template, tokenizer)
        return Encoder(tokenizer, chat, config.supervise, dialogue.max_length, ending=config.learn_ending)

    def rows(self, encoder: Encoder) -> list[Encoded]:
        """What to train on. Simulated conversations come whole and are split here, ShareGPT's were by notebook 01."""
        conversations = load_conversations(self.train)
        if self.block == "realm_sft":
            conversations = [s for parts in split_long(conversations, encoder) for s in parts]
        return select_rows(conversations, encoder, self.config.max_train_tokens, self.seed).rows

    def held_out(self, encoder: Encoder) -> list[Encoded]:
        """``eval_conversations`` rows, the same each time, whose loss says which step was the best."""
        if self.config.eval_steps is None or self.valid is None:
            return []
        conversations = load_conversations(self.valid)
        order = np.random.default_rng(self.seed).permutation(len(conversations))
        rows = encoder.encode_all([conversations[i] for i in order])
        return list(itertools.islice((r for r in rows if r.supervised), self.config.eval_conversations))

    def command(self) -> list[str]:
        """The command line's words for it."""
        values = {"profile": self.profile, "block": self.block, "train": self.train, "out": self.folder}
        values |= {"seed": self.seed} | ({"valid": self.valid} if self.valid is not None else {})
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def launch_or_train(
    model: torch.nn.Module, encoder: Encoder, rows: Sequence[Encoded], job: Job
) -> list[dict[str, float]]:
    """``train``, in one process for each GPU where there are several, else right here; the same result in ``model``.

    Raises TrainingError as ``train`` does, and if a launched process failed or came to other rows than ``rows``.
    """
    processes = torch.cuda.device_count()
    if processes < 2:
        return train(model, encoder.tokenizer, rows, job.config, job.folder, job.seed, job.held_out(encoder))
    place = next(model.parameters()).device
    if job.config.method != "qlora":  # four-bit weights are small, and stay on the device that packed them
        model.to("cpu")
        torch.cuda.empty_cache()
    _run([*_launcher(job.config, processes), *job.command(), "--rows", rows_sha256(rows)])
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


def _run(command: list[str]) -> None:
    """Run ``command`` as a child that cannot outlive this process; its bars show here as they come."""
    last: collections.deque[str] = collections.deque(maxlen=200)
    with subprocess.Popen(
        [sys.executable, "-m", "realm.guard", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            # A bar moves by carriage returns: they end a line too, or nothing would show until it is full.
            for line in io.TextIOWrapper(child.stderr, errors="replace", newline=""):
                last.append(line)
                sys.stderr.write(line)
        finally:
            child.stdin.close()
    if child.returncode:
        # Of all that a launcher prints about its processes, the line that one of them meant for the reader.
        reasons = [line for line in last if line.startswith("error: ")] or [*last, "no message"]
        raise TrainingError(f"a launched process failed: {reasons[-1].removeprefix('error: ').strip()}")


def _load_trained(model: torch.nn.Module, folder: Path) -> None:
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def _write_trained(trainer: _SupervisedTrainer, folder: Path) -> None:
    """All processes call it, since each may hold a part of the weights; the main one writes."""
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        whole = trainer.accelerator.unwrap_model(trainer.model)
        _replace_folder(folder, lambda d: whole.save_pretrained(d, state_dict=weights))
    trainer.accelerator.wait_for_everyone()


def _train_job(job: Job, expected: str | None) -> None:
    encoder = job.encoder()
    rows = job.rows(encoder)
    if expected not in (None, rows_sha256(rows)):
        raise TrainingError(f"{job.train} gives other rows here than in the notebook that launched this; run it again")
    model = add_adapter(load_base(job.config), job.config, job.seed)
    trainer = _trained(model, encoder.tokenizer, rows, job.config, job.folder, job.seed, job.held_out(encoder))
    _write_trained(trainer, job.folder / TRAINED)


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
    parser.add_argument("--rows", help="refuse to train on rows of another hash than this (notebooks give it)")
    given = parser.parse_args(arguments)
    state = PartialState(cpu=not torch.cuda.is_available())  # before the model: it chooses each process's device
    try:
        seed = load_profile(given.profile).seed if given.seed is None else given.seed
        _train_job(Job(given.profile, given.block, given.train, given.valid, given.out, seed), given.rows)
    except (
        TrainingError,
        TemplateError,
        ProfileError,
        ArtefactError,
        ConversationFileError,
        assets.AssetError,
    ) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
