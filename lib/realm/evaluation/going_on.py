"""How a simulated user goes on: when it stops, whether it repeats itself, takes up answers, changes the subject."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, Conversation, Message
from realm.conversations.readers import load_conversations
from realm.evaluation.intervals import RESAMPLES
from realm.evaluation.wording import words_of
from realm.simulation.endings import EndReason
from realm.simulation.guardrails import answers_as_assistant

# Who plays the user -> where the conversations lie in a run folder, and the simulator that they name.
WHERE = {
    "usergpt": ("03_simulation/realchat.jsonl", "usergpt"),
    "base": ("03_simulation/beside/base/realchat.jsonl", "usergpt"),
    "roleplay": ("03_simulation/beside/base_roleplay/realchat.jsonl", "roleplay"),
    "responder": ("03_simulation/beside/roleplay/realchat.jsonl", "roleplay"),
}


@dataclass(frozen=True)
class Talk:
    """A conversation from its beginning. ``turns``: the human's; ``before``: the answer before each, "" before the
    first. The first ``given`` turns were put into its mouth. ``ended``: the human stopped; else it is not known what
    came next."""

    id: str
    turns: tuple[str, ...]
    before: tuple[str, ...]
    given: int
    ended: bool

    @property
    def later(self) -> range:
        """Places of the turns of its own that answer something."""
        return range(max(1, self.given), len(self.turns))

    def up_to(self, rounds: int) -> Talk:
        """Its first rounds alone; how it ended beyond them is not known."""
        whole = len(self.turns) <= rounds
        return replace(self, turns=self.turns[:rounds], before=self.before[:rounds], ended=self.ended and whole)


def human_talks(conversations: Sequence[Conversation]) -> list[Talk]:
    """Sessions from their openings on, put together from their segments; one ends where a segment is missing."""
    sessions: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        sessions.setdefault(conversation.session, []).append(conversation)
    talks = []
    for name, segments in sessions.items():
        segments.sort(key=lambda c: c.meta.get(PLACE, 0))
        if segments[0].opens_session:
            messages, whole = _joined(segments)
            talks.append(_talk(name, messages, 0, whole and bool(segments[-1].meta.get(ENDS_SESSION))))
    return talks


def _joined(segments: Sequence[Conversation]) -> tuple[list[Message], bool]:
    """The messages up to the first gap, and whether there is none."""
    messages: list[Message] = []
    for segment in segments:
        if segment.meta.get(PLACE, 0) != len(messages):
            return messages, False
        own = segment.messages[segment.meta.get(CONTEXT, 0) :]
        messages += [m for m in own if m.role != "system"]
    return messages, True


def simulated_talks(conversations: Sequence[Conversation]) -> list[Talk]:
    """Conversations of notebook 03; the first round of a seeded one was a human's."""
    return [
        _talk(
            c.id, c.messages, int(c.meta.get("mode") == "seeded"), c.meta.get("end_reason") == str(EndReason.USER_ENDED)
        )
        for c in conversations
        if c.turns("user")
    ]


def simulated_in(run_folder: Path) -> tuple[dict[str, list[Talk]], str]:
    """Who plays the user -> the conversations of notebook 03; and one line on those that are not there."""
    found, missing = {}, []
    for who, (place, simulator) in WHERE.items():
        path = run_folder / place
        talks = load_conversations(path) if path.exists() else []
        others = {str(c.meta.get("simulator")) for c in talks} - {simulator}
        if talks and not others:
            found[who] = simulated_talks(talks)
        else:
            why = f"holds those of {', '.join(sorted(others))}" if others else "is not there, or empty"
            missing.append(f"{who} ({place} {why})")
    line = f"{len(missing)} of {len(WHERE)} kinds of whole conversations are missing: {'; '.join(missing)}."
    return found, line if missing else ""


def sample(talks: Sequence[Talk], at_most: int, seed: int) -> list[Talk]:
    """At most so many of them, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(talks))
    return [talks[i] for i in order[:at_most]]


def _talk(name: str, messages: Sequence[Message], given: int, ended: bool) -> Talk:
    turns, before, answer = [], [], ""
    for message in messages:
        if message.role == "user":
            turns.append(message.content)
            before.append(answer)
        else:
            answer = message.content
    return Talk(name, tuple(turns), tuple(before), given, ended)


# ---------------------------------------------------------------- of one conversation


def repeats(talk: Talk) -> float:
    """How much of a later turn was said before: word Jaccard with the likest earlier turn, averaged; NaN without."""
    sets = [frozenset(words_of(t)) for t in talk.turns]
    return _mean([max(_jaccard(sets[i], sets[j]) for j in range(i)) for i in talk.later])


def entrainment(talk: Talk) -> float:
    """Share of a later turn's distinct content words that stand in the answer before it, averaged; NaN without.

    Lexical entrainment: Brennan and Clark 1996; stop words are scikit-learn's.
    """
    shares = []
    for i in talk.later:
        own = set(words_of(talk.turns[i])) - ENGLISH_STOP_WORDS
        if own:
            shares.append(len(own & set(words_of(talk.before[i]))) / len(own))
    return _mean(shares)


def drift(talk: Talk, vectors: np.ndarray) -> float:
    """Cosine distance from one human turn to the next, averaged; ``vectors``: (turns, d) of unit length."""
    return _mean([1 - float(vectors[i] @ vectors[i - 1]) for i in talk.later])


def as_assistant(talk: Talk) -> float:
    """Share of its own turns that answer as an assistant does; NaN without own turns."""
    return _mean([float(answers_as_assistant(t)) for t in talk.turns[talk.given :]])


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


BY_TALK = {
    "repeats": ("share of a later turn said before", repeats),
    "entrainment": ("words of a later turn taken from the answer", entrainment),
    "as_assistant": ("own turns that answer as the assistant", as_assistant),
}


# ---------------------------------------------------------------- of many


def hazard(talks: Sequence[Talk], rounds: int, seed: int) -> pd.DataFrame:
    """A row a round up to ``rounds`` - 1: of the conversations that came so far and of which it is known whether they
    went on, the share that the human ended. Columns round, known, ended, hazard, ci_low, ci_high (bootstrap over
    conversations; NaN where none is known)."""
    known, ended = _outcomes(talks, rounds)
    rng, times = np.random.default_rng(seed), np.ones(len(talks)) / len(talks)
    drawn = [rng.multinomial(len(talks), times) for _ in range(RESAMPLES)]  # how often each conversation is drawn
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.array([(w @ ended) / (w @ known) for w in drawn])
    rows = []
    for k in range(rounds - 1):
        n = int(known[:, k].sum())
        low, high = np.nanpercentile(shares[:, k], [2.5, 97.5]) if n > 1 else (math.nan, math.nan)
        share = ended[:, k].sum() / n if n else math.nan
        rows.append(
            {
                "round": k + 1,
                "known": n,
                "ended": int(ended[:, k].sum()),
                "hazard": share,
                "ci_low": low,
                "ci_high": high,
            }
        )
    return pd.DataFrame(rows, columns=["round", "known", "ended", "hazard", "ci_low", "ci_high"])


def expected_rounds(talks: Sequence[Talk], index: np.ndarray, rounds: int) -> float:
    """Mean rounds of the talks of ``index``, counted up to ``rounds``: the sum of the survival function (Kaplan and
    Meier 1958), so that conversations cut off by a limit count as far as they are known."""
    known, ended = _outcomes(talks, rounds)
    n = known[index].sum(0)
    survival = np.cumprod(1 - np.divide(ended[index].sum(0), n, out=np.zeros(len(n)), where=n > 0))
    return float(1 + survival.sum())


def _outcomes(talks: Sequence[Talk], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """(known, ended), booleans of shape (talks, rounds - 1): after round k + 1."""
    size = np.array([len(t.turns) for t in talks])[:, None]
    stopped = np.array([t.ended for t in talks], dtype=bool)[:, None]
    after = np.arange(1, rounds)[None, :]
    ended = (size == after) & stopped
    return (size > after) | ended, ended
