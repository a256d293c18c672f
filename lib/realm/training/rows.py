"""Rows to train on: conversations as tokens, as many as the budget takes, padded to batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import Conversation
from realm.core.progress import Bar
from realm.core.seeds import unit_hash
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
    conversations: Sequence[Conversation],
    encoder: Encoder,
    max_tokens: int | None,
    seed: int,
    opening_share: float | None = None,
    opening_rows: str = "segment",
    max_supervised: int | None = None,
) -> Selection:
    """Encode conversations in a seeded order until ``max_tokens`` tokens (tails cut), or ``max_supervised`` tokens that
    carry the loss, are reached: the last row is the one that reaches them.

    ``opening_share``: of these tokens, how much goes to conversations that open their session, as far as there are
    enough of them, and the rest to the others; None takes all as they come. ``opening_rows``: these whole, or their
    first supervised ``turn`` alone. Raises TrainingError if nothing is supervised in any of them.
    """
    if opening_share is None:
        parts = [_selected(conversations, encoder, max_tokens, seed, max_supervised=max_supervised)]
    else:
        opens = [c for c in conversations if c.opens_session]
        inside = [c for c in conversations if not c.opens_session]
        for_openings = round(opening_share * max_tokens)
        shares = [(opens, for_openings, opening_rows == "turn"), (inside, max_tokens - for_openings, False)]
        parts = [_selected(some, encoder, tokens, seed, alone) for some, tokens, alone in shares]
    chosen = Selection(
        rows=[row for part in parts for row in part.rows],
        tokens=sum(part.tokens for part in parts),
        supervised=sum(part.supervised for part in parts),
        nothing_supervised=sum(part.nothing_supervised for part in parts),
        over_budget=sum(part.over_budget for part in parts),
    )
    if not chosen.rows:
        raise TrainingError(
            f"none of {len(conversations)} conversations has a supervised token: is max_length "
            f"{encoder.max_length} too small, or supervise: {encoder.supervise} the wrong side?"
        )
    return chosen


def drawn(conversations: Sequence[Conversation], count: int | None, seed: int) -> list[Conversation]:
    """``count`` of those that hold an answer, in the order given; None for all. Fewer are always among more."""
    if count is None:
        return list(conversations)
    by_hash = sorted((c for c in conversations if c.rounds), key=lambda c: unit_hash(f"drawn:{seed}:{c.id}"))
    chosen = {c.id for c in by_hash[:count]}
    return [c for c in conversations if c.id in chosen]


def _selected(
    conversations: Sequence[Conversation],
    encoder: Encoder,
    max_tokens: int | None,
    seed: int,
    first_turn_alone: bool = False,
    max_supervised: int | None = None,
) -> Selection:
    order = np.random.default_rng(seed).permutation(len(conversations))
    rows: list[Encoded] = []
    tokens = supervised = empty = seen = 0
    full = lambda: any(  # noqa: E731
        most is not None and used >= most for used, most in ((tokens, max_tokens), (supervised, max_supervised))
    )
    with progress_bar(total=max_tokens, desc="rows to train on", unit="tokens", unit_scale=True) as bar:
        for first in range(0, len(order), 64):
            for row in encoder.encode_all([conversations[i] for i in order[first : first + 64]]):
                if full():
                    break
                seen += 1
                if row.supervised == 0:
                    empty += 1
                    continue
                rows.append(row.first_turn() if first_turn_alone else row.without_tail())
                tokens += len(rows[-1].input_ids)
                supervised += rows[-1].supervised
                bar.update(len(rows[-1].input_ids))
            if full():
                break
    return Selection(rows, tokens, supervised, empty, len(conversations) - seen)


def rows_sha256(rows: Sequence[Encoded]) -> str:
    """A hash of all tokens and labels, in order."""
    return hashlib.sha256(b"".join(r.input_ids.tobytes() + r.labels.tobytes() for r in rows)).hexdigest()


def progress_bar(**values: Any) -> Bar:
    """A bar, on the main process alone."""
    return Bar(disable=os.environ.get("RANK", "0") != "0", **values)


class Rows(torch.utils.data.Dataset):
    """Encoded rows as the Trainer takes them, each with its id for error messages."""

    def __init__(self, rows: Sequence[Encoded]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels, "id": row.id}


def require_fit(model: torch.nn.Module, rows: Sequence[Encoded]) -> None:
    """Raise TrainingError if a row holds a token that the model has no embedding of, or is longer than it can be."""
    known = model.get_input_embeddings().num_embeddings
    longest = getattr(model.config, "max_position_embeddings", None)
    for row in rows:
        if (highest := int(row.input_ids.max())) >= known:
            raise TrainingError(
                f"{row.id}: token {highest}, but the model has embeddings of {known}; "
                "its tokenizer belongs to another model: correct base_model"
            )
        if longest is not None and len(row.input_ids) > longest:
            raise TrainingError(
                f"{row.id}: {len(row.input_ids)} tokens for a model of {longest} positions; lower dialogue.max_length"
            )


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills short rows up; nothing learns from it. Raises TrainingError if there is none."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return found
    raise TrainingError(
        f"{tokenizer.name_or_path}: its tokenizer has neither a padding token nor an end token; add one"
    )


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
