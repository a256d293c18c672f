"""How likely held-out turns are under a model: nats and tokens a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm.dialogue.encoder import Encoded
from realm.training.base import TrainingError
from realm.training.loss import supervised_nll
from realm.training.memory import give_back
from realm.training.rows import Rows, collate, padding_of, progress_bar, require_fit

EVAL_BATCH_TOKENS = 2_048  # its logits over a vocabulary of 49,152, in bfloat16 and float32, take 0.6 GB at most


@dataclass(frozen=True)
class Likelihood:
    """Per conversation: negative log-likelihood (nats) and number of supervised tokens; arrays of shape (n,)."""

    ids: list[str]
    nll: np.ndarray
    tokens: np.ndarray


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
    pad_id = padding_of(tokenizer)
    require_fit(model, rows)
    was_training = model.training
    model.eval()
    with progress_bar(total=len(rows), desc=desc, unit="conversations") as bar:
        for indices in _batches_by_length([len(r.input_ids) for r in rows]):
            batch = collate([Rows(rows)[i] for i in indices], pad_id)
            batch.pop("ids")
            yield indices, {k: v.to(device) for k, v in batch.items()}
            bar.update(len(indices))
            give_back()
    model.train(was_training)


def _batches_by_length(lengths: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > EVAL_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch
