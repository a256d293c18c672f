"""What the judgments come to: means with intervals over questions, the judge's own noise, bounds, and win rates.

``python -m realm.evaluation.mt_bench_scores FILE.jsonl`` prints them of any file in FastChat's format.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from realm.core.errors import exit_code
from realm.core.metrics import Metrics
from realm.evaluation.intervals import bootstrap
from realm.evaluation.mt_bench import CATEGORIES, Missing, MTBenchError, Question, load_questions, read_records
from realm.evaluation.mt_bench_judging import SWAPPED, Grades, read_grades

LOWEST, HIGHEST = 1.0, 10.0
WITHIN = 1.96  # standard deviations of a 95 % interval


def scores_table(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean score overall, by turn and by category with n and a 95 % bootstrap interval over questions.

    ``scores``: columns question_id, category, turn, score; rows without a score are left out and show in n.
    """
    groups = _groups(scores.dropna(subset=["score"]))
    return pd.DataFrame([{"group": name, **_mean_over_questions(group, seed)} for name, group in groups])


def _groups(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    found = [("overall", scores)]
    found += [(f"turn {t}", g) for t, g in scores.groupby("turn")]
    return found + [(c, scores[scores.category == c]) for c in CATEGORIES if (scores.category == c).any()]


def _mean_over_questions(group: pd.DataFrame, seed: int) -> dict[str, float]:
    per_question = group.groupby("question_id").score.agg(["sum", "count"])
    mean = lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis)  # noqa: E731
    low, high = bootstrap([per_question["sum"], per_question["count"]], mean, seed)
    return {"score": group.score.mean(), "ci_low": low, "ci_high": high, "n": len(group)}


def as_scores(records: Sequence[dict[str, Any]], questions: Sequence[Question]) -> pd.DataFrame:
    """question_id, category, turn, score of FastChat's ratings; categories by question, empty for one not known."""
    category = {q.id: q.category for q in questions}
    table = pd.DataFrame(records, columns=["question_id", "turn", "score"]).astype({"score": float})
    return table.assign(category=table.question_id.map(category))


def noise_table(rounds: Sequence[Sequence[dict[str, Any]]], questions: Sequence[Question], seed: int) -> pd.DataFrame:
    """How far the mean of a group moves from one judging to the next, answers and questions being the same.

    ``rounds``: the records of each judging. Columns group, noise (standard deviation of the mean, from the variance
    between ratings of the same answer), its 95 % bootstrap interval over questions, n (answers rated twice or more).
    Empty where nothing was.
    """
    joined = pd.concat([as_scores(r, questions) for r in rounds]).dropna(subset=["score"])
    keys = ["question_id", "category", "turn"]
    spread = joined.groupby(keys).score.agg(["var", "count"]).reset_index()
    spread = spread[spread["count"] > 1].rename(columns={"var": "score"})
    rows = []
    for name, group in _groups(spread) if len(spread) else ():
        per_question = group.groupby("question_id").score.agg(["sum", "count"])
        size = len(group)
        noise = lambda total, count, axis=-1, n=size: np.sqrt(total.sum(axis) / count.sum(axis) / n)  # noqa: E731
        low, high = bootstrap([per_question["sum"], per_question["count"]], noise, seed)
        rows.append({"group": name, "noise": math.sqrt(group.score.mean() / size), "low": low, "high": high, "n": size})
    return pd.DataFrame(rows, columns=["group", "noise", "low", "high", "n"])


def add_scores(
    metrics: Metrics,
    grades: Grades,
    questions: Sequence[Question],
    judge: str,
    seed: int,
) -> pd.DataFrame:
    """Add a model's scores, named after the judge, what is missing of them, and their bounds; returns the table.

    The table has a row a group: score, interval over questions, n, and where all was judged more than once, the
    interval of the judge's own noise around the score.
    """
    model, first, lost = grades.model, grades.rounds[0], grades.missing[0]
    metrics.add(f"mt_bench_missing_judgments_{model}", len(lost), n=len(first) + len(lost), unit="judgments")
    scores = as_scores(first, questions)
    unread = int(scores.score.isna().sum())
    metrics.add(f"mt_bench_unread_ratings_{model}", unread, n=len(first), unit=f"ratings of {judge}")
    _add_bounds(metrics, model, scores.score.dropna(), 2 * len(questions), judge)
    if unread == len(first):
        return pd.DataFrame()
    table, noise = scores_table(scores, seed), noise_table(grades.rounds, questions, seed).set_index("group")
    for row in table.itertuples():
        metrics.add(
            f"mt_bench_{row.group.replace(' ', '_')}_{model}",
            row.score,
            ci=_limits(row.ci_low, row.ci_high),
            n=row.n,
            unit=f"score 1 to 10 by {judge}, not comparable with published scores",
        )
    if len(noise):
        overall = noise.loc["overall"]
        metrics.add(
            f"mt_bench_judge_noise_{model}",
            overall.noise,
            ci=_limits(overall.low, overall.high),
            n=int(overall.n),
            unit=f"standard deviation of the overall score from one judging by {judge} to the next",
        )
        moves = WITHIN * table.group.map(noise.noise)
        table = table.assign(noise_low=table.score - moves, noise_high=table.score + moves)
    return table.assign(model=model, judge=judge)


def _limits(low: float, high: float) -> tuple[float, float] | None:
    return None if low != low else (low, high)  # one question has no interval


def _add_bounds(metrics: Metrics, model: str, scores: pd.Series, whole: int, judge: str) -> None:
    """The overall score if every turn that has none had the lowest rating, or the highest."""
    for name, each in (("lowest", LOWEST), ("highest", HIGHEST)):
        value = float(scores.sum() + each * (whole - len(scores))) / whole
        missing = f"the {whole - len(scores)} of {whole} turns without a score counted as {each:g}"
        metrics.add(f"mt_bench_{name}_{model}", value, n=whole, unit=f"score by {judge}, {missing}")


def bounds_rows(metrics: Metrics, models: Iterable[str]) -> list[dict[str, Any]]:
    """A row a model: turns in all, turns with a score, the score, and what it could be with the others."""
    rows = []
    for m in models:
        lowest, highest = metrics[f"mt_bench_lowest_{m}"], metrics[f"mt_bench_highest_{m}"]
        scored, mean = 0, None
        if f"mt_bench_overall_{m}" in metrics:
            score = metrics[f"mt_bench_overall_{m}"]
            scored, mean = score.n, score.value
        rows.append(
            {
                "model": m,
                "turns": lowest.n,
                "scored": scored,
                "score": mean,
                "lowest": lowest.value,
                "highest": highest.value,
            }
        )
    return rows


def reasons_table(grades: Iterable[Grades], unanswered: dict[str, Sequence[Missing]]) -> pd.DataFrame:
    """model, reason, turns: why turns have no score."""
    rows = []
    for g in grades:
        why = Counter({f"no answer: {m.reason}": 0 for m in unanswered[g.model]})
        for m in unanswered[g.model]:
            why[f"no answer: {m.reason}"] += 2
        why.update(f"no judgment: {m.reason}" for m in g.missing[0])
        why.update("the rating cannot be read" for r in g.rounds[0] if r["score"] is None)
        rows += [{"model": g.model, "reason": reason, "turns": count} for reason, count in why.items()]
    return pd.DataFrame(rows, columns=["model", "reason", "turns"])


# ---------------------------------------------------------------- pairs


def outcome(record: dict[str, Any]) -> str | None:
    """FastChat's rule for a pair of games: win of model_1, loss, or a tie where both orders do not agree; None where
    one could not be read."""
    there, back = record["g1_winner"], record["g2_winner"]
    if "error" in (there, back):
        return None
    if there == "tie" or there != back:
        return "tie"
    return "win" if there == "model_1" else "loss"


def wins_table(records: Sequence[dict[str, Any]], seed: int) -> pd.DataFrame:
    """A row a pair of models: model_1, model_2, n, and the shares of turns won, lost and tied, and won where a tie
    counts half, each with its 95 % bootstrap interval over questions (NAME_low, NAME_high). Unread pairs are left out.
    """
    table = pd.DataFrame(
        [{**{k: r[k] for k in ("question_id", "model_1", "model_2")}, "outcome": outcome(r)} for r in records],
        columns=["question_id", "model_1", "model_2", "outcome"],
    ).dropna(subset=["outcome"])
    rows = []
    for (one, other), group in table.groupby(["model_1", "model_2"], sort=False):
        row: dict[str, Any] = {"model_1": one, "model_2": other, "n": len(group)}
        counted = {f"{name}_rate": (group.outcome == name).astype(float) for name in ("win", "loss", "tie")}
        counted["win_rate_adjusted"] = counted["win_rate"] + 0.5 * counted["tie_rate"]
        for name, values in counted.items():
            mean = _mean_over_questions(pd.DataFrame({"question_id": group.question_id, "score": values}), seed)
            row |= {name: mean["score"], f"{name}_low": mean["ci_low"], f"{name}_high": mean["ci_high"]}
        rows.append(row)
    return pd.DataFrame(rows)


def add_wins(
    metrics: Metrics, records: Sequence[dict[str, Any]], missing: Sequence[tuple[str, Missing]], judge: str, seed: int
) -> pd.DataFrame:
    """Add win, tie and loss rates of each pair, what could not be read and what did not come; returns the table."""
    for one, other in dict.fromkeys((r["model_1"], r["model_2"]) for r in records):
        played = [r for r in records if (r["model_1"], r["model_2"]) == (one, other)]
        unread, lost = sum(outcome(r) is None for r in played), sum(name == other for name, _ in missing)
        metrics.add(f"mt_bench_unread_pairs_{one}_{other}", unread, n=len(played), unit=f"pairs of games by {judge}")
        metrics.add(f"mt_bench_missing_pairs_{one}_{other}", lost, n=len(played) + lost, unit="pairs of games")
    table = wins_table(records, seed)
    meaning = {
        "win_rate": "won in both orders",
        "tie_rate": "neither won in both orders",
        "loss_rate": "lost in both orders",
        "win_rate_adjusted": "won, a tie counting half: 0.5 is even",
    }
    for row in table.itertuples():
        for name, means in meaning.items():
            metrics.add(
                f"mt_bench_{name}_{row.model_1}_{row.model_2}",
                getattr(row, name),
                ci=_limits(getattr(row, f"{name}_low"), getattr(row, f"{name}_high")),
                n=row.n,
                unit=f"share of turns {means}; {judge}",
            )
    return table


# ---------------------------------------------------------------- of any file


def show_results(path: Path, seed: int) -> str:
    """FastChat's averages of a file of ratings or of pairs, with intervals. Raises MTBenchError for another file."""
    records = read_records(path)
    if not records:
        raise MTBenchError(f"{path}: holds no judgment; give a file that FastChat or notebook 05 wrote")
    if all("g1_winner" in r for r in records):
        return _winners(path, records, seed)
    questions, graded = load_questions(), read_grades(path)
    rows = []
    for model, some in pd.DataFrame(graded).groupby("model"):
        table = scores_table(as_scores(some.to_dict("records"), questions), seed)
        rows.append(table.assign(model=model, unread=int(some.score.isna().sum())))
    whole = pd.concat(rows)
    return whole[["model", "group", "score", "ci_low", "ci_high", "n", "unread"]].to_string(index=False)


def _winners(path: Path, records: Sequence[dict[str, Any]], seed: int) -> str:
    allowed = {*SWAPPED, "tie", "error"}
    for number, record in enumerate(records, 1):
        fields = ("question_id", "model_1", "model_2", "g2_winner")
        if any(k not in record for k in fields) or not {record["g1_winner"], record["g2_winner"]} <= allowed:
            raise MTBenchError(
                f"{path}: judgment {number}: no pair with {', '.join(fields)}; winners are {', '.join(sorted(allowed))}"
            )
    return wins_table(records, seed).to_string(index=False)


def main() -> int:
    """Print the averages of one file; one line and exit code 1 where it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m realm.evaluation.mt_bench_scores", description=show_results.__doc__
    )
    parser.add_argument("file", type=Path, help="JUDGE_single.jsonl or JUDGE_pair.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    given = parser.parse_args()
    return exit_code(lambda: print(show_results(given.file, given.seed)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
