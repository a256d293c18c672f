"""Rows to train on: conversations as tokens, as many as the budget takes, padded to batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from realm.conversations.conversation import Conversation
from realm.dialogue.encoder import IGNORED, Encoded, Encoder
from realm.training.base import TrainingError


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
    with progress_bar(total=max_tokens, desc="rows to train on", unit="tok", unit_scale=True) as bar:
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


def progress_bar(**values: Any) -> tqdm:
    """A text bar, on the main process alone."""
    return tqdm(disable=os.environ.get("RANK", "0") != "0", **values)


class Rows(torch.utils.data.Dataset):
    """Encoded rows as the Trainer takes them, each with its id for error messages."""

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
