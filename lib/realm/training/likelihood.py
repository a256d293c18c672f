"""How likely held-out turns are under a model: nats and tokens a conversation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm.dialogue.encoder import Encoded
from realm.training.base import TrainingError, sharded
from realm.training.loss import supervised_nll
from realm.training.memory import EVERY, give_back
from realm.training.rows import Rows, collate, padding_of, progress_bar, require_fit

EVAL_BATCH_TOKENS = 1_024  # its logits over a vocabulary of 49,152, in bfloat16 and float32, take 0.3 GB at most
MOST_WORKERS = 4  # beyond, Python's lock is what they wait for
Scores = TypeVar("Scores")


@dataclass(frozen=True)
class Likelihood:
    """Per conversation: negative log-likelihood (nats) and number of supervised tokens; arrays of shape (n,)."""

    ids: list[str]
    nll: np.ndarray
    tokens: np.ndarray


def likelihood(
    model: torch.nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, desc: str
) -> Likelihood:
    """Likelihood of the supervised turns of each row, in batches of similar length."""
    rows = [r.without_tail() for r in rows if r.supervised]
    if not rows:
        raise TrainingError("no held-out conversation has a supervised token")
    nll, tokens = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    for indices, sums in scored(model, rows, tokenizer, desc, _nll_of_rows):
        nll[indices] = sums
    return Likelihood([r.id for r in rows], nll, tokens)


def _nll_of_rows(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> np.ndarray:
    losses, owner = supervised_nll(model, batch)
    sums = torch.zeros(len(batch["labels"]), dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, owner, losses.double()).cpu().numpy()


def scored(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    desc: str,
    score: Callable[[torch.nn.Module, dict[str, torch.Tensor]], Scores],
) -> Iterator[tuple[list[int], Scores]]:
    """Indices of rows of similar length, and what ``score`` says of their batch; the model in evaluation mode, without
    gradients. On a CPU each core has a batch of its own: two that share one wait for each other at every layer
    (``python -m benchmarks.evaluation``).
    """
    device, pad_id = next(model.parameters()).device, padding_of(tokenizer)
    require_fit(model, rows)
    was_training = model.training

    @torch.no_grad()
    def of(indices: list[int]) -> tuple[list[int], Scores]:
        batch = collate([Rows(rows)[i] for i in indices], pad_id)
        batch.pop("ids")
        return indices, score(model, {k: v.to(device) for k, v in batch.items()})

    model.eval()
    # Which GPU is in use belongs to a thread, and processes that share a model must exchange its parts in one order.
    here = device.type != "cpu" or sharded()
    try:
        with (
            progress_bar(total=len(rows), desc=desc, unit="conversations") as bar,
            _side_by_side(1 if here else min(torch.get_num_threads(), MOST_WORKERS)) as each,
        ):
            done = each(of, _batches_by_length([len(r.input_ids) for r in rows]))
            for number, (indices, found) in enumerate(done, start=1):
                yield indices, found
                bar.update(len(indices))
                if number % EVERY == 0:
                    give_back()
    finally:
        give_back()
        model.train(was_training)


@contextlib.contextmanager
def _side_by_side(workers: int) -> Iterator[Callable]:
    """``map``, its calls in so many threads, the cores shared out among them; of one worker, in this thread."""
    if workers == 1:
        yield map
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads // workers)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # the number of one thread is what new ones begin with


def _batches_by_length(lengths: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > EVAL_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch
