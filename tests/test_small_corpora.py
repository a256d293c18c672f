"""Small, odd and empty files of a user's own through the code of all six notebooks, on the tiny model.

Each notebook ends, or stops with one line that says what is too few, how many there are, and which key to change.
Cells run in this process: a kernel for each would take a quarter of an hour.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import random
import re

import pytest
import yaml
from stub_server import StubServer
from tiny_model import write_tiny_model

from realm.core.errors import OneLineError
from realm.core.files import REPOSITORY
from realm.core.profile import profile_path
from realm.pipeline.stages import STAGES

VOCABULARY = """
the a my your that small large old new green river garden kitchen window engine letter market teacher student
question answer story winter morning water paper bridge number table music recipe journey city island report
write explain describe compare list find build change open close help give take make show tell read plan
how why what when where which please could would should can with without about after before under between and or
"""
KEY = re.compile(
    r"\b(dialogue|data_inspection|usergpt_sft|simulation|realm_sft|mt_bench|simulator_realism|teaching)\.[a-z_]+"
)
NOTHING_LEFT = ("all foreign", "answers only")
ENOUGH = ("three hundred",)
GERMAN = "Ich möchte gerne wissen, wie man im Winter einen alten Birnbaum richtig schneidet, Nummer {}. Danke schön!"


def sentence(chance: random.Random, words: int = 14) -> str:
    return " ".join(chance.choices(VOCABULARY.split(), k=words)).capitalize() + "."


def talk(number: int, rounds: int = 3, words: int = 14) -> list[tuple[str, str]]:
    chance = random.Random(number)
    return [(role, sentence(chance, words)) for _ in range(rounds) for role in ("human", "gpt")]


def record(identifier: str, turns: list[tuple[str, str]]) -> dict:
    return {"id": identifier, "conversations": [{"from": who, "value": text} for who, text in turns]}


def talks(count: int, **shape) -> list[dict]:
    return [record(f"talk{i}x", talk(i, **shape)) for i in range(count)]


CORPORA = {
    "one conversation": talks(1),
    "two": talks(2),
    "twenty": talks(20),
    "three hundred": talks(300),
    "one round only": talks(60, rounds=1),
    "all foreign": [record(f"g{i}", [(w, GERMAN.format(i)) for w, _ in talk(i)]) for i in range(40)],
    "all over-long": talks(40, words=900),
    "numbered ids": [record(f"conv_{i}", talk(i)) for i in range(60)],
    "repeated ids": [record("same", talk(i)) for i in range(40)],
    "system turns first": [record(f"s{i}x", [("system", "Be brief."), *talk(i)]) for i in range(60)],
    "answers first": [record(f"a{i}x", talk(i)[1:]) for i in range(40)],
    "no answers": [record(f"h{i}x", talk(i)[:1]) for i in range(40)],
    "answers only": [record(f"o{i}x", talk(i)[1:2]) for i in range(40)],
    "all the same": [record(f"d{i}x", talk(0)) for i in range(40)],
    "signs only": [record(f"p{i}x", [(w, f"{i} + {i} = ?") for w, _ in talk(i)]) for i in range(40)],
}


def profile_of(source: str, model: str, urls: tuple[str, str], taught: bool) -> dict:
    """Profile smoke's values, with the tiny model, stub servers, and counts that a small file can meet; ``taught``:
    with the corpora beside RealChat, and the students that learn from them."""
    values = yaml.safe_load(profile_path("smoke").read_text(encoding="utf-8"))
    user, responder = (
        {"engine": "api", "base_url": url, "model": "stub", "max_new_tokens": 16, "context_length": 512} for url in urls
    )
    values["data_inspection"] |= {"source": source, "max_conversations": None}
    for block in ("usergpt_sft", "realm_sft"):
        values[block] |= {"base_model": model, "max_train_tokens": 1000, "test_conversations": 4, "method": "lora"}
    values["simulation"] |= {"user": user, "responder": responder, "free": 1, "seeded": 0}
    if taught:
        values["simulation"]["beside"]["roleplay"]["user"] = user
    else:
        values["simulation"]["beside"], values["teaching"] = {}, None
    values["mt_bench"] |= {"base": responder, "realm": responder}
    asked = dict.fromkeys(("usergpt", "base", "roleplay", "responder"), user)
    values["simulator_realism"] |= {**asked, "permutations": 1, "repeats": 1}
    return values


def run_cells(notebook: str, **parameters: object) -> None:
    """The code cells of a notebook in order, with the parameters set after the first."""
    cells = json.loads((REPOSITORY / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict[str, object] = {}

    async def run() -> None:
        for i, source in enumerate(code):
            compiled = compile(source, f"{notebook}, cell {i}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)
            if inspect.isawaitable(result):
                await result
            if i == 0:
                names.update(parameters)

    asyncio.run(run())


def through_all(folder, model, records, taught) -> dict[str, str]:
    """Stage number -> "" where the notebook ended, else the line it stopped with. Later ones are not tried."""
    source = folder / "mine.json"
    source.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    found: dict[str, str] = {}
    with StubServer() as user, StubServer() as responder:
        profile = folder / "mine.yaml"
        values = profile_of(str(source), str(model), (user.url, responder.url), taught)
        profile.write_text(yaml.safe_dump(values), encoding="utf-8")
        for stage in STAGES:
            try:
                run_cells(stage.notebook, PROFILE=str(profile), RUN_DIR=str(folder / "run"))
                found[stage.number] = ""
            except OneLineError as error:
                found[stage.number] = f"{type(error).__name__}: {error}"
                break
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", CORPORA)
def test_each_notebook_ends_or_says_in_one_line_what_is_too_few(name, tmp_path, model):
    found = through_all(tmp_path, model, CORPORA[name], taught=name in ENOUGH)
    for stopped in filter(None, found.values()):
        assert stopped.startswith("TooFewError: ") and "\n" not in stopped, (name, stopped)
        assert re.search(r"\d", stopped) and KEY.search(stopped), (name, stopped)
    assert (found["01"] == "") == (name not in NOTHING_LEFT), found
    assert (len(found), found.get("06")) == (6, "") or name not in ENOUGH, found
