"""The ledger as a reader sees it: claim, what is published, ours with interval and n, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realm.core.metrics import PUBLISHED, Metric, interval, number
from realm.evaluation import published
from realm.evaluation.claims import Claim, Judged, Rule, Verdict, claims_by_holm
from realm.evaluation.names import readable

DECIDED = (Verdict.SHOWN, Verdict.CONTRADICTED)
CSS = {
    Verdict.SHOWN: "shown",
    Verdict.UNTESTED: "untested",
    Verdict.CANNOT_BE_TOLD: "open",
    Verdict.NOT_SHOWN: "short",
    Verdict.CONTRADICTED: "against",
}
ALONE = "†"


@dataclass(frozen=True)
class Line:
    """A claim of one run, in texts. ``verdict`` bears a dagger where it holds by itself, not among the others."""

    claim: str
    where: str
    measured: str
    published: str
    ours: str
    verdict: str
    css: str


def lines(judged: Sequence[Judged], metrics: Mapping[str, Metric]) -> list[Line]:
    """The ledger's lines of one run, in the order of the claims."""
    fragile = alone(judged)
    return [
        Line(
            j.claim.claim,
            j.claim.where,
            "; ".join(dict.fromkeys(readable(name) for rule in j.claim.rules for name in _names(rule))),
            published_text(j.claim, metrics),
            _ours(j),
            f"{j.verdict}{ALONE if j.name in fragile else ''}",
            CSS[j.verdict],
        )
        for j in judged
    ]


def _names(rule: Rule) -> list[str]:
    return [name for name in (rule.metric, rule.other_metric) if name]


def alone(judged: Sequence[Judged]) -> set[str]:
    """Names of the decided claims that Holm's adjustment over all of the run's intervals does not let stand."""
    adjusted = claims_by_holm(judged)
    return {j.name for j in judged if j.verdict in DECIDED and adjusted.get(j.name, 0.0) >= 0.05}


def footnote(judged: Sequence[Judged]) -> str:
    """How to read the verdicts together, in one sentence or two."""
    tested = claims_by_holm(judged)
    decided = [j for j in judged if j.verdict in DECIDED and j.name in tested]
    fragile = alone(judged)
    words = (
        f"A verdict reads one 95 % interval by itself. Taken together, by Holm's method over the {len(tested)} claims "
        f"with an interval (p read from it as of a normal), {len(decided) - len(fragile)} of {len(decided)} decided "
        "ones hold"
    )
    return f"{words}; {ALONE}: does not." if fragile else f"{words}."


def published_text(claim: Claim, metrics: Mapping[str, Metric]) -> str:
    """The published numbers of a claim, each with its label, without those whose metric is not there."""
    found = []
    for label, reference in claim.published.items():
        if reference.published is not None:
            found.append(f"{label}: {number(published.values()[reference.published])}")
        elif reference.metric in metrics:
            found.append(f"{label}: {quoted(metrics[reference.metric])}")
    return "; ".join(found)


def quoted(metric: Metric) -> str:
    """Value, interval and n, as they are quoted."""
    between = f" [{interval(metric)}]" if metric.ci_low is not None else ""
    return f"{number(metric.value)}{between}{'' if metric.n is None else f', n = {metric.n:,}'}"


def _ours(judged: Judged) -> str:
    there = [(metric, bound) for metric, bound in judged.measures if metric is not None]
    if there and all(metric.source == PUBLISHED for metric, _ in there):
        return "read from the published numbers"
    return "; ".join(quoted(m) + (f" against {quoted(bound)}" if bound else "") for m, bound in there)


def markdown(runs: Mapping[str, tuple[Sequence[Judged], Mapping[str, Metric]]]) -> list[str]:
    """The ledger of several runs side by side as lines of Markdown, by profile."""
    profiles = list(runs)
    head = "".join(f" ours, profile `{name}` | verdict |" for name in profiles)
    table = [f"| claim | published |{head}", "|---|---|" + "---|---|" * len(profiles)]
    for together in zip(*(lines(*runs[name]) for name in profiles), strict=True):
        first = together[0]
        said = max((line.published for line in together), key=len)  # of the run that has most of it
        what = f"{_cell(first.claim)}<br><sub>{_cell(first.where)}. Measured: {_cell(first.measured)}</sub>"
        rest = "".join(f" {_cell(line.ours)} | {line.verdict} |" for line in together)
        table.append(f"| {what} | {_cell(said)} |{rest}")
    notes = [f"Profile `{name}`: {footnote(judged)}" for name, (judged, _) in runs.items()]
    return [*table, "", *notes]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
