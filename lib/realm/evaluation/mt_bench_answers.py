"""MT-Bench answered: both turns of each question, at the temperature of its category, in FastChat's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realm.conversations.conversation import Message
from realm.core.progress import Bar
from realm.core.seeds import turn_seed
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT
from realm.evaluation.kept import Kept
from realm.evaluation.mt_bench import ANSWER_FOLDER, TEMPERATURES, Missing, Question, gather, write_json_lines
from realm.serving.client import Client

KEPT = "answers"  # where what was said is kept, beside FastChat's folder


async def answer(
    client: Client, questions: Sequence[Question], folder: Path, model_id: str, seed: int
) -> tuple[list[dict[str, Any]], list[Missing]]:
    """Answers to both turns of each question, in ``folder``/model_answer/NAME.jsonl; and what stayed without.

    What was answered before, by the same weights under the same prompt and sampling, is not asked again. Raises
    EndpointError where nobody is answered.
    """
    kept, known = Kept(client, folder / KEPT, model_id), {}
    bar = Bar(total=len(questions), desc=f"answers of {model_id}", unit="questions")

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
        failed = await gather(client, {q.id: one(q) for q in questions})
    records = [known[q.id] for q in questions if q.id in known]
    write_json_lines(folder / ANSWER_FOLDER / f"{model_id}.jsonl", records)
    return records, [Missing(*pair) for pair in failed]
