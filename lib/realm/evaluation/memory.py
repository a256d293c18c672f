"""What a simulated user remembers: runs of words that stand in the human turns it was trained on.

Carlini et al. 2023 call a text memorised that a model gives back word by word; Lee et al. 2022 count runs shared with
the training data. The same is counted for held-out humans: people share phrases too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from realm.evaluation.wording import words_of

RUN = 5  # words of the shortest run that is looked for
TELLING = 8  # a turn of fewer words, or a run, tells nothing: people repeat such
LOOKED_AT = 500  # places of one run of words that are followed; "what is the meaning of" stands in more


@dataclass(frozen=True)
class Shared:
    """Of one text: its words, the longest run in words that stands in one training turn (0: none of 5), where it
    begins, and the share of its runs of 5 words that stand in any training turn (NaN for a shorter text)."""

    words: int
    longest: int
    begins: int
    share: float

    @property
    def copied(self) -> bool | None:
        """Whether at least half of it, and 8 words, is one run of a training turn; None for a text of fewer than 8."""
        return None if self.words < TELLING else self.longest >= max(TELLING, self.words / 2)


class TrainingTurns:
    """The human turns of a training split, ready to be looked up by runs of words."""

    def __init__(self, turns: Iterable[str]):
        self._ids: dict[str, int] = {}
        ids: list[int] = []
        for number, turn in enumerate(dict.fromkeys(turns)):
            ids += [self._ids.setdefault(w, len(self._ids) + 1) for w in words_of(turn)]
            ids.append(-number - 1)  # no run goes from one turn into the next
        self._words = np.array(ids, dtype=np.int64)
        hashes = _run_hashes(self._words)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def shared(self, text: str) -> Shared:
        """What of ``text`` stands in the turns."""
        words = np.array([self._ids.get(w, 0) for w in words_of(text)], dtype=np.int64)
        hashes = _run_hashes(words)
        first = np.searchsorted(self._hashes, hashes, side="left")
        last = np.searchsorted(self._hashes, hashes, side="right")
        longest, begins, hits = 0, 0, 0
        for at, (low, high) in enumerate(zip(first, last, strict=True)):
            lengths = [self._common(words, at, place) for place in self._order[low : min(high, low + LOOKED_AT)]]
            run = max(lengths, default=0)
            hits += run >= RUN
            if run >= RUN and run > longest:
                longest, begins = run, at
        return Shared(len(words), int(longest), begins, hits / len(hashes) if len(hashes) else float("nan"))

    def _common(self, words: np.ndarray, at: int, place: int) -> int:
        most = min(len(words) - at, len(self._words) - place)
        differs = words[at : at + most] != self._words[place : place + most]
        return int(differs.argmax()) if differs.any() else most


def _run_hashes(words: np.ndarray) -> np.ndarray:
    """A hash of each run of 5 words, shape (n - 4,)."""
    runs = max(0, len(words) - RUN + 1)
    mixed = np.zeros(runs, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(RUN):
            mixed = (mixed + words[offset : offset + runs].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    return mixed


def examples(texts: Sequence[str], found: Sequence[Shared], most: int) -> pd.DataFrame:
    """The texts with the longest shared runs: words, longest, share, and the run itself."""
    ranked = sorted(zip(texts, found, strict=True), key=lambda pair: -pair[1].longest)[:most]
    return pd.DataFrame(
        [
            {
                "words": s.words,
                "longest run": s.longest,
                "share of runs": round(s.share, 2),
                "run": " ".join(words_of(t)[s.begins : s.begins + s.longest])[:200],
            }
            for t, s in ranked
            if s.longest
        ],
        columns=["words", "longest run", "share of runs", "run"],
    )
