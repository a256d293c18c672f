"""MT-Bench judged: each turn rated from 1 to 10, or two models' answers compared, with FastChat's prompts.

A judgment that cannot be read is no score: in our tables it is missing, and counted. FastChat's own files say -1 for
it, which its script leaves out of the averages as we do, so our files say -1 too, and ``read_grades`` takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from realm.conversations.conversation import Message
from realm.core.cards import public_name
from realm.core.progress import Bar
from realm.core.seeds import turn_seed
from realm.evaluation.kept import Kept
from realm.evaluation.mt_bench import (
    JUDGMENT_FOLDER,
    NEEDS_REFERENCE,
    Missing,
    MTBenchError,
    Question,
    answers_by_question,
    file_name,
    gather,
    json_lines,
    load_judge_prompts,
    load_references,
    write_json_lines,
)
from realm.serving.client import Client
from realm.serving.reply import separate

KEPT = "judgments"  # where what the judge said is kept, beside FastChat's folder
TURNS = (1, 2)
UNREAD = -1  # FastChat's score where none could be read
# FastChat's two patterns: what its prompts ask for, and what judges write instead.
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
VERDICT = re.compile(r"\[\[([ABC])\]\]")
WINNERS = {"A": "model_1", "B": "model_2", "C": "tie", None: "error"}
SWAPPED = {"model_1": "model_2", "model_2": "model_1"}
Texts = Sequence[str]


class Game(NamedTuple):
    """Two answers before the judge, in one order. ``winner``: model_1 (shown first), model_2, tie, or error."""

    prompt: str
    judgment: str
    winner: str
    time: float


@dataclass(frozen=True)
class Grades:
    """One model's ratings. ``rounds``: FastChat's records of each time that everything was judged, the first of which
    is the score, with null where a rating could not be read; ``missing``: what did not come, likewise."""

    model: str
    rounds: list[list[dict[str, Any]]]
    missing: list[list[Missing]]


class Bench:
    """Who judges, and where its words are kept: what this judge said before of the same words is not asked again.

    ``name``: the judge's; ``folder``: the stage's.
    """

    def __init__(self, client: Client, name: str, folder: Path, seed: int):
        self.client, self.name, self.folder, self.seed = client, public_name(name), folder, seed
        self.prompts, self.references = load_judge_prompts(), load_references()
        self._kept: dict[str, Kept] = {}

    async def rate(self, model: str, q: Question, answers: Texts, turn: int, repeat: int = 0) -> dict[str, Any]:
        """FastChat's record of one rating, its score null where it cannot be read. Raises EndpointError."""
        name, system, prompt = self._asked("single", q, turn, _shown(turn, "answer", answers))
        seed = turn_seed(f"judge-{q.id}", turn, self.seed, repeat)
        came = await self._keeping(model).complete(_messages(system, prompt), seed, temperature=0.0)
        return {
            "question_id": q.id,
            "model": model,
            "judge": [self.name, name],
            "user_prompt": prompt,
            "judgment": came.reply.text,
            "score": read_rating(came.reply.text),
            "turn": turn,
            "tstamp": came.time,
        }

    async def play(
        self, where: str, q: Question, first: Texts, second: Texts, turn: int, *, guided: bool = True
    ) -> Game:
        """One game; ``where`` it is kept. ``guided``: with the reference, if the question needs one. Raises
        EndpointError."""
        shown = _shown(turn, "answer_a", first) | _shown(turn, "answer_b", second)
        _, system, prompt = self._asked("pair", q, turn, shown, guided)
        seed = turn_seed(f"judge-pair-{q.id}", turn, self.seed)
        came = await self._keeping(where).complete(_messages(system, prompt), seed, temperature=0.0)
        return Game(prompt, came.reply.text, WINNERS[read_verdict(came.reply.text)], came.time)

    def prompt_name(self, kind: str, q: Question, turn: int, guided: bool = True) -> str:
        """``kind``: single or pair."""
        plain, math = {"single": ("single-v1", "single-math-v1"), "pair": ("pair-v2", "pair-math-v1")}[kind]
        name = math if guided and q.category in NEEDS_REFERENCE and q.id in self.references else plain
        return f"{name}-multi-turn" if turn == 2 else name

    def _asked(
        self, kind: str, q: Question, turn: int, shown: dict[str, str], guided: bool = True
    ) -> tuple[str, str, str]:
        """(name of the prompt, system message, user message)."""
        name = self.prompt_name(kind, q, turn, guided)
        values = shown | ({"question": q.turns[0]} if turn == 1 else {f"question_{i + 1}": q.turns[i] for i in (0, 1)})
        if "math" in name:
            values |= {f"ref_answer_{i}": text for i, text in enumerate(self.references[q.id], 1)}
        prompt = self.prompts[name]
        return name, prompt["system_prompt"], prompt["prompt_template"].format(**values)

    def _keeping(self, where: str) -> Kept:
        if where not in self._kept:
            self._kept[where] = Kept(self.client, self.folder / KEPT, where)
        return self._kept[where]

    def write(self, kind: str, records: Sequence[dict[str, Any]]) -> None:
        """FastChat's file of ``kind``: ``single``, ``pair``."""
        written = [{**r, "score": UNREAD} if r.get("score", 0) is None else r for r in records]
        write_json_lines(self.folder / JUDGMENT_FOLDER / file_name(self.name, kind), written)


def _shown(turn: int, what: str, answers: Texts) -> dict[str, str]:
    """Answers under the names that FastChat's templates have for them."""
    return {what: answers[0]} if turn == 1 else {f"{what}_{i}": text for i, text in enumerate(answers, 1)}


def _messages(system: str, prompt: str) -> list[Message]:
    return [Message("system", system), Message("user", prompt)]


async def grade(
    bench: Bench, questions: Sequence[Question], answers: Mapping[str, Sequence[dict[str, Any]]], repeats: int = 1
) -> dict[str, Grades]:
    """Both turns of every model's answers rated, ``repeats`` times, each time with another seed at FastChat's
    temperature of 0.

    Writes JUDGE_single.jsonl, and JUDGE_single_again_2.jsonl and so on. Raises EndpointError where nothing comes.
    """
    said = {model: answers_by_question(records) for model, records in answers.items()}
    names = [
        (model, repeat, q.id, turn)
        for repeat in range(repeats)
        for model in said
        for q in questions
        if q.id in said[model]
        for turn in TURNS
    ]
    by_id, records = {q.id: q for q in questions}, {}
    bar = Bar(total=len(names), desc=f"ratings by {bench.name}", unit="turns")

    async def one(model: str, repeat: int, number: int, turn: int) -> None:
        rated = await bench.rate(model, by_id[number], said[model][number], turn, repeat)
        records[model, repeat, number, turn] = rated
        bar.update()

    with bar:
        failed = await gather(bench.client, {name: one(*name) for name in names})
    rounds = {
        m: [[records[n] for n in names if n[:2] == (m, r) and n in records] for r in range(repeats)] for m in said
    }
    missing = {
        m: [[Missing(name[2], why) for name, why in failed if name[:2] == (m, r)] for r in range(repeats)] for m in said
    }
    for r in range(repeats):
        bench.write("single" if r == 0 else f"single_again_{r + 1}", [x for m in said for x in rounds[m][r]])
    return {m: Grades(m, rounds[m], missing[m]) for m in said}


async def compare(
    bench: Bench, questions: Sequence[Question], answers: Mapping[str, Sequence[dict[str, Any]]], one: str
) -> tuple[list[dict[str, Any]], list[tuple[str, Missing]]]:
    """Model ``one`` against every other, both turns, in both orders: FastChat's records, ``one`` as model_1, written
    to JUDGE_pair.jsonl; and what did not come, by the other's name. Raises EndpointError where nothing comes."""
    said = {model: answers_by_question(records) for model, records in answers.items()}
    names = [
        (other, q.id, turn)
        for other in said
        if other != one
        for q in questions
        if q.id in said[one] and q.id in said[other]
        for turn in TURNS
    ]
    by_id, records = {q.id: q for q in questions}, {}
    bar = Bar(total=len(names), desc=f"{one} compared by {bench.name}", unit="turns")

    async def pair(other: str, number: int, turn: int) -> None:
        q, mine, theirs = by_id[number], said[one][number], said[other][number]
        where = f"pair.{one}.{other}"
        # One after the other: of two equal answers both games are the same words, which are asked once.
        there = await bench.play(where, q, mine, theirs, turn)
        back = await bench.play(where, q, theirs, mine, turn)
        records[other, number, turn] = {
            "question_id": number,
            "model_1": one,
            "model_2": other,
            "g1_winner": there.winner,
            "g2_winner": SWAPPED.get(back.winner, back.winner),
            "judge": [bench.name, bench.prompt_name("pair", q, turn)],
            "g1_user_prompt": there.prompt,
            "g1_judgment": there.judgment,
            "g2_user_prompt": back.prompt,
            "g2_judgment": back.judgment,
            "turn": turn,
            "tstamp": back.time,
        }
        bar.update()

    with bar:
        failed = await gather(bench.client, {name: pair(*name) for name in names})
    played = [records[name] for name in names if name in records]
    bench.write("pair", played)
    return played, [(name[0], Missing(name[1], why)) for name, why in failed]


def read_rating(text: str) -> float | None:
    """The last number between double brackets, or where there is none between single ones, if it is from 1 to 10.

    A judge may quote a rating before it gives its own, and reasoning is no judgment.
    """
    said, _ = separate(text)
    found = next(filter(None, (pattern.findall(said) for pattern in RATINGS)), None)
    score = float(found[-1]) if found else None
    return score if score is not None and 1 <= score <= 10 else None


def read_verdict(text: str) -> str | None:
    """``A``, ``B``, or ``C`` for a tie: the last between double brackets, since a judge may quote one before."""
    found = VERDICT.findall(separate(text)[0])
    return found[-1] if found else None


def read_grades(path: Path) -> list[dict[str, Any]]:
    """FastChat's file of ratings, a score of -1 read as null. Raises MTBenchError for a line that is no rating."""
    records = []
    for number, record in json_lines(path):
        try:
            score = record["score"]
            readable = score is None or score == UNREAD or 1 <= score <= 10
            kept = {k: record[k] for k in ("question_id", "model", "turn")}
        except (KeyError, TypeError) as error:
            raise MTBenchError(f"{path}: line {number}: no rating with question_id, model, turn and score") from error
        if not readable:
            raise MTBenchError(f"{path}: line {number}: score is {score}; allowed: 1 to 10, or -1 where none was read")
        records.append({**record, **kept, "score": None if score in (None, UNREAD) else float(score)})
    return records
