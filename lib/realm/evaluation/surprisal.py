"""How likely texts are under the untrained base model, as what a human opens a conversation with.

A simulator that speaks the model's own mind is likelier under it than people are, so that nearer to humans is better
here, not lower. The base under the flipped template is measured by itself: what it says of its own samples is how
evenly it spreads its guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from realm.dialogue.encoder import IGNORED, Encoded, Encoder
from realm.evaluation.card import HUMANS
from realm.training.likelihood import likelihood

AT_MOST = 64  # texts of a simulator, and of each half of the humans: more would cost minutes


def surprisal(
    model: PreTrainedModel, texts: Mapping[str, Sequence[str]], encoder: Encoder, limit: int
) -> dict[str, list[float]]:
    """By source, mean nats a token of each of its first texts, cut after ``limit`` tokens; the end token does not
    count. NaN for an empty text. ``texts``: openings by source, humans among them; ``encoder``: of UserGPT.
    """
    looked_at = {who: some[: AT_MOST * (1 + (who == HUMANS))] for who, some in texts.items()}
    rows = [_row(f"{who} {i}", text, encoder, limit) for who, some in looked_at.items() for i, text in enumerate(some)]
    told = {}
    if any(row.supervised for row in rows):
        found = likelihood(model, rows, encoder.tokenizer, "surprisal under the base model")
        told = dict(zip(found.ids, found.nll / found.tokens, strict=True))
    return {who: [float(told.get(f"{who} {i}", math.nan)) for i in range(len(some))] for who, some in looked_at.items()}


def _row(name: str, text: str, encoder: Encoder, limit: int) -> Encoded:
    """The text as the first turn of a user, after that user's system prompt; what it spells stays words, also where it
    spells a token of the template."""
    tokenizer = encoder.tokenizer
    before, _ = encoder.format.render([], encoder.system, reply_as="user")
    header = tokenizer(before, add_special_tokens=False).input_ids
    words = tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids[:limit]
    ids = np.array([*header, *words], dtype=np.int32)
    labels = ids.copy()
    labels[: len(header)] = IGNORED
    return Encoded(name, ids, labels, False)
