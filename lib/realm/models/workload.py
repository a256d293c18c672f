"""How much a training stage trains on, known or bounded before it runs: segments, tokens, supervised share, steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from realm.core.profile import SFT, Profile, UserSFT

PAPER_SEGMENTS = 34_435  # ShareGPT after the authors' funnel: published/paper.yaml, cleaning_funnel
# Assumed, tails cut; the assistant speaks most of what is left.
ASSUMED_SHARE = {"user": 0.25, "assistant": 0.75, "both": 0.95}
# What notebook 01 measures; without all of it, bounds and assumptions stand in.
MEASURED = {"conversations_train", "train_row_tokens_mean", "supervised_share_without_tails"}
BY_KIND = ("row_tokens_mean", "supervised_share")
ALONE = {"segment": "opening", "turn": "opening_turn"}  # ``opening_rows`` -> what notebook 01 calls such rows


@dataclass(frozen=True)
class Workload:
    """One pass: ``segments`` of ``length`` tokens on average, tails cut, ``share`` of them supervised.

    ``basis`` says in words where these come from; ``few_segments``: a budget was divided by the greatest length there
    can be, so there are as many segments or more.
    """

    tokens: int
    segments: int
    length: float
    share: float
    few_segments: bool
    basis: str


def workload(profile: Profile, block: str, measured: Mapping[str, float]) -> Workload:
    """What ``block`` trains on: from the metrics of notebook 01, which measures the rows of the user's side with
    their tails cut, else upper bounds."""
    config, longest = getattr(profile, block), profile.dialogue.max_length
    length, share = float(longest), ASSUMED_SHARE[config.supervise]
    known = block == "usergpt_sft" and config.supervise == "user" and measured.keys() >= MEASURED
    if known:
        length, share = _rows_on_average(config, measured)
        segments, basis = int(measured["conversations_train"]), "metrics of notebook 01"
    elif block == "realm_sft":
        talks = profile.simulation.free + profile.simulation.seeded
        context = (profile.simulation.user or profile.simulation.responder).context_length
        segments, basis = talks * ceil(context / longest), f"{talks:,} conversations that fill their context"
    else:
        segments, basis = PAPER_SEGMENTS, f"the {PAPER_SEGMENTS:,} segments of the paper's ShareGPT"
    if own := config.own_split:
        segments, basis = ceil(segments * own.train_share), f"{own.train_share:.0%} of {basis}"
    tokens, budget = round(segments * length), config.max_train_tokens
    cut = budget is not None and budget < tokens
    if cut:
        tokens, segments, basis = budget, ceil(budget / length), f"max_train_tokens of {basis}"
    words = f"{length:.0f} tokens on average" if known else f"at most {longest:,} tokens"
    basis += f"; segments of {words}; {share:.0%} of the tokens supervised" + ("" if known else " (assumed)")
    return Workload(tokens, segments, length, share, cut and not known, basis)


def _rows_on_average(config: UserSFT, measured: Mapping[str, float]) -> tuple[float, float]:
    """(tokens, supervised share) of the rows that a budget takes: ``opening_share`` of its tokens goes to openings."""
    openings, kinds = config.opening_share, (ALONE[config.opening_rows], "inside")
    if openings is None or not measured.keys() >= {f"{kind}_{name}" for kind in kinds for name in BY_KIND}:
        return measured["train_row_tokens_mean"], measured["supervised_share_without_tails"]
    lengths, shares = ([measured[f"{kind}_{name}"] for kind in kinds] for name in BY_KIND)
    parts = (openings, 1 - openings)
    rows_a_token = sum(part / length for part, length in zip(parts, lengths, strict=True))
    return 1 / rows_a_token, sum(part * share for part, share in zip(parts, shares, strict=True))


def optimizer_steps(config: SFT, segments: int, processes: int) -> int:
    """Steps of all epochs; the last of an epoch may be a short one."""
    return config.epochs * ceil(ceil(segments / (config.batch_size * processes)) / config.accumulation)
