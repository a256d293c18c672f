"""One fine-tune of the user's side: ours against TRL's SFTTrainer, padded and packing.

All train the same LoRA (same seed, so the same first adapter) in the same precision on the same conversations,
once, with the same AdamW, learning rate, schedule and number of micro-batches a step. Ours is ``trainer.train``
as notebook 02 calls it. TRL gets the same tokens and labels ready-made, tails included, and keeps its defaults
but two, which would slow it down here: bfloat16 autocast, which this precision has to match, and gradient
checkpointing, which the profile has off as well. The base is unquantized: on a 4-bit one TRL turns the adapter
to bfloat16, which is other arithmetic, and on most processors slow.

TRL's packing is its default strategy (best fit, whole conversations) into blocks of max_length. Without flash
attention transformers separates the conversations of a block by a mask, so they do not see each other. A packed
step holds as many blocks as come nearest to the tokens of a padded one. ``ours packed`` says what packing would do
for us: the rows of each micro-batch in one row, positions anew for each, a mask between them.

Every run is a process of its own. Its time is the Trainer's own ``train_runtime``, which both report, after one
row forwards and backwards as warm-up; its memory the peak resident set, libraries and weights included, at the
end of training. ``loss_difference`` is measured on held-out rows, in nats per supervised token, by one function
for all: the trainers visit the rows in different orders, so losses along the way are of different rows.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from realm.cleaning.presets import alternate, no_reserved_tokens
from realm.conversations.conversation import Conversation
from realm.conversations.readers import read_conversations
from realm.core.profile import SFT, load_profile
from realm.dialogue.encoder import Encoded, Encoder
from realm.dialogue.format import chat_format, load_tokenizer
from realm.dialogue.segments import split_long
from realm.models import assets
from realm.training import trainer
from realm.training.base import add_adapter, load_base
from realm.training.likelihood import likelihood
from realm.training.loss import supervised_nll
from realm.training.rows import collate, select_rows
from realm.training.trainer import train

RESULTS = Path(__file__).parent / "results" / "training.csv"
OURS = ("ours", "ours packed")
WAYS = (*OURS, "trl", "trl packing")
RECORDS = 2_000  # of the ShareGPT file
HELD_OUT = 16
SEED = 20230823


@dataclass(frozen=True)
class Contest:
    """``suffix``: of the figures' names; ``dtype``: as the profile's ``compute_dtype``."""

    suffix: str
    max_length: int
    dtype: str
    rows: int
    repetitions: int
    ways: tuple[str, ...] = WAYS


# float32 too: where a processor computes in bfloat16, that of the padded way is slow out of proportion.
CONTESTS = (
    Contest("_2048", 2_048, "auto", 16, 1),
    Contest("_float32", 512, "float32", 16, 1),
    Contest("", 512, "auto", 64, 3),
    # What packing saves is padding, and few rows find no partner of like length: about as many as profile cpu has.
    Contest("_200_rows", 512, "auto", 200, 3, OURS),
)


def configuration(dtype: str) -> SFT:
    """The profile's values but for the quantization, and no checkpoint before the end."""
    values = {"method": "lora", "checkpoint_steps": 1_000, "compute_dtype": dtype}
    return load_profile("cpu").usergpt_sft.model_copy(update=values)


# ---------------------------------------------------------------- rows


def segments(encoder: Encoder) -> list[Conversation]:
    records = list(itertools.islice(read_conversations(assets.data("sharegpt")), RECORDS))
    for rule in (alternate, no_reserved_tokens(encoder.format.reserved)):
        records = [kept for record in records for kept in rule(record).kept]
    return [part for parts in split_long(records, encoder) for part in parts]


def sample(max_length: int, count: int) -> dict[str, list[Encoded]]:
    """Rows as TRL gets them, the same rows as ours are selected, and held-out ones; all by one seed."""
    tokenizer = load_tokenizer("smollm2-135m")
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "user", max_length)
    found = segments(encoder)
    order = np.random.default_rng(SEED).permutation(len(found))
    drawn = (found[i] for i in order)
    taught = [c for c in itertools.islice(drawn, 2 * (count + HELD_OUT)) if c.turns("user")][: count + HELD_OUT]
    ours = select_rows(taught[:count], encoder, None, SEED).rows
    whole = {row.id: row for row in encoder.encode_all(taught)}
    held_out = [whole[c.id] for c in taught[count:]]
    return {"ours": ours, "whole": [whole[row.id] for row in ours], "held out": held_out}


# ---------------------------------------------------------------- one run, in its own process


def pack(features: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """A micro-batch as one row, (1, T), of conversations that do not see each other; nothing is padded."""
    lengths = torch.tensor([len(f["input_ids"]) for f in features])
    owner = torch.repeat_interleave(torch.arange(len(features)), lengths)
    joined = {k: torch.from_numpy(np.concatenate([f[k] for f in features])).long() for k in ("input_ids", "labels")}
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    mask = (owner[:, None] == owner[None, :]).tril()
    batch = {**joined, "position_ids": positions, "attention_mask": mask[None]}
    return {**{k: v[None] for k, v in batch.items()}, "ids": [f["id"] for f in features]}


def train_ours(model, tokenizer, rows: dict[str, list[Encoded]], config: SFT, folder: Path, packing: bool) -> float:
    if packing:
        trainer.collate = pack  # set back by the caller
    train(model, tokenizer, rows["ours"], config, folder, SEED)
    log = (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return next(entry["train_runtime"] for entry in map(json.loads, log) if "train_runtime" in entry)


def train_trl(
    model, tokenizer, rows: dict[str, list[Encoded]], config: SFT, max_length: int, folder: Path, packing: bool
) -> float:
    from trl import SFTConfig, SFTTrainer

    whole = rows["whole"]
    step = config.batch_size * config.accumulation
    if packing:
        step = max(1, round(step * sum(len(r.input_ids) for r in whole) / len(whole) / max_length))
    arguments = SFTConfig(
        output_dir=str(folder),
        max_length=max_length,
        packing=packing,
        per_device_train_batch_size=1 if packing else config.batch_size,
        gradient_accumulation_steps=step if packing else config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.schedule,
        bf16=False,
        gradient_checkpointing=config.gradient_checkpointing,
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=SEED,
        report_to="none",
        disable_tqdm=True,
    )
    table = Dataset.from_list([{"input_ids": r.input_ids.tolist(), "labels": r.labels.tolist()} for r in whole])
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=table, processing_class=tokenizer)
    return trainer.train().metrics["train_runtime"]


def warm_up(model: torch.nn.Module, row: Encoded, pad_id: int) -> None:
    """Starts the threads and the allocator; leaves no gradient and draws no random number."""
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels, "id": row.id}], pad_id)
    batch.pop("ids")
    model.train()
    supervised_nll(model, batch)[0].sum().backward()
    model.zero_grad()


def run(way: str, contest: Contest, folder: Path) -> dict[str, float]:
    config, tokenizer = configuration(contest.dtype), load_tokenizer("smollm2-135m")
    rows = pickle.loads((folder.parent / f"{contest.max_length}.pickle").read_bytes())
    model = add_adapter(load_base(config), config, SEED)
    warm_up(model, min(rows["ours"], key=lambda r: len(r.input_ids)), tokenizer.pad_token_id)
    if way.startswith("ours"):
        pad = trainer.collate
        seconds = train_ours(model, tokenizer, rows, config, folder, packing=way == "ours packed")
        trainer.collate = pad
    else:
        seconds = train_trl(model, tokenizer, rows, config, contest.max_length, folder, packing=way == "trl packing")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held_out = likelihood(model, rows["held out"], tokenizer, "held-out rows")
    return {
        "seconds": seconds,
        "supervised_tokens_per_second": sum(r.supervised for r in rows["ours"]) / seconds,
        "peak_memory_gib": peak,
        "held_out_loss": float(held_out.nll.sum() / held_out.tokens.sum()),
    }


# ---------------------------------------------------------------- all runs


def in_a_process(way: str, number: int, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "benchmarks.training", way, str(number), scratch]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way} in {CONTESTS[number]} failed:\n{done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if importlib.util.find_spec("trl") is None:
        raise SystemExit("TRL is missing; pip install --editable '.[bench]'")
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, contest in enumerate(CONTESTS):
            rows = sample(contest.max_length, contest.rows)
            (folder / f"{contest.max_length}.pickle").write_bytes(pickle.dumps(rows))
            for repetition, way in itertools.product(range(contest.repetitions), contest.ways):
                figures = in_a_process(way, number, folder)
                place = {"max_length": contest.max_length, "compute_dtype": contest.dtype}
                measured.append({"contest": number, "repetition": repetition, **place, "way": way, **figures})
                print(measured[-1], file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    table = pd.DataFrame(measured)
    table.to_csv(RESULTS, index=False)
    report_medians(table)


def report_medians(table: pd.DataFrame) -> None:
    for number, contest in enumerate(CONTESTS):
        part, suffix = table[table.contest == number], contest.suffix
        middle = lambda way, figure, part=part: median(part[part.way == way][figure])  # noqa: E731
        speed, memory, loss = "supervised_tokens_per_second", "peak_memory_gib", "held_out_loss"
        print(f"supervised_tokens_per_second{suffix}={middle('ours', speed):.3g}")
        print(f"ratio_to_ours_packed{suffix}={middle('ours', speed) / middle('ours packed', speed):.3g}")
        if "trl" not in contest.ways:
            continue
        print(f"supervised_tokens_ratio_trl{suffix}={middle('ours', speed) / middle('trl', speed):.3g}")
        print(f"supervised_tokens_ratio_trl_packing{suffix}={middle('ours', speed) / middle('trl packing', speed):.3g}")
        print(f"peak_memory_ratio_trl{suffix}={middle('ours', memory) / middle('trl', memory):.3g}")
        print(f"loss_difference{suffix}={abs(middle('ours', loss) - middle('trl', loss)):.3g}")


def one_run(arguments: Sequence[str]) -> None:
    way, number, folder = arguments
    print(json.dumps(run(way, CONTESTS[int(number)], Path(folder))))


if __name__ == "__main__":
    one_run(sys.argv[1:]) if len(sys.argv) > 1 else main()
