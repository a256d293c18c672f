"""How well a model foretells what a human says next, turn by turn, and whether it knows when the human is done.

Every model is scored on the same held-out human turns: the base model under the flipped template, the base model
told to play a user, and whatever was trained. Perplexity is over tokens; bits per byte does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from realm import training
from realm.conversation import ENDS_SESSION, Conversation, Message
from realm.intervals import bootstrap
from realm.profile import SFT
from realm.provenance import Metrics
from realm.simulators import ROLEPLAY
from realm.splits import unit_hash
from realm.template import IGNORED, Encoder

BITS = math.log(2)
GOES_ON = "goes_on"  # in meta, true: the session has turns after this segment


@dataclass(frozen=True)
class TurnScores:
    """One entry a human turn, arrays of shape (turns,). ``row``: index of its conversation; ``number``: 0 for the
    first human turn of the row; ``nll`` in nats, end token included; ``end_logp``: natural log-probability that
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
    """One segment of each of ``count`` sessions, drawn by hash; none whose turns are cut at ``max_length``.

    Those that another segment of their session follows say so in ``meta[GOES_ON]``.
    """
    sessions: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        sessions.setdefault(conversation.session, []).append(conversation)
    draw = lambda key: unit_hash(f"held out:{seed}:{key}")  # noqa: E731
    chosen: list[Conversation] = []
    # Sessions first, then a segment of each: drawing segments at once would favour sessions that have many.
    for session in sorted(sessions, key=draw):
        segments = sorted(sessions[session], key=lambda c: draw(c.id))
        whole = next((c for c in segments if (row := encoder.encode(c)).supervised and not row.cut), None)
        if whole is not None:
            goes_on = _place(whole) < max(map(_place, segments))
            chosen.append(replace(whole, meta=whole.meta | ({GOES_ON: True} if goes_on else {})))
        if len(chosen) == count:
            break
    return chosen


def _place(segment: Conversation) -> int:
    """Which segment of its session it is, as ``template.cut_apart`` numbers them."""
    number = segment.id.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def with_outcome(conversation: Conversation) -> Conversation:
    """An empty human turn after a closing answer of which it is known whether the human went on."""
    known = conversation.meta.get(ENDS_SESSION) or conversation.meta.get(GOES_ON)
    if not known or conversation.messages[-1].role != "assistant":
        return conversation
    return replace(conversation, messages=(*conversation.messages, Message("user", "")))


def as_roleplay(conversation: Conversation) -> Conversation:
    """The conversation as an assistant sees it that is told to play the human: roles swapped, as it is served."""
    return Conversation(conversation.id, tuple(ROLEPLAY.messages(conversation.messages)), conversation.meta)


@torch.inference_mode()
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


def score_control(
    side: str,
    train: Sequence[Conversation],
    test: Sequence[Conversation],
    encoder: Encoder,
    config: SFT,
    folder: Path,
    seed: int,
) -> TurnScores:
    """Human turns under a model trained on ``side`` (assistant or both), otherwise as ``config`` trains UserGPT:
    same data, same budget of tokens, same seed. Resumes from ``folder``/control_SIDE."""
    trainer_side = replace(encoder, supervise=side)
    chosen = training.select_rows(train, trainer_side, config.max_train_tokens, seed)
    model = training.add_adapter(training.load_base(config), config, seed)
    last = config.model_copy(update={"eval_steps": None})  # the last step: no validation rows are at hand
    training.train(model, encoder.tokenizer, chosen.rows, last, Path(folder) / f"control_{side}", seed)
    return score_turns(model, test, encoder, f"control: {side}")


def _scored(model, rows, encoder: Encoder, end: int, desc: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per turn, rows in order: nll, tokens, log-probability of the end token as its first."""
    starts = [_turn_starts(row.labels) for row in rows]
    first = np.cumsum([0, *map(len, starts)])
    nll, tokens, end_logp = (np.zeros(first[-1]) for _ in range(3))
    for indices, batch in training.held_out_batches(model, rows, encoder.tokenizer, desc):
        logits, targets, owner, column = training.supervised_logits(model, batch)
        norm = torch.logsumexp(logits.float(), dim=-1)  # no second array of the logits' size
        losses = (norm - logits.gather(1, targets[:, None]).squeeze(1)).double().cpu().numpy()
        ends = (logits[:, end] - norm).double().cpu().numpy()
        for place, i in enumerate(indices):
            mine = (owner == place).cpu().numpy()
            turn = np.searchsorted(starts[i], column.cpu().numpy()[mine], side="right") - 1
            np.add.at(nll, first[i] + turn, losses[mine])
            np.add.at(tokens, first[i] + turn, 1)
            opening = np.searchsorted(column.cpu().numpy()[mine], starts[i])
            end_logp[first[i] : first[i + 1]] = ends[mine][opening]
    return nll, tokens, end_logp


def _turn_starts(labels: np.ndarray) -> np.ndarray:
    """Index of the first supervised token of each turn."""
    on = labels != IGNORED
    return np.flatnonzero(on & ~np.concatenate([[False], on[:-1]]))


# ---------------------------------------------------------------- comparing models


def _perplexity(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.exp(nll.sum(axis=axis) / tokens.sum(axis=axis))


def _perplexity_gap(nll, tokens, other_nll, other_tokens, axis: int = -1) -> np.ndarray:
    return _perplexity(nll, tokens, axis) - _perplexity(other_nll, other_tokens, axis)


def comparison(scores: dict[str, TurnScores], ours: str, seed: int) -> pd.DataFrame:
    """A row a model and kind of turn (all, first of a session, later), with 95 % bootstrap intervals over
    conversations: perplexity, bits per UTF-8 byte, and the paired difference of perplexity, ``ours`` minus it.

    ``n``: conversations that have such a turn.
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
            low, high = bootstrap([nll, tokens], _perplexity, seed)
            bits_low, bits_high = bootstrap([nll, size], lambda a, b, axis=-1: _bits(a, b, axis), seed)
            pair = [reference[0][has], reference[1][has], nll, tokens]
            gap_low, gap_high = bootstrap(pair, _perplexity_gap, seed) if name != ours else (0.0, 0.0)
            rows.append(
                {
                    "model": name,
                    "turns": kind,
                    "perplexity": float(_perplexity(nll, tokens)),
                    "ci_low": low,
                    "ci_high": high,
                    "bits_per_byte": float(_bits(nll, size)),
                    "bits_low": bits_low,
                    "bits_high": bits_high,
                    "difference": float(_perplexity_gap(*pair)),
                    "difference_low": gap_low,
                    "difference_high": gap_high,
                    "n": int(has.sum()),
                }
            )
    return pd.DataFrame(rows)


def _bits(nll: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
    return nll.sum(axis=axis) / BITS / size.sum(axis=axis)


def add_metrics(metrics: Metrics, compared: pd.DataFrame, ours: str) -> None:
    """Names in metrics.json: ``user_turn_perplexity_before`` is (a), ``_after`` ours, the others by their letter."""
    short = {"(a)": "before", "(b)": "roleplay", "(c)": "assistant_side", "(d)": "both_sides", "(e)": "after"}
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


# ---------------------------------------------------------------- knowing when to stop


@dataclass(frozen=True)
class Termination:
    """F1 of telling, after each answer, that the human is done; ``always``: of a guesser that says so every time,
    the best that a constant rate can do; ``auc``: of ranking the answers by how likely it is, 0.5 by chance.
    Each with a 95 % interval over sessions; ``n`` sessions, ``places`` answers of known outcome."""

    f1: float
    f1_interval: tuple[float, float]
    always: float
    gain: float
    gain_interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]
    n: int
    places: int
    base_rate: float


def termination(scores: TurnScores, seed: int) -> Termination:
    """The threshold on the probability of an ending is chosen on one half of the sessions and used on the
    other, both ways round. Raises ValueError if no held-out session shows its end, or all places are ends."""
    after_answer = scores.number > 0
    row, truth, score = scores.row[after_answer], scores.over[after_answer], scores.end_logp[after_answer]
    if not truth.any() or truth.all():
        raise ValueError("termination needs places where sessions end and places where they go on")
    half = row % 2 == 0
    says = np.zeros(len(row), dtype=bool)
    for fit, use in ((half, ~half), (~half, half)):
        says[use] = score[use] >= _best_threshold(score[fit], truth[fit])
    counts = [np.bincount(row, hit) for hit in (truth & says, says != truth, truth, ~truth)]
    present = np.bincount(row) > 0
    hits, misses, ends, goes_on = (c[present] for c in counts)
    f1 = lambda a, b, axis=-1: _f1(a.sum(axis), b.sum(axis))  # noqa: E731
    gain = lambda a, b, c, d, axis=-1: f1(a, b, axis) - f1(c, d, axis)  # noqa: E731
    return Termination(
        f1=float(f1(hits, misses)),
        f1_interval=bootstrap([hits, misses], f1, seed),
        always=float(f1(ends, goes_on)),
        gain=float(gain(hits, misses, ends, goes_on)),
        gain_interval=bootstrap([hits, misses, ends, goes_on], gain, seed),
        auc=_auc(score, truth),
        auc_interval=_auc_interval(row, score, truth, seed),
        n=int(present.sum()),
        places=len(row),
        base_rate=float(truth.mean()),
    )


def _f1(hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN)."""
    return 2 * hits / np.maximum(2 * hits + misses, 1)


def _best_threshold(score: np.ndarray, truth: np.ndarray) -> float:
    thresholds = np.unique(score)
    return float(max(thresholds, key=lambda t: _f1((truth & (score >= t)).sum(), (truth != (score >= t)).sum())))


def _auc(score: np.ndarray, truth: np.ndarray) -> float:
    """NaN where only one kind is there: such a resample says nothing."""
    return float(roc_auc_score(truth, score)) if truth.any() and not truth.all() else math.nan


def _auc_interval(row: np.ndarray, score: np.ndarray, truth: np.ndarray, seed: int) -> tuple[float, float]:
    places = [np.flatnonzero(row == session) for session in np.unique(row)]

    def of_drawn(drawn: np.ndarray) -> float:
        chosen = np.concatenate([places[int(i)] for i in drawn])
        return _auc(score[chosen], truth[chosen])

    return bootstrap([np.arange(len(places))], of_drawn, seed, vectorized=False)


def add_termination(metrics: Metrics, found: Termination) -> None:
    metrics.add("termination_f1", found.f1, ci=found.f1_interval, n=found.n, unit="F1 of telling where sessions end")
    metrics.add("termination_f1_always", found.always, n=found.n, unit="F1 of always saying that it is over")
    metrics.add("termination_f1_gain", found.gain, ci=found.gain_interval, n=found.n, unit="F1, paired difference")
    metrics.add("termination_auc", found.auc, ci=found.auc_interval, n=found.n, unit="area under the ROC curve")
    metrics.add("termination_base_rate", found.base_rate, n=found.places, unit="share of answers that end a session")
