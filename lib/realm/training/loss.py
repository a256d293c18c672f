"""The loss on supervised tokens alone.

It needs logits only where a turn is supervised, a fifth of the tokens on the user's side: the output head is applied
there alone, and tokens after the last supervised one are cut. Neither changes the loss.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch.nn import functional

from realm.dialogue.encoder import IGNORED


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
    # Threads may share a model, each with a batch and a hook of its own.
    head, mine = getattr(model, "module", model).get_output_embeddings(), threading.get_ident()
    handle = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][:, :-1][wanted],) if threading.get_ident() == mine else None
    )
    try:
        yield
    finally:
        handle.remove()


def supervised_nll(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood (nats) of each supervised token, and the row each belongs to; both of shape (N,)."""
    logits, targets, row, _ = supervised_logits(model, batch)
    return functional.cross_entropy(logits.float(), targets, reduction="none"), row
