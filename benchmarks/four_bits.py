"""Four-bit weights on a CPU: packed as bitsandbytes keeps them, against unpacked once into plain layers.

The same rounded weights, adapter and real rows; evaluation and training in turns, in one process:
``python -m benchmarks.four_bits``. Packed weights are loaded anew for each training, since a pass in evaluation mode
takes their gradient (``realm.training.base.refuse_without_gradient``); how wrong it is after one is measured too.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from realm.conversations.readers import read_conversations
from realm.core.profile import load_profile
from realm.dialogue.encoder import Encoded, encoder_of
from realm.models import assets
from realm.training import base
from realm.training.base import add_adapter, load_base
from realm.training.likelihood import likelihood
from realm.training.loss import supervised_nll
from realm.training.rows import Rows, collate
from realm.training.trainer import train

RESULTS = Path(__file__).parent / "results" / "four_bits.csv"
REPETITIONS, ROWS, SEED = 3, 24, 1
PROFILE = load_profile("cpu")
CONFIG = PROFILE.usergpt_sft.model_copy(update={"compute_dtype": "bfloat16"})
ENCODER = encoder_of(PROFILE, "usergpt_sft")


def load(packed: bool):
    unpack = base._unpacked
    if packed:
        base._unpacked = lambda model, dtype: model
    try:
        return add_adapter(load_base(CONFIG), CONFIG, SEED)
    finally:
        base._unpacked = unpack


def real_rows() -> list[Encoded]:
    talks = (c for c in read_conversations(assets.data("sharegpt")) if c.rounds)
    rows = ENCODER.encode_all(list(itertools.islice(talks, 4 * ROWS)))
    return [r.without_tail() for r in rows if r.supervised][:ROWS]


def gradient(model, rows: list[Encoded]) -> torch.Tensor:
    model.train()
    model.zero_grad()
    batch = collate([Rows(rows)[i] for i in range(2)], ENCODER.tokenizer.eos_token_id)
    batch.pop("ids")
    supervised_nll(model, batch)[0].mean().backward()
    # LoRA's second matrix begins at zero, so the first one has no gradient yet.
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "lora_B" in name])


def measure(packed: bool, rows: list[Encoded]) -> dict[str, float]:
    tokens = sum(len(r.input_ids) for r in rows)
    model = load(packed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(model, ENCODER.tokenizer, rows, CONFIG, Path(folder), SEED)
    trained = time.perf_counter()
    likelihood(model, rows, ENCODER.tokenizer, "warm up")
    again = time.perf_counter()
    likelihood(model, rows, ENCODER.tokenizer, "evaluation")
    return {"training": tokens / (trained - started), "evaluation": tokens / (time.perf_counter() - again)}


def cosine_after_evaluation(packed: bool, rows: list[Encoded]) -> float:
    """Of the adapter's gradient with the one before the pass."""
    model = load(packed)
    before = gradient(model, rows)
    likelihood(model, rows[:2], ENCODER.tokenizer, "evaluation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the one sign there is, made an error in ``base``
        after = gradient(model, rows)
    return torch.nn.functional.cosine_similarity(before, after, dim=0).item()


def main() -> None:
    rows = real_rows()
    found = []
    for repetition, packed in itertools.product(range(REPETITIONS), (True, False)):
        for work, speed in measure(packed, rows).items():
            found.append({"repetition": repetition, "packed": packed, "work": work, "tokens_per_second": speed})
    table = pd.DataFrame(found)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False)
    for work in ("evaluation", "training"):
        of = table[table.work == work]
        middle = {packed: median(of[of.packed == packed].tokens_per_second) for packed in (True, False)}
        print(f"{work}_tokens_per_second_packed={middle[True]:.4g}")
        print(f"{work}_tokens_per_second_unpacked={middle[False]:.4g}")
        print(f"{work}_ratio={middle[False] / middle[True]:.3g}")
    print(f"gradient_cosine_packed={cosine_after_evaluation(True, rows):.3f}")
    print(f"gradient_cosine_unpacked={cosine_after_evaluation(False, rows):.3f}")


if __name__ == "__main__":
    main()
