"""MT-Bench: questions, answers, judgments and scores, in FastChat's file formats.

Source of the protocol: FastChat's llm_judge (two turns a question, temperature by category, a judge that
rates each turn from 1 to 10). A judge's rating that cannot be read is counted, never a score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from realm.conversations.conversation import Message
from realm.core.errors import OneLineError
from realm.core.files import atomic_path
from realm.core.metrics import Metrics
from realm.core.secrets import redact
from realm.core.seeds import turn_seed
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT
from realm.evaluation.intervals import bootstrap
from realm.evaluation.kept import Kept
from realm.models import assets
from realm.serving.client import Client, together
from realm.serving.faults import EndpointError
from realm.serving.reply import separate

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
# FastChat's llm_judge/common.py.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
NEEDS_REFERENCE = ("math", "reasoning", "coding")
# FastChat's two patterns: what its prompts ask for, and what judges write instead.
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


class MTBenchError(OneLineError, ValueError):
    """Questions, answers or judgments that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Question:
    id: int
    category: str
    turns: tuple[str, str]


def load_questions(path: Path | None = None) -> list[Question]:
    """The 80 questions of the packaged asset, or of ``path``. Raises MTBenchError for a line that is none."""
    path = path or assets.fetch("mt-bench-questions")
    questions = []
    for number, record in _json_lines(path):
        try:
            first, second = record["turns"]
            questions.append(Question(record["question_id"], record["category"], (first, second)))
        except (KeyError, TypeError, ValueError) as error:
            raise MTBenchError(
                f"{path}: line {number}: no question with question_id, category and two turns"
            ) from error
    return questions


def draw_stratified(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """``count`` questions, the same number from each category, drawn by ``seed`` and put in order of id."""
    rng = np.random.default_rng(seed)
    per_category = count // len(CATEGORIES)
    chosen: list[Question] = []
    for category in CATEGORIES:
        pool = [q for q in questions if q.category == category]
        chosen += [pool[i] for i in rng.permutation(len(pool))[:per_category]]
    return sorted(chosen, key=lambda q: q.id)


class Missing(NamedTuple):
    """A question without an answer, or an answer without a judgment, and why, in the service's words."""

    question_id: int
    reason: str


async def answer(
    client: Client, questions: Sequence[Question], path: Path, model_id: str, seed: int
) -> tuple[list[dict[str, Any]], list[Missing]]:
    """Answers to both turns of each question, in FastChat's format, at ``path``; and what stayed without.

    What was answered before, by the same weights under the same prompt and sampling, is not asked again. Raises
    EndpointError where nobody is answered.
    """
    kept, known = Kept(client, path.parent, path.stem), {}
    bar = tqdm(total=len(questions), desc=f"answers of {model_id}", unit="question")

    async def one(q: Question) -> None:
        said, name, cut = [Message("system", ASSISTANT_SYSTEM_PROMPT)], f"mt-bench-{q.id}", []
        for turn in (0, 1):
            said.append(Message("user", q.turns[turn]))
            came = await kept.complete(
                said, turn_seed(name, turn, seed), conversation=name, temperature=TEMPERATURES[q.category]
            )
            said.append(Message("assistant", came.reply.text.strip()))
            cut.append(came.reply.cut)
        known[q.id] = {
            "question_id": q.id,
            "answer_id": f"{model_id}-{q.id}",
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [m.content for m in said if m.role == "assistant"]}],
            "cut": cut,  # at the limit of tokens, an answer each; not in FastChat's own records
            "tstamp": came.time,
        }
        bar.update()

    with bar:
        missing = await _each(client, {q.id: one(q) for q in questions})
    records = [known[q.id] for q in questions if q.id in known]
    _write_json_lines(path, records)
    return records, missing


async def _each(client: Client, asked: Mapping[Any, Coroutine[Any, Any, None]]) -> list[Missing]:
    """All of them to their ends; those that got no answer, by name, while others did.

    Raises EndpointError where nobody is answered: by a key that is refused, a server that is gone.
    """
    failed: list[tuple[Any, EndpointError]] = []

    async def one(name: Any, request: Coroutine[Any, Any, None]) -> None:
        try:
            await request
        except EndpointError as error:
            if error.stops:
                raise
            failed.append((name, error))

    await together(one(*pair) for pair in asked.items())
    if failed and len(failed) == len(asked):
        raise failed[0][1]
    if any(error.passing for _, error in failed):
        await _require_there(client)  # what came is kept, and the next run asks for the rest
    return sorted(Missing(name, error.reason) for name, error in failed)


async def _require_there(client: Client) -> None:
    try:
        await client.complete([Message("user", "Hello")], 0, max_new_tokens=1)
    except EndpointError as error:
        if error.passing or error.stops:
            raise


def read_answers(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in _json_lines(path)]


async def judge(
    client: Client, questions: Sequence[Question], answers: Sequence[dict[str, Any]], path: Path, seed: int
) -> tuple[list[dict[str, Any]], list[Missing]]:
    """Single-answer grading of both turns with FastChat's prompts; writes FastChat's judgment records.

    What this judge said before of the same answers is not asked again. ``score`` is null where the judge's rating
    could not be read; judgments that did not come are told apart, with their reasons. Raises EndpointError where none
    comes.
    """
    prompts = {r["name"]: r for _, r in _json_lines(assets.fetch("mt-bench-judge-prompts"))}
    references = {
        r["question_id"]: r["choices"][0]["turns"] for _, r in _json_lines(assets.fetch("mt-bench-references"))
    }
    by_id = {a["question_id"]: a for a in answers}
    kept, records = Kept(client, path.parent, path.stem), {}
    asked = [(q, turn) for q in questions if q.id in by_id for turn in (1, 2)]
    bar = tqdm(total=len(asked), desc=f"judging {path.stem}", unit="turn")

    async def one(q: Question, turn: int) -> None:
        name, request = _judge_request(q, by_id[q.id]["choices"][0]["turns"], references.get(q.id), turn, prompts)
        came = await kept.complete(request, turn_seed(f"judge-{q.id}", turn, seed), temperature=0.0)
        records[q.id, turn] = {
            "question_id": q.id,
            "model": by_id[q.id]["model_id"],
            "judge": [client.address.model, name],
            "judgment": came.reply.text,
            "score": read_rating(came.reply.text),
            "turn": turn,
            "tstamp": came.time,
        }
        bar.update()

    with bar:
        missing = await _each(client, {(q.id, turn): one(q, turn) for q, turn in asked})
    judged = [records[key] for key in sorted(records)]
    _write_json_lines(path, judged)
    return judged, [Missing(name[0], reason) for name, reason in missing]


def _judge_request(
    question: Question, answers: list[str], reference: list[str] | None, turn: int, prompts: dict[str, Any]
) -> tuple[str, list[Message]]:
    name = "single-math-v1" if question.category in NEEDS_REFERENCE and reference else "single-v1"
    values = {"question": question.turns[0], "answer": answers[0]}
    if turn == 2:
        name += "-multi-turn"
        values = {
            "question_1": question.turns[0],
            "question_2": question.turns[1],
            "answer_1": answers[0],
            "answer_2": answers[1],
        }
    if "math" in name:
        values |= {"ref_answer_1": reference[0], "ref_answer_2": reference[1]}
    prompt = prompts[name]
    return name, [
        Message("system", prompt["system_prompt"]),
        Message("user", prompt["prompt_template"].format(**values)),
    ]


def read_rating(text: str) -> float | None:
    """The last number between double brackets, or where there is none between single ones, if it is from 1 to 10.

    A judge may quote a rating before it gives its own, and reasoning is no judgment.
    """
    said, _ = separate(text)
    found = next(filter(None, (pattern.findall(said) for pattern in RATINGS)), None)
    score = float(found[-1]) if found else None
    return score if score is not None and 1 <= score <= 10 else None


def scores_table(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean score overall, by turn and by category with n and a 95 % bootstrap interval over questions.

    ``scores``: columns question_id, category, turn, score; rows without a score are left out and show in n.
    """
    scores = scores.dropna(subset=["score"])
    groups = [("overall", scores)]
    groups += [(f"turn {t}", g) for t, g in scores.groupby("turn")]
    groups += [(c, scores[scores.category == c]) for c in CATEGORIES if (scores.category == c).any()]
    return pd.DataFrame([{"group": name, **_mean_over_questions(group, seed)} for name, group in groups])


def _mean_over_questions(group: pd.DataFrame, seed: int) -> dict[str, float]:
    per_question = group.groupby("question_id").score.agg(["sum", "count"])
    mean = lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis)  # noqa: E731
    low, high = bootstrap([per_question["sum"], per_question["count"]], mean, seed)
    return {"score": group.score.mean(), "ci_low": low, "ci_high": high, "n": len(group)}


def judged_metrics(
    metrics: Metrics,
    judged: Sequence[dict[str, Any]],
    missing: Sequence[Missing],
    questions: Sequence[Question],
    model_id: str,
    judge_name: str,
    seed: int,
) -> pd.DataFrame:
    """Add this run's scores, named after the judge, how many ratings could not be read and how many judgments did not
    come; returns the table."""
    metrics.add(f"mt_bench_missing_judgments_{model_id}", len(missing), n=len(judged) + len(missing), unit="judgments")
    category = {q.id: q.category for q in questions}
    scores = pd.DataFrame(judged).assign(category=lambda t: t.question_id.map(category))
    unread = int(scores.score.isna().sum())
    metrics.add(f"mt_bench_unread_ratings_{model_id}", unread, n=len(scores), unit=f"ratings of {judge_name}")
    if unread == len(scores):
        return pd.DataFrame()
    table = scores_table(scores, seed)
    for row in table.itertuples():
        ci = None if row.ci_low != row.ci_low else (row.ci_low, row.ci_high)  # one question has no interval
        metrics.add(
            f"mt_bench_{row.group.replace(' ', '_')}_{model_id}",
            row.score,
            ci=ci,
            n=row.n,
            unit=f"score 1 to 10 by {judge_name}, not comparable with published scores",
        )
    return table.assign(model=model_id, judge=judge_name)


def _json_lines(path: Path) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError as error:
            raise MTBenchError(f"{path}: line {number} is not JSON") from error
    return rows


def _write_json_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        temporary.write_text(redact(text), encoding="utf-8")
