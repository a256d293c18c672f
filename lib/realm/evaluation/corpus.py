"""A corpus in the columns of the paper's table of corpora, and corpora that differ in who asks beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from realm.conversations.conversation import Conversation
from realm.core.metrics import Metrics
from realm.core.profile import Simulation
from realm.dialogue.encoder import Encoder
from realm.evaluation.intervals import bootstrap, fixed_by_limit, mean_interval, ratio_of_sums
from realm.simulation.run import Outcome

_ROLES = ("user", "assistant")


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


def corpus_by_asker(
    metrics: Metrics, name: str, config: Simulation, outcome: Outcome, encoder: Encoder, seed: int
) -> dict[str, Any]:
    """One corpus of a simulation as a row of a table; adds the metrics corpus_NAME_conversations, _rounds_mean,
    _cut_answers and _tokens_per_answer, intervals over conversations. A seed's own answer is none of the responder's.
    """
    talks = outcome.conversations
    metrics.add(f"corpus_{name}_conversations", len(talks), unit="conversations")
    asker = config.user.model if config.user else f"turns of real humans ({config.seed_source})"
    row = {"corpus": name, "who asks": f"{config.simulator}: {asker}", "conversations": len(talks)}
    lengths = list(encoder.turn_lengths(talks))
    tokens = {role: [_of_role(c, sizes, role) for c, sizes in zip(talks, lengths, strict=True)] for role in _ROLES}
    answers = np.array([len(of_one) for of_one in tokens["assistant"]])
    if answers.sum():
        rounds, total = [float(c.rounds) for c in talks], np.array([sum(of_one) for of_one in tokens["assistant"]])
        each = bootstrap([total, answers], _mean_of_answers, seed)
        fixed = fixed_by_limit(rounds, config.max_rounds)
        ci, unit = (
            (None, "rounds, fixed by the profile: no result") if fixed else (mean_interval(rounds, seed), "rounds")
        )
        row["rounds"] = metrics.add(
            f"corpus_{name}_rounds_mean", float(np.mean(rounds)), ci=ci, n=len(talks), unit=unit
        ).value
        mean = float(_mean_of_answers(total, answers))
        unit = "tokens an answer, with its frame"
        metrics.add(f"corpus_{name}_tokens_per_answer", mean, ci=each, n=len(talks), unit=unit)
        cut, n = outcome.cut["assistant"], int(answers.sum())
        metrics.add(f"corpus_{name}_cut_answers", cut, n=n, unit="answers that stop in the middle")
        human = [size for of_one in tokens["user"] for size in of_one]
        row |= {"tokens a human turn": np.mean(human), "tokens an answer": mean, "cut answers": f"{cut} of {n}"}
    return row | {"how they ended": ", ".join(f"{why} {n}" for why, n in outcome.reasons.most_common())}


def _of_role(talk: Conversation, lengths: Sequence[int], role: str) -> list[int]:
    """Tokens of the turns of one side; of a seeded conversation without those of its seed."""
    sizes = [size for message, size in zip(talk.messages, lengths, strict=True) if message.role == role]
    return sizes[1:] if talk.meta.get("mode") == "seeded" else sizes


def _mean_of_answers(total: np.ndarray, answers: np.ndarray, axis: int = -1) -> np.ndarray:
    # A draw of conversations without an answer is possible where there are few.
    return ratio_of_sums(total, np.maximum(answers, 1e-9), axis)
