"""Stage 05 as its notebook holds it, against a stub server: answering, judging, and stub judges with one fault each."""

import asyncio
import hashlib
import re

from realm.core.profile import MTBench
from realm.evaluation.mt_bench_answers import answer
from realm.evaluation.mt_bench_judging import Bench
from realm.serving.client import Address, Client

SEED = 7


def with_client(server, call, **values):
    async def inside():
        client = Client(Address(server.url, "stub"), server.endpoint(**values), "realm")
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(inside())


def answer_some(server, questions, folder, model="realm", **values):
    return with_client(server, lambda client: answer(client, questions, folder, model, SEED), **values)


def answer_all(server, questions, folder, model="realm", **values):
    records, missing = answer_some(server, questions, folder, model, **values)
    assert missing == []
    return records


def at_the_bench(server, folder, call, name="stub", **values):
    """What ``call`` comes to, given a bench whose judge is the stub."""
    return with_client(server, lambda client: call(Bench(client, name, folder, SEED)), **values)


def made_up(questions, model, words=lambda q, turn: f"answer {turn} to {q.id}"):
    """Answers in FastChat's format that nobody gave."""
    return [
        {
            "question_id": q.id,
            "answer_id": f"{model}-{q.id}",
            "model_id": model,
            "choices": [{"index": 0, "turns": [f"{model}: {words(q, turn)}" for turn in (1, 2)]}],
            "tstamp": 1.0,
        }
        for q in questions
    ]


def config(**values):
    """The profile's block; only what a sitting reads matters."""
    endpoint = {"engine": "api", "model": "stub", "base_url": "http://127.0.0.1:1/v1", "max_new_tokens": 8}
    return MTBench.model_validate({"questions": 80, "base": endpoint, "realm": endpoint, "judge": endpoint, **values})


# ---------------------------------------------------------------- what a judge is shown

BETWEEN = re.compile(r"\[The Start of Assistant (?P<who>[AB])'s Answer\]\n(.*?)\n\[The End of Assistant", re.DOTALL)
AFTER = re.compile(r"### Assistant (?P<who>[AB]):\n(.*?)(?=\n\n###|\n\n<\|The End)", re.DOTALL)


def is_pair(body):
    return "[[A]]" in body["messages"][0]["content"]


def shown(body):
    """{"A": last answer of the first assistant, "B": …} of a request that compares two."""
    text = body["messages"][1]["content"]
    return dict((BETWEEN if "[User Question]" in text else AFTER).findall(text))


def longer(texts):
    """The verdict of a judge that likes the longer answer."""
    a, b = len(texts["A"]), len(texts["B"])
    return "C" if a == b else "A" if a > b else "B"


def hashed(body, salt=""):
    """In [0, 1), of what is asked and not of the seed."""
    said = "".join(m["content"] for m in body["messages"]) + salt
    return int(hashlib.sha256(said.encode()).hexdigest()[:8], 16) / 16**8
