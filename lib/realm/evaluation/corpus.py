"""A corpus in the columns of the paper's table of corpora."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realm.conversations.conversation import Conversation


def corpus_row(
    name: str, conversations: Sequence[Conversation], lengths: Sequence[Sequence[int]]
) -> dict[str, float | str]:
    """One row of the paper's corpus table. ``lengths``: tokens of each turn, as ``Encoder.turn_lengths`` gives them.

    Means of an empty corpus are NaN.
    """
    messages, tokens = sum(map(len, lengths)), sum(map(sum, lengths))
    mean = lambda of: round(tokens / of, 2) if of else math.nan  # noqa: E731
    return {
        "corpus": name,
        "conversations": len(conversations),
        "messages": messages,
        "tokens_per_message": mean(messages),
        "tokens_per_conversation": mean(len(conversations)),
    }
