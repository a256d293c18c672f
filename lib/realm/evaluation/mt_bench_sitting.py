"""One sitting of a judge: held against right answers first, then ratings, then comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realm.core.profile import MTBench
from realm.evaluation.mt_bench import Missing, Question
from realm.evaluation.mt_bench_calibration import MODEL, Calibration, calibrate
from realm.evaluation.mt_bench_judging import Bench, Grades, compare, grade

COMPARED = "realm"  # with each of the others


@dataclass(frozen=True)
class Sitting:
    """What a judge said. ``calibration`` is None where the profile wants none; ``pairs`` are FastChat's records."""

    judge: str
    calibration: Calibration | None
    grades: dict[str, Grades]
    pairs: list[dict[str, Any]]
    pairs_missing: list[tuple[str, Missing]]


async def sit(
    bench: Bench, questions: Sequence[Question], answers: Mapping[str, Sequence[dict[str, Any]]], config: MTBench
) -> Sitting:
    """All that the profile wants of the judge, in FastChat's files in ``bench.folder``/model_judgment.

    ``answers``: model -> FastChat's records of its answers. What this judge said before of the same words is not asked
    again. Raises EndpointError where nothing comes.
    """
    calibration = None
    if config.calibration:
        most = None if config.calibration is True else config.calibration
        calibration = await calibrate(bench, questions, answers[MODEL], most)
    grades = await grade(bench, questions, answers, config.judge_repeats)
    pairs, lost = await compare(bench, questions, answers, COMPARED) if config.pairwise else ([], [])
    return Sitting(bench.name, calibration, grades, pairs, lost)
