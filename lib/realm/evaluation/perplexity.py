"""Perplexity of held-out turns, and what training changed in it, with paired intervals over conversations.

Everywhere ``nll`` is the negative log-likelihood in nats and ``tokens`` the number of supervised tokens, one entry a
conversation, arrays of shape (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from realm.core.metrics import Metrics
from realm.evaluation.intervals import bootstrap, ratio_of_sums
from realm.training.likelihood import Likelihood


def perplexity_of(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(total negative log-likelihood in nats / total tokens): perplexity over a set of conversations."""
    return np.exp(ratio_of_sums(nll, tokens, axis))


def perplexity_difference(
    nll: np.ndarray, tokens: np.ndarray, other_nll: np.ndarray, other_tokens: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Perplexity of one model minus that of another on the same conversations: the paired statistic."""
    return perplexity_of(nll, tokens, axis) - perplexity_of(other_nll, other_tokens, axis)


def perplexity_row(nll: np.ndarray, tokens: np.ndarray, seed: int) -> dict[str, Any]:
    """``perplexity``, its 95 % interval ``ci_low``, ``ci_high``, and ``n`` conversations."""
    low, high = bootstrap([nll, tokens], perplexity_of, seed)
    return {"perplexity": float(perplexity_of(nll, tokens)), "ci_low": low, "ci_high": high, "n": len(nll)}


def difference_row(
    nll: np.ndarray, tokens: np.ndarray, other_nll: np.ndarray, other_tokens: np.ndarray, seed: int
) -> dict[str, float]:
    """``difference`` of perplexities, one minus the other, with its paired 95 % interval."""
    pair = [nll, tokens, other_nll, other_tokens]
    low, high = bootstrap(pair, perplexity_difference, seed)
    return {"difference": float(perplexity_difference(*pair)), "difference_low": low, "difference_high": high}


def before_and_after(
    metrics: Metrics, name: str, before: Likelihood, after: Likelihood, labels: tuple[str, str], seed: int
) -> pd.DataFrame:
    """Add NAME_before, NAME_after and NAME_difference (after minus before); returns the first two as a table.

    Its columns are those of ``figures.before_after``: label, value, ci_low, ci_high, n.
    """
    rows = []
    for label, stage, found in zip(labels, ("before", "after"), (before, after), strict=True):
        row = perplexity_row(found.nll, found.tokens, seed)
        ci = (row["ci_low"], row["ci_high"])
        metrics.add(f"{name}_{stage}", row["perplexity"], ci=ci, n=row["n"], unit="perplexity")
        rows.append({"label": label, "value": row.pop("perplexity"), **row})
    gap = difference_row(after.nll, after.tokens, before.nll, before.tokens, seed)
    metrics.add(
        f"{name}_difference",
        gap["difference"],
        ci=(gap["difference_low"], gap["difference_high"]),
        n=len(after.ids),
        unit="perplexity, after minus before, paired",
    )
    return pd.DataFrame(rows)
