"""A funnel of named, pure, ordered steps that accounts for every conversation: what came in, changed, went, and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from realm.conversations.conversation import SESSION, Conversation
from realm.core.errors import TooFewError
from realm.core.progress import Bar

EXAMPLES_PER_REASON = 2


@dataclass
class Outcome:
    """What a step did with one conversation: what comes out (none, one or more), why it changed or went,
    and what was counted inside it."""

    kept: list[Conversation]
    reason: str = ""
    found: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Step:
    """``apply`` gives one outcome a conversation, in order, and keeps nothing between two runs."""

    name: str
    apply: Callable[[list[Conversation]], list[Outcome]]


@dataclass(frozen=True)
class Example:
    """One conversation before and after a step; nothing after means it went."""

    reason: str
    before: Conversation
    after: list[Conversation]


@dataclass
class StepReport:
    """One row of the funnel. A session may stand in several segments; ``changed`` and ``reasons`` count segments."""

    step: str
    sessions_in: int
    segments_in: int
    sessions_out: int = 0
    segments_out: int = 0
    changed: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        why = [*self.reasons.most_common(), *self.found.most_common()]
        return {
            "step": self.step,
            "conversations in": self.sessions_in,
            "conversations out": self.sessions_out,
            "segments in": self.segments_in,
            "segments out": self.segments_out,
            "changed": self.changed,
            "why": ", ".join(f"{reason}: {n:,}" for reason, n in why),
            "seconds": round(self.seconds, 1),
        }

    def _note(self, conversation: Conversation, outcome: Outcome) -> None:
        self.found.update(outcome.found)
        if not outcome.reason:
            return
        self.changed += bool(outcome.kept)
        if self.reasons[outcome.reason] < EXAMPLES_PER_REASON:
            self.examples.append(Example(outcome.reason, conversation, outcome.kept))
        self.reasons[outcome.reason] += 1


def run_funnel(
    conversations: Iterable[Conversation], steps: Sequence[Step], progress: bool = False
) -> tuple[list[Conversation], list[StepReport]]:
    """Apply the steps in order; returns what is left and one report a step."""
    current = list(conversations)
    reports = []
    with Bar(total=len(steps), desc="cleaning", unit="steps", disable=not progress) as bar:
        for step in steps:
            bar.note(step.name)
            current, report = _run_step(step, current)
            reports.append(report)
            bar.update()
    return current, reports


def _run_step(step: Step, conversations: list[Conversation]) -> tuple[list[Conversation], StepReport]:
    started = time.perf_counter()
    report = StepReport(step.name, _sessions(conversations), len(conversations))
    result: list[Conversation] = []
    for conversation, outcome in zip(conversations, step.apply(conversations), strict=True):
        result += outcome.kept
        report._note(conversation, outcome)
    report.sessions_out, report.segments_out = _sessions(result), len(result)
    report.seconds = time.perf_counter() - started
    return result, report


def _sessions(conversations: Sequence[Conversation]) -> int:
    """Before anything is joined, each record is a session of its own, whatever its id."""
    named = {c.session for c in conversations if SESSION in c.meta}
    return len(named) + sum(SESSION not in c.meta for c in conversations)


def require_left(reports: Sequence[StepReport]) -> None:
    """Raise TooFewError, naming the step, if the funnel left nothing."""
    emptied = next((r for r in reports if r.segments_in and not r.segments_out), None)
    if emptied:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in emptied.reasons.most_common(3))
        raise TooFewError(
            f"cleaning: the step {emptied.step!r} left 0 of {emptied.sessions_in:,} conversations ({why}); "
            "its rules are those of data_inspection.preset, the conversations those of data_inspection.source"
        )


def keep(conversation: Conversation) -> Outcome:
    return Outcome([conversation])


def each(rule: Callable[[Conversation], Outcome]) -> Callable[[list[Conversation]], list[Outcome]]:
    """A rule that looks at one conversation at a time, as a step's ``apply``."""
    return lambda conversations: [rule(c) for c in conversations]
