"""A judge is an instrument: what it gets right where the right answer is known, told before any score of ours.

Four tests, on first turns: does it prefer GPT-4's reference over the base model's answer, call two equal answers a
tie, keep its verdict when the order is swapped, repeat its rating of the same words. Comparisons are blind: no
reference stands in the prompt, also where FastChat's own prompt has one, or the reference would be held against itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from realm.core.metrics import Metrics
from realm.core.progress import Bar
from realm.evaluation.intervals import share_interval
from realm.evaluation.mt_bench import WRONG_REFERENCES, Missing, Question, answers_by_question, gather
from realm.evaluation.mt_bench_judging import SWAPPED, Bench, Game

MODEL = "base"  # whose answers are compared
WHERE = "judge.calibration"  # no model's name has a dot


@dataclass(frozen=True)
class Calibration:
    """What the judge said, by question. ``against``: reference first, then answer first; ``equals``: an answer with
    itself; ``repeated``: two ratings of the same words, null where one could not be read."""

    judge: str
    against: dict[int, tuple[Game, Game]]
    equals: dict[int, Game]
    repeated: dict[int, tuple[float | None, float | None]]
    missing: list[tuple[str, Missing]]


async def calibrate(
    bench: Bench, questions: Sequence[Question], answers: Sequence[dict[str, Any]], most: int | None = None
) -> Calibration:
    """Hold all four tests with the base model's ``answers``; each on ``most`` questions drawn by the seed, null: all.

    The ratings are those of ``grade``, and not asked for twice. Raises EndpointError where nothing comes.
    """
    said = answers_by_question(answers)
    there = [q for q in questions if q.id in said]
    against, equals, repeated = {}, {}, {}

    async def reference(q: Question) -> None:
        theirs, mine = bench.references[q.id], said[q.id]
        first = await bench.play(WHERE, q, theirs, mine, 1, guided=False)
        against[q.id] = first, await bench.play(WHERE, q, mine, theirs, 1, guided=False)
        bar.update()

    async def equal(q: Question) -> None:
        equals[q.id] = await bench.play(WHERE, q, said[q.id], said[q.id], 1, guided=False)
        bar.update()

    async def again(q: Question) -> None:
        first = await bench.rate(MODEL, q, said[q.id], 1)
        repeated[q.id] = first["score"], (await bench.rate(MODEL, q, said[q.id], 1, repeat=1))["score"]
        bar.update()

    with_reference = _drawn([q for q in there if q.id in bench.references], most, bench.seed)
    drawn = _drawn(there, most, bench.seed)
    tests = [("reference", reference, with_reference), ("equal answers", equal, drawn), ("same words", again, drawn)]
    asked = {(name, q.id): test(q) for name, test, some in tests for q in some}
    bar = Bar(total=len(asked), desc=f"calibrating {bench.name}", unit="tests")
    with bar:
        failed = await gather(bench.client, asked)
    lost = [(name, Missing(number, why)) for (name, number), why in failed]
    return Calibration(bench.name, against, equals, repeated, lost)


def _drawn(questions: list[Question], most: int | None, seed: int) -> list[Question]:
    """A larger number draws the same and more, so that what was asked serves again."""
    order = np.random.default_rng(seed).permutation(len(questions))
    return [questions[i] for i in sorted(order[:most])]


def calibration_table(found: Calibration) -> pd.DataFrame:
    """A row a test: test, metric, share, Wilson's 95 % interval over questions, n, what a perfect judge has.

    A judgment that cannot be read passes no test. ``n`` counts questions whose judgments came.
    """
    preferred = {i: _prefers_reference(games) for i, games in found.against.items()}
    right = [passed for i, passed in preferred.items() if i not in WRONG_REFERENCES]
    wrong = [passed for i, passed in preferred.items() if i in WRONG_REFERENCES]
    rows = [
        ("prefers GPT-4's reference over the base's answer, in both orders", "judge_reference_preferred", preferred),
        ("… of these, where the reference is right", "judge_reference_preferred_right", right),
        ("… of these, where it was reported wrong", "judge_reference_preferred_wrong", wrong),
        ("calls two equal answers a tie", "judge_ties_on_equals", [g.winner == "tie" for g in found.equals.values()]),
        ("keeps its verdict when the order is swapped", "judge_keeps_on_swap", map(_keeps, found.against.values())),
        ("repeats its rating of the same words", "judge_repeats_itself", map(_same, found.repeated.values())),
    ]
    return pd.DataFrame([_row(name, metric, passed) for name, metric, passed in rows])


def _row(test: str, metric: str, passed: Any) -> dict[str, Any]:
    outcomes = list(passed.values() if isinstance(passed, dict) else passed)
    k, n = sum(outcomes), len(outcomes)
    low, high = share_interval(k, n)
    share = k / n if n else np.nan
    return {"test": test, "metric": metric, "share": share, "ci_low": low, "ci_high": high, "n": n}


def _prefers_reference(games: tuple[Game, Game]) -> bool:
    return (games[0].winner, games[1].winner) == ("model_1", "model_2")


def _keeps(games: tuple[Game, Game]) -> bool:
    there, back = (g.winner for g in games)
    return there != "error" and SWAPPED.get(back, back) == there


def _same(ratings: tuple[float | None, float | None]) -> bool:
    return ratings[0] is not None and ratings[0] == ratings[1]


def add_calibration(metrics: Metrics, found: Calibration) -> pd.DataFrame:
    """Add the judge's shares, how often it chose what was shown first, and what could not be read or did not come;
    returns the table."""
    table = calibration_table(found)
    for row in table[table.n > 0].itertuples():
        metrics.add(
            row.metric, row.share, ci=(row.ci_low, row.ci_high), n=row.n, unit=f"share of questions; {found.judge}"
        )
    games = [g for pair in found.against.values() for g in pair] + list(found.equals.values())
    chosen = [g.winner == "model_1" for g in games if g.winner in SWAPPED]
    if chosen:
        metrics.add(
            "judge_prefers_first",
            sum(chosen) / len(chosen),
            ci=share_interval(sum(chosen), len(chosen)),
            n=len(chosen),
            unit=f"share of games with a winner that the answer shown first won, 0.5 is fair; {found.judge}",
        )
    unread = sum(g.winner == "error" for g in games) + sum(r is None for pair in found.repeated.values() for r in pair)
    said = len(games) + 2 * len(found.repeated)
    metrics.add("judge_unread_in_calibration", unread, n=said, unit=f"judgments of {found.judge}")
    tests = len(found.against) + len(found.equals) + len(found.repeated) + len(found.missing)
    metrics.add("judge_missing_in_calibration", len(found.missing), n=tests, unit=f"tests of {found.judge}")
    return table
