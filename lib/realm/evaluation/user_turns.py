"""How well a model foretells what a human says next, turn by turn, and whether it knows when the human is done.

Every model is scored on the same held-out human turns: the base model under the flipped template, the base model
told to play a user, and whatever was trained. Perplexity is over tokens; bits per byte does not depend on them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from realm.conversations.conversation import ENDS_SESSION, PLACE, Conversation, Message
from realm.core.errors import TooFewError
from realm.core.metrics import Metrics
from realm.core.seeds import unit_hash
from realm.dialogue.encoder import IGNORED, Encoder
from realm.evaluation.intervals import bootstrap
from realm.evaluation.perplexity import difference_row, perplexity_row
from realm.evaluation.several import SURE, by_holm
from realm.simulation.simulators import ROLEPLAY
from realm.training.likelihood import scored
from realm.training.loss import supervised_logits

BITS = math.log(2)
GOES_ON = "goes_on"  # in meta, true: the session has turns after this segment


@dataclass(frozen=True)
class TurnScores:
    """One entry a human turn, arrays of shape (turns,). ``row``: index of its conversation; ``number``: 0 for the
    first human turn of the row, also where context stands before it: that the human went on is why the segment exists,
    so it is no place to tell an ending; ``nll`` in nats, end token included; ``end_logp``: natural log-probability that
    the human says nothing more; ``silent``: a turn without words, put where a segment closes with an answer and it
    is known what came next; ``over``: that nothing came."""

    row: np.ndarray
    number: np.ndarray
    opens: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    end_logp: np.ndarray
    silent: np.ndarray
    over: np.ndarray

    def per_conversation(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(nll, tokens, bytes) summed over the turns chosen by the boolean ``which``; shape (conversations,) each."""
        size = int(self.row.max()) + 1
        total = lambda values: np.bincount(self.row[which], values[which], minlength=size)  # noqa: E731
        return total(self.nll), total(self.tokens), total(self.bytes)

    @property
    def spoken(self) -> dict[str, np.ndarray]:
        """Turns that hold words: all of them, those that open a session, and the later ones."""
        words = ~self.silent
        return {"all": words, "first": words & self.opens, "later": words & ~self.opens}


def held_out_segments(
    conversations: Sequence[Conversation], encoder: Encoder, count: int, seed: int
) -> list[Conversation]:
    """One segment of each of ``count`` sessions, drawn by hash; none whose turns are cut at ``max_length``, and none
    without a human turn to score.

    Those that another segment of their session follows say so in ``meta[GOES_ON]``. Raises TooFewError for fewer
    than two: nothing could be compared.
    """
    sessions: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        sessions.setdefault(conversation.session, []).append(conversation)
    draw = lambda key: unit_hash(f"held out:{seed}:{key}")  # noqa: E731
    place = lambda segment: segment.meta.get(PLACE, 0)  # noqa: E731
    chosen: list[Conversation] = []
    # Sessions first, then a segment of each: drawing segments at once would favour sessions that have many.
    for session in sorted(sessions, key=draw):
        segments = sorted((c for c in sessions[session] if c.turns("user")), key=lambda c: draw(c.id))
        whole = next((c for c in segments if (row := encoder.encode(c)).supervised and not row.cut), None)
        if whole is not None:
            goes_on = place(whole) < max(map(place, sessions[session]))
            chosen.append(replace(whole, meta=whole.meta | ({GOES_ON: True} if goes_on else {})))
        if len(chosen) == count:
            break
    if len(chosen) < 2:
        raise TooFewError(
            f"usergpt_sft.test_conversations: {count} held-out sessions asked for, {len(chosen)} of {len(sessions)} in "
            "the test split have a segment that fits; raise data_inspection.test_share or dialogue.max_length"
        )
    return chosen


def with_outcome(conversation: Conversation) -> Conversation:
    """An empty human turn after a closing answer of which it is known whether the human went on."""
    known = conversation.meta.get(ENDS_SESSION) or conversation.meta.get(GOES_ON)
    if not known or conversation.messages[-1].role != "assistant":
        return conversation
    return replace(conversation, messages=(*conversation.messages, Message("user", "")))


def as_roleplay(conversation: Conversation) -> Conversation:
    """The conversation as an assistant sees it that is told to play the human: roles swapped, as it is served."""
    return Conversation(conversation.id, tuple(ROLEPLAY.messages(conversation.messages)), conversation.meta)


def score_turns(
    model: torch.nn.Module, conversations: Sequence[Conversation], encoder: Encoder, desc: str, roleplay: bool = False
) -> TurnScores:
    """Scores of the human turns of each conversation, in order; those of ``held_out_segments`` are never cut."""
    speaker = "assistant" if roleplay else "user"
    whole = [with_outcome(c) for c in conversations]
    shown = [as_roleplay(c) for c in whole] if roleplay else whole
    reader = replace(encoder, supervise=speaker, system="", max_length=None, ending=False)
    rows = [row.without_tail() for row in reader.encode_all(shown)]
    end = int(reader.turns.between(encoder.format.frame(speaker).end, False, False)[0])
    nll, tokens, end_logp = _scored(model, rows, reader, end, desc)
    human = [(i, c, n, text) for i, c in enumerate(whole) for n, text in enumerate(c.turns("user"))]
    return TurnScores(
        row=np.array([i for i, _, _, _ in human]),
        number=np.array([n for _, _, n, _ in human]),
        opens=np.array([n == 0 and c.opens_session for _, c, n, _ in human]),
        nll=nll,
        tokens=tokens,
        bytes=np.array([len(text.encode()) for _, _, _, text in human]),
        end_logp=end_logp,
        silent=np.array([not text for _, _, _, text in human]),
        over=np.array([not text and bool(c.meta.get(ENDS_SESSION)) for _, c, _, text in human]),
    )


def _scored(model, rows, encoder: Encoder, end: int, desc: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per turn, rows in order: nll, tokens, log-probability of the end token as its first."""
    starts = [_turn_starts(row.labels) for row in rows]
    first = np.cumsum([0, *map(len, starts)])
    nll, tokens, end_logp = (np.zeros(first[-1]) for _ in range(3))
    of_batch = functools.partial(_of_batch, end=end)
    for indices, (losses, ends, owner, column) in scored(model, rows, encoder.tokenizer, desc, of_batch):
        for place, i in enumerate(indices):
            mine = owner == place
            turn = np.searchsorted(starts[i], column[mine], side="right") - 1
            np.add.at(nll, first[i] + turn, losses[mine])
            np.add.at(tokens, first[i] + turn, 1)
            opening = np.searchsorted(column[mine], starts[i])
            end_logp[first[i] : first[i + 1]] = ends[mine][opening]
    return nll, tokens, end_logp


def _of_batch(model: torch.nn.Module, batch: dict[str, torch.Tensor], end: int) -> tuple[np.ndarray, ...]:
    """Per supervised token: nll, log-probability of ``end`` in its place, its row, its column."""
    logits, targets, owner, column = supervised_logits(model, batch)
    norm = torch.logsumexp(logits.float(), dim=-1)  # no second array of the logits' size
    losses = (norm - logits.gather(1, targets[:, None]).squeeze(1)).double()
    ends = (logits[:, end] - norm).double()
    return tuple(t.cpu().numpy() for t in (losses, ends, owner, column))


def _turn_starts(labels: np.ndarray) -> np.ndarray:
    """Index of the first supervised token of each turn."""
    on = labels != IGNORED
    return np.flatnonzero(on & ~np.concatenate([[False], on[:-1]]))


def comparison(scores: dict[str, TurnScores], ours: str, seed: int) -> pd.DataFrame:
    """A row a model and kind of turn (all, first of a session, later), with 95 % bootstrap intervals over
    conversations: perplexity, bits per UTF-8 byte, and the paired difference of perplexity, ``ours`` minus it.

    ``n``: conversations that have such a turn; ``p_holm``: of no difference, adjusted for all comparisons of the table.
    """
    rows = []
    for kind in ("all", "first", "later"):
        reference = scores[ours].per_conversation(scores[ours].spoken[kind])
        for name, of_model in scores.items():
            nll, tokens, size = of_model.per_conversation(of_model.spoken[kind])
            has = tokens > 0
            if has.sum() < 2:
                continue
            nll, tokens, size = nll[has], tokens[has], size[has]
            bits_low, bits_high = bootstrap([nll, size], _bits, seed)
            gap = difference_row(reference[0][has], reference[1][has], nll, tokens, seed)
            rows.append(
                {
                    "model": name,
                    "turns": kind,
                    **perplexity_row(nll, tokens, seed),
                    "bits_per_byte": float(_bits(nll, size)),
                    "bits_low": bits_low,
                    "bits_high": bits_high,
                    **gap,
                }
            )
    gaps = {i: _gap(row) for i, row in enumerate(rows) if row["model"] != ours}
    adjusted = by_holm(gaps)
    return pd.DataFrame([{**row, "p_holm": adjusted.get(i, math.nan)} for i, row in enumerate(rows)])


def _gap(row: dict) -> tuple[float, float, float]:
    return row["difference"], row["difference_low"], row["difference_high"]


def verdicts(compared: pd.DataFrame, ours: str) -> Iterator[str]:
    """A sentence a control on all human turns, from ``comparison``: whether its interval excludes no difference, and
    what is left of that among all comparisons of the table."""
    together = int(compared.p_holm.notna().sum())
    for row in compared[(compared.turns == "all") & (compared.model != ours)].itertuples():
        alone = row.difference_low * row.difference_high > 0
        text = f"{ours[4:]} against {row.model}: **{row.difference:+.2f}** ({row.difference / row.perplexity:+.0%}), "
        text += f"95 % interval [{row.difference_low:.2f}, {row.difference_high:.2f}], n = {row.n}: it "
        text += f"**{'excludes' if alone else 'includes'}** zero; p = {row.p_holm:.2g} after Holm over {together} "
        yield text + f"comparisons: **{'told apart' if alone and row.p_holm < SURE else 'not told apart'}**."


def _bits(nll: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
    return nll.sum(axis=axis) / BITS / size.sum(axis=axis)


def add_metrics(metrics: Metrics, compared: pd.DataFrame, ours: str) -> None:
    """Names in metrics.json: ``user_turn_perplexity_before`` is (a), ``_after`` ours, the others by their letter."""
    short = {
        "(a)": "before",
        "(b)": "roleplay",
        "(c)": "assistant_side",
        "(d)": "both_sides",
        "(e)": "after",
        "(f)": "plain_segments",
    }
    for row in compared.itertuples():
        name = short[row.model[:3]] + ("" if row.turns == "all" else f"_{row.turns}_turns")
        ci = (row.ci_low, row.ci_high)
        metrics.add(f"user_turn_perplexity_{name}", row.perplexity, ci=ci, n=row.n, unit="perplexity")
        bits = (row.bits_low, row.bits_high)
        metrics.add(f"user_turn_bits_per_byte_{name}", row.bits_per_byte, ci=bits, n=row.n, unit="bits per byte")
        if row.model == ours or row.turns != "all":
            continue
        against = "difference" if name == "before" else f"difference_{name}"
        gap = (row.difference_low, row.difference_high)
        unit = f"perplexity, UserGPT minus {row.model[4:]}, paired"
        metrics.add(f"user_turn_perplexity_{against}", row.difference, ci=gap, n=row.n, unit=unit)
