"""The full-scale plan in words: for ``--dry-run`` of profile ``paper``, and in ``cluster/README.md`` between markers.

``python -m realm.reporting.full_scale`` renders the latter anew; ``--publish`` and ``--figures`` do it too, since the
measured ratios are those of the reference run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from realm.core.files import REPOSITORY, ArtefactError, read_json
from realm.core.profile import Profile, load_profile
from realm.evaluation import published
from realm.models import estimate, full_scale
from realm.models.architecture import UnknownArchitecture
from realm.models.full_scale import Figure, Inputs, Ratio
from realm.models.workload import PAPER_SEGMENTS
from realm.reporting.reference import REFERENCE_PROFILE, reference_metrics, reference_metrics_path
from realm.reporting.report import write_between

README = REPOSITORY / "cluster" / "README.md"
BEGIN, END = "<!-- full-scale plan: begin -->", "<!-- full-scale plan: end -->"
PROFILE = "paper"
FUNNEL, CORPORA = "cleaning_funnel/steps", "corpus_statistics/corpora"
HEADING = "full-scale plan; untested: no GPU and no paid service has run it"
# Name -> where it is published, and the words for it in a formula.
FROM_PAPER = {
    "read": (f"{FUNNEL}/read/sessions", "sessions read"),
    "sessions": (f"{FUNNEL}/duplicates/sessions", "sessions"),
    "session_tokens": (f"{CORPORA}/ShareGPT (unsplit)/tokens_per_conversation", "tokens a session"),
    "rounds": (f"{CORPORA}/RealChat 10k/rounds_per_conversation", "rounds"),
    "turn_tokens": (f"{CORPORA}/RealChat 10k/tokens_per_message", "tokens a turn"),
}


def ratios(profile: Profile) -> dict[str, Ratio]:
    """Published and measured ratios by name. Raises ArtefactError or KeyError where the reference run has not what
    they are made of."""
    values = published.values()
    found = {n: Ratio(values[place], words, f"published: {place}") for n, (place, words) in FROM_PAPER.items()}
    found["segments"] = Ratio(PAPER_SEGMENTS, "segments", f"published: {FUNNEL}/duplicates/segments")
    talks = profile.simulation.free + profile.simulation.seeded
    found["talks"] = Ratio(talks, "conversations", "profile: simulation.free and seeded")
    return found | _measured()


def _measured() -> dict[str, Ratio]:
    metrics = reference_metrics()
    get = lambda name: metrics[name].value  # noqa: E731
    human, answer = get("human_turn_tokens_mean"), get("assistant_turn_tokens_mean")
    seconds = read_json(reference_metrics_path(REFERENCE_PROFILE))["01_data"]["seconds"]
    where = f"measured, profile {REFERENCE_PROFILE}"
    return {
        "kept": Ratio(
            get("supervised_share_user") / get("supervised_share_without_tails"),
            "share left without tails",
            f"{where}: supervised_share_user over supervised_share_without_tails",
        ),
        "supervised": Ratio(
            get("supervised_share_without_tails"), "share supervised", f"{where}: supervised_share_without_tails"
        ),
        "human_part": Ratio(
            human / (human + answer),
            "the human's part of a round",
            f"{where}: human_turn_tokens_mean, assistant_turn_tokens_mean",
        ),
        "bytes_a_token": Ratio(
            math.log2(get("user_turn_perplexity_after")) / get("user_turn_bits_per_byte_after"),
            "bytes a token",
            f"{where}: user_turn_perplexity_after in bits over user_turn_bits_per_byte_after",
        ),
        "seconds_read": Ratio(
            seconds / get("conversations_read"),
            "s a session",
            f"{where}: seconds of stage 01 over conversations_read",
        ),
    }


def inputs(profile: Profile, gpus: int | None = None) -> Inputs:
    """Raises UnknownArchitecture, ArtefactError or KeyError where something that a plan rests on is not known."""
    return Inputs.of(profile, ratios(profile), gpus)


# ---------------------------------------------------------------- words


def amount(value: float) -> str:
    """Four digits, with separators; of large numbers the order in words."""
    for size, word in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.4g} {word}"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.4g}"


def figure_words(figure: Figure) -> str:
    low, high = figure.ends
    ends = [amount(low)] if low == high else [amount(low), "to", amount(high)]
    return " ".join([*ends, figure.unit])


def formula(figure: Figure) -> str:
    """Its parts with their numbers, exact to four digits: ``1.5 M tokens × 3 epochs``."""
    words = ""
    for part in figure.parts:
        sign = "+" if figure.adds else "÷" if part.divides else "×"
        numbers = " to ".join(dict.fromkeys(amount(end) for end in part.ends))
        words += f" {sign} {numbers} {part.words}".rstrip() if words else f"{numbers} {part.words}"
    return words


def assumptions(given: Inputs) -> list[str]:
    """What no run has measured, a line each."""
    low, high = estimate.GPUS[full_scale.CARD].utilization
    price = given.profile.simulation.budget.responder_price
    lines = [
        f"Training reaches {low:.0%} to {high:.0%} of the card's published bfloat16 peak; generation "
        f"{full_scale.BANDWIDTH_SHARE[0]:.0%} to {full_scale.BANDWIDTH_SHARE[1]:.0%} of its bandwidth.",
        f"A service generates {full_scale.STREAM[0]:.0f} to {full_scale.STREAM[1]:.0f} tokens a second for each "
        "request in flight.",
        f"The judge's price is assumed: {full_scale.JUDGE_PRICE.prompt:g} and {full_scale.JUDGE_PRICE.completion:g} "
        f"dollars a million tokens sent and generated, gpt-4 as listed in {full_scale.PRICES_AS_OF}; look it up again.",
        "GPU hours of stage 03 add up reading, generating and waiting for the responder, as if none overlapped.",
        "Memory is that of tensors; system prompts and the template's frames of turns are not counted, nor is the "
        "storage of peers' models.",
        "A conversation is as long as the paper's. Profile values end it where 512 new tokens no longer fit, which is "
        "earlier: tokens and money are on the safe side.",
    ]
    if price:
        words = f"The responder's price is the profile's: {price.prompt:g} and {price.completion:g} dollars a million"
        lines.insert(2, f"{words}, as listed in {full_scale.PRICES_AS_OF}; look it up again.")
    return lines


def text(profile: Profile, gpus: int | None = None) -> str:
    """For the terminal: a figure a line, with its formula, then how it grows."""
    given = inputs(profile, gpus)
    lines = [f"{HEADING}; prices as of {full_scale.PRICES_AS_OF}"]
    for figure in full_scale.plan(given):
        lines.append(f"   {figure.stage:4s}{figure.what:36s}{figure_words(figure)}  = {formula(figure)}")
    lines.append("growth: multiplied by, where doubled: " + ", ".join(full_scale.DOUBLED))
    for figure, factors in full_scale.growth(given):
        lines.append(f"   {figure.stage:4s}{figure.what:36s}" + "".join(f"{f:8.2f}" for f in factors.values()))
    lines += ["rests on:", *(f"   {amount(r.value)} {r.words}: {r.source}" for r in given.ratios.values())]
    return "\n".join([*lines, "assumes:", *(f"   {line}" for line in assumptions(given))])


def dry_run(profile: Profile, gpus: int | None) -> str:
    """``text`` for a profile at the paper's scale, else nothing; one line where it cannot be computed."""
    if not full_scale.applies(profile):
        return ""
    try:
        return text(profile, gpus)
    except (UnknownArchitecture, ArtefactError, KeyError) as error:
        return f"{HEADING}: cannot be computed: {error}"


def block(profile: str = PROFILE) -> str:
    """The same as Markdown, for ``cluster/README.md``."""
    given = inputs(load_profile(profile))
    return "\n".join(_markdown(given))


def _markdown(given: Inputs) -> Iterator[str]:
    yield f"Computed for profile `{PROFILE}` on {given.gpus} GPUs, {full_scale.CARD} each, and tested by no run."
    yield from ("", "| stage | what | figure | formula |", "|---|---|---|---|")
    for figure in full_scale.plan(given):
        yield f"| {figure.stage} | {figure.what} | {figure_words(figure)} | {formula(figure)} |"
    yield from ("", "### How it grows", "", "Each figure multiplied by, where one thing is doubled:", "")
    yield "| stage | what | " + " | ".join(full_scale.DOUBLED) + " |"
    yield "|---|---|" + "---|" * len(full_scale.DOUBLED)
    for figure, factors in full_scale.growth(given):
        yield f"| {figure.stage} | {figure.what} | " + " | ".join(f"{f:.2f}" for f in factors.values()) + " |"
    yield from ("", "### What it rests on", "", "| ratio | value | source |", "|---|---|---|")
    for ratio in given.ratios.values():
        yield f"| {ratio.words} | {amount(ratio.value)} | {ratio.source} |"
    yield from ("", "### What it assumes", "", *(f"- {line}" for line in assumptions(given)))


def write_plan() -> None:
    """Render the plan in ``cluster/README.md``. Raises ArtefactError if its markers are not there."""
    write_between(README, BEGIN, END, block)


if __name__ == "__main__":
    argparse.ArgumentParser(description="Render the full-scale plan in cluster/README.md.").parse_args()
    write_plan()
