"""What came of teaching: perplexities, paired differences and shares of the human gain, as metrics, table and words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from realm.core.metrics import Metric, Metrics
from realm.evaluation.intervals import bootstrap
from realm.evaluation.perplexity import difference_row, perplexity_of, perplexity_row
from realm.evaluation.teaching import BASE, EQUAL_TOKENS, HUMANS, REALCHAT, Marks, Student

PARTS = {
    "answers": "teaching_perplexity_{}",
    "first_round": "teaching_perplexity_{}_first_round",
    "later_rounds": "teaching_perplexity_{}_later_rounds",
    "own": "teaching_own_perplexity_{}",
}
WAYS = {"": "", EQUAL_TOKENS: f"_{EQUAL_TOKENS}"}  # in which corpora are compared -> what metrics end with


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
    for way, end in WAYS.items():
        compared = {s.corpus: marks[s.name] for s in found if s.way == way and s.job is not None}
        if REALCHAT not in compared:
            continue
        base = marks[BASE]
        for corpus, one in {**({BASE: base} if not way else {}), **compared}.items():
            if corpus != REALCHAT:
                _add_difference(metrics, f"{corpus}_realchat{end}", one, compared[REALCHAT], seed)
        if HUMANS in compared:
            left_out += _add_shares(metrics, base, compared, end, seed)
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


def _add_difference(metrics: Metrics, name: str, one: Marks, other: Marks, seed: int) -> None:
    (nll, tokens), (other_nll, _) = _asked(one, "answers"), _asked(other, "answers")
    gap = difference_row(nll, tokens, other_nll, tokens, seed)
    ci = (gap["difference_low"], gap["difference_high"])
    unit = "perplexity, minus that of RealChat's student, paired"
    metrics.add(f"teaching_difference_{name}", gap["difference"], ci=ci, n=len(tokens), unit=unit)


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
    """A row a student, for readers and for the figure: corpus, way, conversations, supervised_tokens, perplexity,
    ci_low, ci_high, n, the other parts, difference to RealChat's student and share of the human gain in words."""
    rows = []
    for student in found:
        whole = metrics[_name(PARTS["answers"], student)]
        row: dict[str, Any] = {"corpus": student.corpus, "way": student.way}
        row |= {"conversations": student.conversations, "supervised_tokens": student.supervised}
        row |= {"perplexity": whole.value, "ci_low": whole.ci_low, "ci_high": whole.ci_high, "n": whole.n}
        for part in ("first_round", "later_rounds", "own"):
            row[part] = _value(metrics, _name(PARTS[part], student))
        end = WAYS.get(student.way, f"_{student.way}")
        row["minus RealChat's"] = _words(metrics, f"teaching_difference_{student.corpus}_realchat{end}")
        row["share of the human gain"] = _words(metrics, f"share_of_human_gain_{student.corpus}{end}")
        rows.append(row)
    return pd.DataFrame(rows)


def _value(metrics: Metrics, name: str) -> float | None:
    return metrics[name].value if name in metrics else None


def _words(metrics: Metrics, name: str) -> str:
    return str(metrics[name]) if name in metrics else ""


def verdicts(metrics: Metrics, found: Sequence[Student]) -> Iterator[str]:
    """A sentence a comparison, of what can be told apart and what cannot; rendered from the metrics alone."""
    for way, end in WAYS.items():
        words = "equal supervised tokens" if way else "equal numbers of conversations"
        for corpus in [s.corpus for s in found if s.way == way and s.corpus != REALCHAT]:
            name = f"teaching_difference_{corpus}_realchat{end}"
            if name in metrics:
                yield f"At {words}: {_told(corpus, metrics[name])}"
        share = f"share_of_human_gain_{REALCHAT}{end}"
        if share in metrics:
            yield f"At {words}, of what real humans' turns teach RealChat gives **{metrics[share]}** (1: as much)."


def _told(corpus: str, gap: Metric) -> str:
    who = "the untrained base model" if corpus == BASE else f"the student of `{corpus}`"
    if gap.ci_low is None or gap.ci_low <= 0 <= gap.ci_high:
        verdict = "**cannot be told apart** from RealChat's"
    else:
        verdict = "is **worse** than RealChat's" if gap.value > 0 else "is **better** than RealChat's"
    return f"{who} {verdict}, {gap} in perplexity on {gap.n} conversations."
