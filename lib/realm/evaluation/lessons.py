"""What came of teaching: perplexities, paired differences and shares of the human gain, as metrics, table and words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from realm.core.metrics import Metrics
from realm.evaluation.intervals import bootstrap
from realm.evaluation.names import metric_names
from realm.evaluation.perplexity import difference_row, perplexity_of, perplexity_row
from realm.evaluation.several import SURE, by_holm
from realm.evaluation.teaching import BASE, EQUAL_TOKENS, HUMANS, REALCHAT, Marks, Student

PARTS = {
    "answers": "teaching_perplexity_{}",
    "first_round": "teaching_perplexity_{}_first_round",
    "later_rounds": "teaching_perplexity_{}_later_rounds",
    "own": "teaching_own_perplexity_{}",
}
MINUS_BASE, MINUS_REALCHAT = "teaching_difference_{}_base", "teaching_difference_{}_realchat"
WAYS = {"": "", EQUAL_TOKENS: f"_{EQUAL_TOKENS}"}  # in which corpora are compared -> what metrics end with

FAIR = {"": "equal conversations", EQUAL_TOKENS: "equal supervised tokens"}


def human_gain_share(
    base: np.ndarray, student: np.ndarray, humans: np.ndarray, tokens: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Of what the student of real humans' turns gained on the base model's perplexity, how much another student gained;
    nll of the same conversations, shape (n,). 1 is as much as real humans."""
    of_base = perplexity_of(base, tokens, axis)
    return (of_base - perplexity_of(student, tokens, axis)) / (of_base - perplexity_of(humans, tokens, axis))


def add_teaching(metrics: Metrics, found: Sequence[Student], marks: Mapping[str, Marks], seed: int) -> list[str]:
    """Add all metrics ``teaching_*`` and ``share_of_human_gain_*``; returns why some were left out, in words."""
    left_out: list[str] = []
    for student in found:
        _add_student(metrics, student, marks[student.name], seed)
        if student.job is not None:
            _add_difference(
                metrics, _name(MINUS_BASE, student), marks[student.name], marks[BASE], "the base model", seed
            )
    for way, end in WAYS.items():
        compared = {s.corpus: marks[s.name] for s in found if s.way == way and s.job is not None}
        if REALCHAT not in compared:
            continue
        for corpus in (c for c in compared if c != REALCHAT):
            name, whom = MINUS_REALCHAT.format(corpus) + end, "RealChat's student"
            _add_difference(metrics, name, compared[corpus], compared[REALCHAT], whom, seed)
        if HUMANS in compared:
            left_out += _add_shares(metrics, marks[BASE], compared, end, seed)
    return left_out


def _name(pattern: str, student: Student) -> str:
    end = WAYS.get(student.way)
    return pattern.format(student.name) if end is None else pattern.format(student.corpus) + end


def _add_student(metrics: Metrics, student: Student, marks: Marks, seed: int) -> None:
    for part, pattern in PARTS.items():
        nll, tokens = _asked(marks, part)
        if len(tokens):
            row = perplexity_row(nll, tokens, seed)
            ci = (row["ci_low"], row["ci_high"])
            metrics.add(_name(pattern, student), row["perplexity"], ci=ci, n=row["n"], unit="perplexity")
    if student.job is not None:
        for what, number in (("supervised_tokens", student.supervised), ("conversations", student.conversations)):
            metrics.add(_name(f"teaching_{what}_{{}}", student), number, unit=what.replace("_", " "))


def _asked(marks: Marks, part: str) -> tuple[np.ndarray, np.ndarray]:
    nll, tokens = marks.of(part)
    return nll[tokens > 0], tokens[tokens > 0]


def _add_difference(metrics: Metrics, name: str, one: Marks, other: Marks, whom: str, seed: int) -> None:
    (nll, tokens), (other_nll, _) = _asked(one, "answers"), _asked(other, "answers")
    gap = difference_row(nll, tokens, other_nll, tokens, seed)
    ci = (gap["difference_low"], gap["difference_high"])
    unit = f"perplexity, minus that of {whom}, paired"
    metrics.add(name, gap["difference"], ci=ci, n=len(tokens), unit=unit)


def _add_shares(metrics: Metrics, base: Marks, compared: Mapping[str, Marks], end: str, seed: int) -> list[str]:
    (of_base, tokens), (of_humans, _) = _asked(base, "answers"), _asked(compared[HUMANS], "answers")
    gain = difference_row(of_base, tokens, of_humans, tokens, seed)
    others = [name for name in compared if name != HUMANS]
    if not gain["difference_low"] > 0:
        interval = f"{gain['difference']:.3f} [{gain['difference_low']:.3f}, {gain['difference_high']:.3f}]"
        names = ", ".join(f"share_of_human_gain_{name}{end}" for name in others)
        return [f"{names}: left out, since the gain of real humans' turns itself cannot be told from zero: {interval}"]
    for name in others:
        sample = [of_base, _asked(compared[name], "answers")[0], of_humans, tokens]
        value, ci = float(human_gain_share(*sample)), bootstrap(sample, human_gain_share, seed)
        unit = "of the gain of real humans' turns, paired"
        metrics.add(f"share_of_human_gain_{name}{end}", value, ci=ci, n=len(tokens), unit=unit)
    return []


def lessons_table(metrics: Metrics, found: Sequence[Student]) -> pd.DataFrame:
    """A row a student, levels for readers: corpus, way, conversations, supervised_tokens, perplexity, ci_low, ci_high,
    n, the other parts, share of the human gain in words."""
    rows = []
    for student in found:
        whole = metrics[_name(PARTS["answers"], student)]
        row: dict[str, Any] = {"corpus": student.corpus, "way": student.way}
        row |= {"conversations": student.conversations, "supervised_tokens": student.supervised}
        row |= {"perplexity": whole.value, "ci_low": whole.ci_low, "ci_high": whole.ci_high, "n": whole.n}
        for part in ("first_round", "later_rounds", "own"):
            row[part] = _value(metrics, _name(PARTS[part], student))
        end = WAYS.get(student.way, f"_{student.way}")
        share = f"share_of_human_gain_{student.corpus}{end}"
        row["share of the human gain"] = str(metrics[share]) if share in metrics else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _value(metrics: Metrics, name: str) -> float | None:
    return metrics[name].value if name in metrics else None


# ---------------------------------------------------------------- compared


def differences_table(metrics: Metrics, found: Sequence[Student]) -> pd.DataFrame:
    """A row a paired comparison of perplexities, for readers and for the figure: one, other (corpora), way,
    conversations (of ``one``), difference (below 0: ``one`` taught better), ci_low, ci_high, n, and p_holm, adjusted
    for all comparisons of the table; without a value where there is no interval."""
    taught = [student for student in found if student.job is not None]
    rows = [_compared(metrics, _name(MINUS_BASE, s), s, s.corpus, BASE) for s in taught]
    for student in taught:
        name = _name(MINUS_REALCHAT, student)
        if student.corpus == HUMANS and name in metrics:
            rows.append(_compared(metrics, name, student, HUMANS, REALCHAT))
        elif name in metrics:  # mirrored, so that better is below 0 wherever RealChat is hoped to be
            rows.append(_compared(metrics, name, student, REALCHAT, student.corpus))
    gaps = {i: (row["difference"], row["ci_low"], row["ci_high"]) for i, row in enumerate(rows)}
    adjusted = by_holm(gaps)
    return pd.DataFrame([{**row, "p_holm": adjusted.get(i, math.nan)} for i, row in enumerate(rows)])


def _compared(metrics: Metrics, name: str, student: Student, one: str, other: str) -> dict[str, Any]:
    metric = metrics[name]
    spread = [math.nan] * 2 if metric.ci_low is None else [metric.ci_low, metric.ci_high]
    numbers = [metric.value, *spread] if one == student.corpus else [-metric.value, -spread[1], -spread[0]]
    difference, low, high = numbers
    row = {"one": one, "other": other, "way": student.way, "conversations": student.conversations}
    return {**row, "difference": difference, "ci_low": low, "ci_high": high, "n": metric.n}


def called(corpus: str) -> str:
    """A corpus, or the base model, in words."""
    return metric_names().told("corpus", corpus)


def compared_table(differences: pd.DataFrame) -> pd.DataFrame:
    """``differences_table`` in words, a row a comparison: fair by, first, second, difference (perplexity of the first
    minus that of the second) with its limits, n, p (Holm), verdict."""
    table = pd.DataFrame(
        {
            "fair by": [FAIR.get(way, f"{way} of RealChat") for way in differences.way],
            "first": differences.one.map(called),
            "second": differences.other.map(called),
        }
    )
    table = table.join(differences[["difference", "ci_low", "ci_high", "n"]])
    return table.assign(**{"p (Holm)": differences.p_holm, "verdict": [*map(_verdict, differences.itertuples())]})


def _verdict(row: tuple) -> str:
    if math.isnan(row.p_holm):
        return "no interval: cannot be told"
    if row.ci_low <= 0 <= row.ci_high:
        return "cannot be told apart"
    if row.p_holm >= SURE:
        return "cannot be told apart among so many comparisons"
    return f"the first is {'better' if row.difference < 0 else 'worse'}"


def share_verdicts(metrics: Metrics) -> Iterator[str]:
    """A sentence a way of being fair, on RealChat's share of the human gain; rendered from the metrics alone."""
    for way, end in WAYS.items():
        share = f"share_of_human_gain_{REALCHAT}{end}"
        if share in metrics:
            yield f"At {FAIR[way]}, of what real humans' turns teach RealChat gives **{metrics[share]}** (1: as much)."
