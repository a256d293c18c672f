"""Fine-tuning of either side of the dialogue, resumable to the last bit.

Rows of like length share a batch, and are not packed into one: what packing saves is padding, and length groups leave
little of it, while conversations in one row need a mask between them, for which attention falls back to slower kernels.
benchmarks/training.py runs both on the CPU (``ratio_to_ours_packed``): among about as many rows as profile ``cpu`` has,
groups are faster; among 16 of at most 512 tokens, which match badly, packing is. On a GPU this is reasoning, untested;
kernels for packed rows (flash attention with sequence bounds) would be one more library to build there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from realm.core.files import ArtefactError, atomic_path, read_json, write_json
from realm.core.profile import SFT
from realm.core.set_aside import set_aside
from realm.core.stopping import Stopped, may_be_stopped, stop_is_asked
from realm.dialogue.encoder import Encoded
from realm.training.base import TrainingError, compute_dtype, refuse_without_gradient, sharded
from realm.training.likelihood import likelihood
from realm.training.loss import supervised_nll
from realm.training.memory import EVERY, give_back
from realm.training.rows import Rows, collate, padding_of, progress_bar, require_fit, rows_sha256

# Values that say what is measured, shown or trained beside it; whose rows these are is said by the rows.
NO_TRAINING = {"test_conversations", "valid_conversations", "samples_shown", "controls"}


class _LengthGrouped(torch.utils.data.Sampler):
    """Rows of like length share a batch, and so do the batches that several processes take at one time, or those with
    short rows would wait for the others. Such groups come in random order: else a step would see long turns or short
    ones only. The order depends on seed, epoch and number of processes alone, so a resumed run sees the same."""

    def __init__(self, lengths: list[int], group: int, seed: int):
        self.lengths, self.group, self.seed, self.epoch = lengths, group, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.group, generator=generator)
        groups = [rows[i : i + self.group] for i in range(0, len(rows), self.group)]
        whole = len(rows) // self.group  # a short group stays the last one, or those after it would be cut anew
        order = torch.randperm(whole, generator=generator).tolist() + list(range(whole, len(groups)))
        return iter([row for i in order for row in groups[i]])


class SupervisedTrainer(Trainer):
    """transformers' Trainer with the loss above; batching, precision, devices, checkpoints stay its own."""

    loss_is_scaled_for_ga = True  # ``compute_loss`` divides by the tokens of all micro-batches

    def __init__(self, tokenizer: PreTrainedTokenizerBase, **values: Any):
        pad_id = padding_of(tokenizer)
        super().__init__(data_collator=lambda features: collate(features, pad_id), **values)
        self.padding = tokenizer
        # Has the tokens of a step counted for ``compute_loss``, which the Trainer else does only for models whose
        # forward takes their number. None is passed on to the model: the loss is not its own.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(r.input_ids) for r in self.train_dataset.rows]
        group = self.args.train_batch_size * self.args.world_size
        self.order = _LengthGrouped(lengths, group, self.args.data_seed)
        return self.order

    def _run_epoch(self, **values):
        # Of several processes that go on in the middle of an epoch, none would hear which: its number is handed down
        # two wrappers at most, and there are three (accelerate 1.15.0).
        self.order.set_epoch(values["epoch"])
        return super()._run_epoch(**values)

    def training_step(self, *arguments, **values):
        refuse_without_gradient(self.model)
        try:
            return super().training_step(*arguments, **values)
        except UserWarning as warning:  # made an error in ``base``
            raise TrainingError(f"at step {self.state.global_step} a gradient would be dropped: {warning}") from warning

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

    def _save_checkpoint(self, model, trial):
        # All processes ask whether the best checkpoint's folder is there before sharded weights make it: whoever asks
        # late finds one that another has made meanwhile, and they would load different ones.
        Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}").mkdir(
            parents=True, exist_ok=True
        )
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # The state, which says that a checkpoint is whole, is written next, by the main process.
        self.accelerator.wait_for_everyone()

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
    """A bar, and a JSON-lines log."""

    def __init__(self, path: Path):
        self.path, self.bar = path, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit="steps")
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


class _StopWhenAsked(TrainerCallback):
    """A checkpoint where somebody asks to stop, and the end of this run. Where one of several processes sees the wish
    a step later than the others, they would wait for it: the main one decides for all."""

    asked = False

    def on_step_end(self, args, state, control, **kwargs):
        if may_be_stopped() and state.global_step < state.max_steps:
            [self.asked] = broadcast_object_list([stop_is_asked()])
            control.should_save |= self.asked

    def on_save(self, args, state, control, **kwargs):
        if self.asked:
            at = f"step {state.global_step} of {state.max_steps}"
            raise Stopped(f"asked to stop: a checkpoint is written at {at}; run again to go on there")


class _GiveBack(TrainerCallback):
    """Steps of different lengths leave holes in memory; they are given back now and then."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % EVERY == 0:
            give_back()

    def on_train_end(self, args, state, control, **kwargs):
        give_back()


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
    ``train_log.jsonl``, nats per supervised token), and ``model`` ends as it was where that was lowest, or as it is at
    the last step if ``config.keep`` says so.
    Returns one record a step: ``step``, ``loss`` (nats per supervised token), ``learning_rate``, ``grad_norm``.
    Raises TrainingError at the first non-finite loss, naming the conversations of its batch, and Stopped, once a
    checkpoint is written, where that was asked for.
    """
    trainer = run_trainer(model, tokenizer, rows, config, Path(folder), seed, valid)
    return [r for r in trainer.state.log_history if "loss" in r]


def run_trainer(model, tokenizer, rows, config: SFT, folder: Path, seed: int, valid) -> SupervisedTrainer:
    """The trainer when it is done; under FSDP it holds the only whole view of the weights."""
    checkpoints = folder / "checkpoints"
    if config.eval_steps is not None and not valid:
        raise TrainingError("eval_steps is set, but there are no validation rows; give some, or set it to null")
    require_fit(model, [*rows, *valid])
    arguments = _arguments(config, checkpoints, seed)
    if arguments.n_gpu > 1:
        raise TrainingError("more than one GPU in one process; use `accelerate launch`, which starts one for each")
    identity = {
        "config": config.model_dump(exclude=NO_TRAINING),
        "seed": seed,
        "rows": rows_sha256(rows),
        "valid": rows_sha256(valid),
        "processes": arguments.world_size,  # they share out the rows: another number sees them in another order
    }
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            _without_foreign(checkpoints, identity)
            _without_broken(checkpoints)
    kept = [_KeepEvaluated()] if config.chooses_best else []
    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows(rows),
        eval_dataset=Rows([r.without_tail() for r in valid]),
        tokenizer=tokenizer,
        callbacks=[_Progress(folder / "train_log.jsonl"), *kept, _GiveBack(), _StopWhenAsked()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    model.eval()
    return trainer


def _arguments(config: SFT, checkpoints: Path, seed: int) -> TrainingArguments:
    half = compute_dtype(config.compute_dtype) == torch.bfloat16 and config.method == "full"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.schedule,
        bf16=half,
        activation_checkpointing=config.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number stops the run; it is not averaged away
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,  # of 1 the last goes at the end where another is the best, and a new start would redo it
        eval_strategy="no" if config.eval_steps is None else "steps",
        eval_steps=config.eval_steps,
        load_best_model_at_end=config.chooses_best,
        metric_for_best_model="loss",
        greater_is_better=False,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # an adapter's weights all take part in every pass
        # Shared out after each micro-batch, else each process holds the whole gradient of all weights until the last,
        # summed in bfloat16. An adapter's is small, and waits.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": sharded()}},
        use_cpu=not torch.cuda.is_available(),
    )
    arguments.mixed_precision = "bf16" if half else "no"  # the profile's, whatever the launcher's file says
    return arguments


def _without_broken(checkpoints: Path) -> None:
    """Keep what was written to its end: the Trainer writes its state last, and half a JSON file does not parse."""
    broken = []
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            read_json(folder / "trainer_state.json")
        except ArtefactError:
            broken.append(folder)
    set_aside(broken, checkpoints.parent)


def _without_foreign(checkpoints: Path, identity: dict[str, Any]) -> None:
    """Checkpoints of another configuration must not be resumed from; they took hours, so they are set aside."""
    marker = checkpoints / "identity.json"
    if checkpoints.exists() and (not marker.exists() or read_json(marker) != json.loads(json.dumps(identity))):
        set_aside([checkpoints], checkpoints.parent)
    if not marker.exists():
        write_json(marker, identity)
