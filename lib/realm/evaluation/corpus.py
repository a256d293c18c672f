"""A corpus in the columns of the paper's table of corpora."""

from __future__ import annotations

from collections.abc import Sequence

from realm.conversations.conversation import Conversation


def corpus_row(
    name: str, conversations: Sequence[Conversation], lengths: Sequence[Sequence[int]]
) -> dict[str, float | str]:
    """One row of the paper's corpus table. ``lengths``: tokens of each turn, as ``Encoder.turn_lengths`` gives them."""
    messages, tokens = sum(map(len, lengths)), sum(map(sum, lengths))
    return {
        "corpus": name,
        "conversations": len(conversations),
        "messages": messages,
        "tokens_per_message": round(tokens / messages, 2),
        "tokens_per_conversation": round(tokens / len(conversations), 2),
    }
