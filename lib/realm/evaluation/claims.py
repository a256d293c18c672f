"""The ledger: each claim of the paper, judged by this repository's own metrics. Verdicts are computed, never typed.

``claims.yaml`` says what each claim is, where it stands, and by which rule it would count as shown. A rule compares a
metric's 95 % interval with a bound:

- *shown here*: the interval lies wholly on the claimed side of the bound;
- *contradicted here*: it lies wholly on the other side of where there is no effect (``nothing``, else
  the bound);
- *not shown here*: it lies wholly short of the bound, though not on that other side;
- *cannot be told at this size*: anything else, among it a metric without an interval, or of fewer than ``AT_LEAST``
  conversations, whose bootstrap intervals are too narrow;
- *untested*: the metric is not there.

A rule ``near`` asks that a value lies within a share of another: it knows *shown*, *not shown* and *cannot be told*.
A claim of several rules is shown if all of them are, and else has the verdict of the worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from realm.core.block import Block
from realm.core.errors import OneLineError
from realm.core.files import REPOSITORY
from realm.core.keys_once import KeysOnce
from realm.core.metrics import Metric
from realm.evaluation import published
from realm.evaluation.intervals import Span
from realm.evaluation.names import metric_names
from realm.evaluation.several import chance, holm

FILE = REPOSITORY / "claims.yaml"
AT_LEAST = 20


class ClaimsError(OneLineError, ValueError):
    """What is wrong with claims.yaml: the message names file, claim and field."""


class Verdict(StrEnum):
    """What may become of a claim, the worst last."""

    SHOWN = "shown here"
    UNTESTED = "untested"
    CANNOT_BE_TOLD = "cannot be told at this size"
    NOT_SHOWN = "not shown here"
    CONTRADICTED = "contradicted here"


class Reference(Block):
    """A number that stands elsewhere: a metric by name, or a place in ``published/paper.yaml``."""

    metric: str | None = None
    published: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Reference:
        if (self.metric is None) == (self.published is None):
            raise ValueError("a reference has a metric or a published place, one of both")
        if self.metric is not None:
            _known(self.metric)
        elif self.published not in published.values():
            raise ValueError(f"{self.published!r} is no place in published/paper.yaml")
        return self


class Rule(Block):
    """What would count as shown: ``metric`` wholly ``below`` or ``above`` a bound, or ``near`` it (within a share).

    ``nothing``: where there is no effect, if that is not the bound. ``margin``: what the bound may move by.
    """

    metric: str
    below: FiniteFloat | Reference | None = None
    above: FiniteFloat | Reference | None = None
    near: FiniteFloat | Reference | None = None
    within: Annotated[float, Field(gt=0, lt=1)] | None = None
    nothing: FiniteFloat | None = None
    margin: FiniteFloat | Reference = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        _known(self.metric)
        if sum(bound is not None for bound in (self.below, self.above, self.near)) != 1:
            raise ValueError("a rule has one of below, above, near")
        if (self.near is None) != (self.within is None):
            raise ValueError("near and within go together")
        return self

    @property
    def bound(self) -> float | Reference:
        return next(bound for bound in (self.below, self.above, self.near) if bound is not None)

    @property
    def other_metric(self) -> str | None:
        """The metric that is the bound, if one is."""
        return self.bound.metric if isinstance(self.bound, Reference) else None


class Claim(Block):
    """One claim, in our words. ``where``: where it stands. ``published``: label -> number, for the reader."""

    claim: str
    where: str
    published: dict[str, Reference] = Field(default_factory=dict)
    rules: Annotated[list[Rule], Field(min_length=1)]


class Claims(Block):
    """``claims.yaml``."""

    claims: dict[str, Claim]


def _known(metric: str) -> None:
    if metric_names().readable(metric) is None:
        raise ValueError(f"there is no metric {metric!r}; evaluation/metric_names.yaml has those that may be")


def load_claims(path: str | Path = FILE) -> dict[str, Claim]:
    """The claims by their short names, in order. Raises ClaimsError, one line: file, claim, field, what is allowed."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=KeysOnce)
    except FileNotFoundError as error:
        raise ClaimsError(f"{path}: missing; it stands at the top of the repository") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClaimsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Claims.model_validate(values).claims
    except ValidationError as error:
        raise ClaimsError(f"{path}: {_in_one_line(error)}") from None


def _in_one_line(error: ValidationError) -> str:
    # Of the errors of a bound, which is a number or a reference, that of the reference says more.
    telling = {"extra_forbidden": 0, "value_error": 1}
    first = min(error.errors(), key=lambda e: telling.get(e["type"], 2))
    parts = [str(part) for part in first["loc"]]
    location = ".".join(p for p in parts if p not in ("float", "Reference") and "[" not in p) or "file"
    if first["type"] == "extra_forbidden":
        return f"{location}: unknown key"
    words = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"].lower()
    return f"{location}: {words}"


# ---------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it. ``measures``: of each rule the metric, None where it is missing, and the metric
    that is its bound, None where it has another.

    ``p``: two-sided, of the claim's weakest rule, read from the intervals as if they were normal; None where no
    interval was compared.
    """

    name: str
    claim: Claim
    verdict: Verdict
    measures: tuple[tuple[Metric | None, Metric | None], ...]
    p: float | None


def judge(name: str, claim: Claim, metrics: Mapping[str, Metric]) -> Judged:
    """The verdict on a claim from a run's metrics by name."""
    found = [_judge_rule(rule, metrics) for rule in claim.rules]
    verdicts, chances = [v for v, _ in found], [p for _, p in found if p is not None]
    worst = max(verdicts, key=list(Verdict).index)
    measures = tuple((metrics.get(rule.metric), metrics.get(rule.other_metric)) for rule in claim.rules)
    return Judged(name, claim, worst, measures, max(chances, default=None))


def judge_all(claims: Mapping[str, Claim], metrics: Mapping[str, Metric]) -> list[Judged]:
    """Every claim judged, in the order of ``claims``."""
    return [judge(name, claim, metrics) for name, claim in claims.items()]


def claims_by_holm(judged: Iterable[Judged]) -> dict[str, float]:
    """Several claims at once: by name, p adjusted by Holm's method over all claims that have one."""
    return holm({j.name: j.p for j in judged if j.p is not None})


def _judge_rule(rule: Rule, metrics: Mapping[str, Metric]) -> tuple[Verdict, float | None]:
    metric, bound, margin = metrics.get(rule.metric), _span(rule.bound, metrics), _span(rule.margin, metrics)
    if metric is None or bound is None or margin is None:
        return Verdict.UNTESTED, None
    if rule.near is not None:
        return _near(metric, bound, rule.within), None
    if metric.ci_low is None or (metric.n is not None and metric.n < AT_LEAST):
        return Verdict.CANNOT_BE_TOLD, None
    # "Below" is "above" in the mirror.
    sign = 1 if rule.above is not None else -1
    low, high = _mirrored((metric.ci_low, metric.ci_high), sign)
    bound = _mirrored((bound[0] - margin[1], bound[1] + margin[1]), sign)
    nothing = bound if rule.nothing is None else _mirrored((rule.nothing, rule.nothing), sign)
    if high < nothing[0]:
        return Verdict.CONTRADICTED, chance(sign * metric.value, (low, high), nothing)
    p = chance(sign * metric.value, (low, high), bound)
    if low > bound[1]:
        return Verdict.SHOWN, p
    return (Verdict.NOT_SHOWN if high < bound[0] else Verdict.CANNOT_BE_TOLD), p


def _span(bound: FiniteFloat | Reference | None, metrics: Mapping[str, Metric]) -> Span | None:
    """A bound as what it may be from and to; None for that of a metric which is not there."""
    if not isinstance(bound, Reference):
        return (bound, bound)
    if bound.published is not None:
        return (published.values()[bound.published],) * 2
    metric = metrics.get(bound.metric)
    return None if metric is None else _interval(metric)


def _interval(metric: Metric) -> Span:
    return (metric.value, metric.value) if metric.ci_low is None else (metric.ci_low, metric.ci_high)


def _mirrored(span: Span, sign: int) -> Span:
    return span if sign > 0 else (-span[1], -span[0])


def _near(metric: Metric, bound: Span, within: float) -> Verdict:
    """Whole counts have no interval: the value stands for itself."""
    low, high = _interval(metric)
    room = (bound[0] - within * abs(bound[0]), bound[1] + within * abs(bound[1]))
    if room[0] <= low and high <= room[1]:
        return Verdict.SHOWN
    return Verdict.NOT_SHOWN if high < room[0] or low > room[1] else Verdict.CANNOT_BE_TOLD
