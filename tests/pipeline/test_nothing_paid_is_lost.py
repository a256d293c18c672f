"""The property: whatever is changed, requests asked again are those whose words could differ, and nothing is gone.

Every key of the profile, and every module that notebooks 03 and 05 import, is changed after a finished and after a
half-finished run. Stub servers count; the stage is opened, held and finished as its notebook does.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import byte_level_tokenizer
from simulation_stage import SEEDS
from stub_server import BAD_KEY, StubServer, echo_digest

from realm.conversations.conversation import Message
from realm.conversations.writers import write_conversations
from realm.core.profile import Endpoint, load_profile
from realm.dialogue import encoder
from realm.evaluation import mt_bench
from realm.evaluation.mt_bench import Question
from realm.evaluation.mt_bench_answers import answer
from realm.pipeline import identity, marks
from realm.pipeline.identity import code_behind
from realm.pipeline.stages import STAGES, open_run, stage_by_number
from realm.serving import local
from realm.serving.client import Address, EndpointError
from realm.serving.words import endpoint_words
from realm.simulation.endings import SimulationError
from realm.simulation.run import simulate

FREE, SEEDED, ROUNDS = 2, 1, 2
SIMULATED = FREE * 2 * ROUNDS + SEEDED * 2 * (ROUNDS - 1)  # requests of RealChat
BESIDE = 2 * ROUNDS  # of the corpus beside it, one free conversation
QUESTIONS = [Question(i, c, (f"First {i}?", f"Second {i}?")) for i, c in enumerate(mt_bench.CATEGORIES[:2], 1)]
ANSWERED = 4 * len(QUESTIONS)  # of stage 05: two answerers, two turns
HALF = 3  # answers of one stub after which a half-finished run is stopped


HASHES = {s.path: code_behind(s.path) for s in STAGES}
STATES = ("finished", "half-finished")
NUMBERS = ("03", "05")
RECORDS = (
    marks.BEGUN,
    marks.DONE,
    "manifest.json",
)  # of a run, dated: a run by hand of a stage that is done renews them


@pytest.fixture(scope="module")
def servers_():
    """Two stubs that live as long as the module, since an address is part of who answers, and a third elsewhere, which
    says other words and asks in the corpus beside RealChat: no two corpora hold the same."""
    with StubServer() as user, StubServer() as responder, StubServer(lambda b: f"other {echo_digest(b)}") as third:
        yield user, responder, third


@pytest.fixture(scope="module")
def small():
    """No model is loaded, and what is local is served by a stub."""
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = byte_level_tokenizer()
        patch.setattr(encoder, "load_tokenizer", lambda name: tokenizer)
        yield patch


def beside(user):
    """A corpus of another asker, who is told apart from RealChat's by more than the way of asking."""
    own = {"seed_source": None, "free": 1, "seeded": 0, "max_rounds": None}
    return {"plain": {"simulator": "roleplay", "user": {**copy.deepcopy(user), "temperature": 0.3}, **own}}


class Place:
    """A run folder with data and trained models, the profile's values, the code's hashes, and what was asked."""

    def __init__(self, folder, servers, patch):
        self.folder, self.run, self.servers = folder, folder / "runs" / "mine", servers
        self.hashes = {path: dict(found) for path, found in HASHES.items()}
        patch.setattr(identity, "code_behind", lambda notebook: self.hashes[notebook])
        patch.setattr(local, "reach", self.reached)
        for server in servers:
            server.script.clear()
        self.asked()

    def made(self):
        (self.run / "01_data").mkdir(parents=True)
        for side in ("train", "seeds", "test"):
            write_conversations(self.run / "01_data" / f"{side}.jsonl", SEEDS)
        for folder in ("02_usergpt_sft", "04_realm_sft"):
            (self.run / folder / "merged").mkdir(parents=True)
            (self.run / folder / "merged" / "model.safetensors").write_bytes(b"weights")
            (self.run / folder / "base_model.txt").write_text("smollm2-135m")
        other = replace(SEEDS[0], messages=(Message("user", "Another question?"), Message("assistant", "Yes.")))
        write_conversations(self.folder / "other_seeds.jsonl", [other])
        return self

    @contextlib.contextmanager
    def reached(self, endpoint, role, *_, **__):
        side = self.servers[role in ("responder", "realm")].url
        yield Address(endpoint.base_url or side, endpoint.model)

    def values(self):
        values = load_profile("smoke").model_dump(mode="json")
        user, responder = (s.endpoint(context_length=4096).model_dump(mode="json") for s in self.servers[:2])
        values["simulation"] |= {"user": user, "responder": responder, "free": FREE, "seeded": SEEDED}
        values["simulation"] |= {"max_rounds": ROUNDS, "beside": beside(user | {"base_url": self.servers[2].url})}
        values.pop("teaching", None)
        values["mt_bench"] |= {"base": copy.deepcopy(user), "realm": copy.deepcopy(responder)}
        return values

    def stage(self, number, values):
        """What the notebook does, as far as it asks and writes."""
        path = self.folder / "mine.yaml"
        path.write_text(yaml.safe_dump(values))
        opened = open_run(number, str(path), str(self.run))
        if number == "03":
            for corpus in (None, *opened.profile.corpora()):
                asyncio.run(simulate(opened.profile, opened.seed, opened.folder, corpus=corpus))
        else:
            asyncio.run(self.answers(opened))
        opened.metrics.add("count", 1)
        opened.finish([])

    async def answers(self, opened):
        for name in ("base", "realm"):
            block = getattr(opened.profile.mt_bench, name)
            async with local.connect(block, name, opened.folder, opened.out / "logs") as client:
                await answer(client, QUESTIONS, opened.out, name, opened.seed)

    def stop_halfway(self, number, values):
        """One stub refuses after some answers."""
        self.servers[1].script = [None] * HALF + [BAD_KEY] * 99
        with pytest.raises((SimulationError, EndpointError)):
            self.stage(number, values)
        self.servers[1].script.clear()

    def asked(self):
        """(address, body) of every completion since the last call, the check of an endpoint left out."""
        sent = [
            (server.url, json.dumps(r.body, sort_keys=True).replace("max_completion_tokens", "max_tokens"))
            for server in self.servers
            for r in server.completions
            if r.body.get("max_tokens", r.body.get("max_completion_tokens")) > 1
        ]
        for server in self.servers:
            server.requests.clear()
        return sent

    def kept(self):
        """All that is on disk and cost something: files by content, journals by their rows and lines."""
        found = set()
        for path in self.run.rglob("*"):
            if path.suffix == ".sqlite":
                with contextlib.closing(sqlite3.connect(path)) as journal:
                    for table in ("turns", "requests", "rejected"):
                        rows = journal.execute(f"SELECT * FROM {table}")
                        found |= {(table, path.parent.name, *row) for row in rows}
            elif path.suffix == ".kept":
                found |= set(path.read_bytes().splitlines())
            elif path.is_file() and path.name not in RECORDS and not path.name.startswith("journal-"):
                found.add(path.read_bytes())
        return found


class Begun(NamedTuple):
    """A folder in a state: what was asked for it, and how much of that was answered."""

    folder: Path
    paid: set
    answered: int


@pytest.fixture(scope="module")
def begun(servers_, small, tmp_path_factory):
    """(stage, state) -> that state."""
    states = {}
    for number, state in itertools.product(NUMBERS, STATES):
        place = Place(tmp_path_factory.mktemp("begun"), servers_, small).made()
        if state == "finished":
            place.stage(number, place.values())
        else:
            place.stop_halfway(number, place.values())
        # The refused ones were no answers: what is kept tells how many were.
        states[number, state] = Begun(place.folder, set(place.asked()), count_answers(place))
    return states


def count_answers(place):
    return sum((isinstance(k, bytes) and k.startswith(b'{"asked"')) or k[0] == "requests" for k in place.kept())


@pytest.fixture
def copy_of(begun, servers_, small, tmp_path):
    """A copy of the folder in a state, and how many answers are in it."""

    def make(number, state):
        shutil.copytree(begun[number, state].folder, tmp_path, dirs_exist_ok=True)
        return Place(tmp_path, servers_, small), begun[number, state].answered

    return make


WHOLE = {"03": SIMULATED + BESIDE, "05": ANSWERED}


def test_the_states_are_what_they_are_called(begun):
    for (number, state), found in begun.items():
        assert found.answered == WHOLE[number] if state == "finished" else 2 <= found.answered < WHOLE[number]


# ---------------------------------------------------------------- every key


def keys_of(values, before=()):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, (*before, key))
        else:
            yield (*before, key)


def all_keys():
    values = load_profile("smoke").model_dump(mode="json")
    endpoint = {**values["simulation"]["responder"]}
    values["mt_bench"]["judge"] = endpoint
    values["simulation"]["beside"] = beside(values["simulation"]["user"])
    values.pop("teaching", None)  # of a stage that asks nobody
    values["simulation"]["budget"]["user_price"] = {"prompt": 1.0, "completion": 1.0}
    values["simulation"]["budget"]["responder_price"] = {"prompt": 1.0, "completion": 1.0}
    # A program's place goes with a server of ours, and these are services: that it says nothing is tested by itself.
    return [".".join(k) for k in keys_of(values) if k[-1] != "environment"]


def test_where_a_servers_program_lies_says_nothing():
    ours = Endpoint(engine="transformers", model="smollm2-135m", max_new_tokens=8)
    elsewhere = ours.model_copy(update={"environment": ".venv-serving", "gpu_memory_share": 0.5})
    assert endpoint_words(ours) == endpoint_words(elsewhere) != endpoint_words(ours.model_copy(update={"top_p": 0.5}))


# Where adding one or turning over is not allowed, or would not be a change of this key alone.
OTHER = {
    "dialogue.template": "dyadic",
    "data_inspection.preset": "paper",
    "data_inspection.source": "other.jsonl",
    "data_inspection.max_conversations": 900,
    "usergpt_sft.controls": ["both"],
    "usergpt_sft.eval_steps": 2,
    "realm_sft.eval_steps": 2,
    "simulation.simulator": "roleplay",
    "simulation.beside.plain.simulator": "usergpt",
    "simulation.beside.plain.seed_source": "test",
    "simulation.beside.plain.max_rounds": ROUNDS + 1,
    "simulation.responder_prompt": "Answer in one line.",
    "simulation.cut_turns": "continue",
    "mt_bench.questions": 16,
    "simulator_realism.sizes": [10, 20],
    "simulator_realism.responder": {
        "engine": "api",
        "base_url": "http://127.0.0.1:9",
        "model": "m",
        "max_new_tokens": 8,
    },
    "simulation.budget.requests": 10_000,
    "simulation.budget.tokens": 10_000_000,
    "simulation.budget.dollars": 1000.0,
    "cluster.gpus": 2,
    "cluster.cpus": 8,
    "cluster.memory": "64G",
    "cluster.time": "8:00:00",
    "cluster.options": ["--exclusive"],
    "cluster.setup": ["module load cuda"],
    "cluster.at_once": 2,
    "cluster.stages": {"03_simulation": {"cpus": 4}},
}
BY_NAME = {
    "supervise": "both",
    "method": "lora",
    "compute_dtype": "float32",
    "schedule": "linear",
    "temperature": 0.9,
    "top_p": 0.5,
    "opening_share": 0.25,
    "opening_rows": "segment",
    "near_duplicate_threshold": 0.5,
    "test_share": 0.04,
    "valid_share": 0.04,
    "seeds_share": 0.04,
    "api_key_env": "STUB_API_KEY",
    "requests_per_minute": 60_000,
    "model": "stub-2",
    "engine": "llama.cpp",
    "keep": "last",
    "leave_out": ["top_p"],
    "token_limit": "max_completion_tokens",
    "system_as": "first_user",
    "headers": {"X-Title": "other"},
    "extra_body": {"repetition_penalty": 1.1},
    "beside": {},
    "own_split": {"train_share": 0.5, "seed": 1},
    "gpu_memory_share": 0.4,
    "start_seconds": 900.0,
}
PRICE = {"prompt": 1.0, "completion": 1.0}


def another_value(key, value):
    name = key.rpartition(".")[2]
    if key in OTHER or name in BY_NAME:
        return OTHER.get(key, BY_NAME.get(name))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 8 else value * 2
    if isinstance(value, float):
        return value / 2 if value else 0.1
    return f"{value}-2"


def changed_values(values, key, place):
    """The profile's values with another one at ``key``, and whatever has to change with it to be allowed."""
    new = copy.deepcopy(values)
    *path, last = key.split(".")
    block = new
    for part in path:
        if block.get(part) is None:  # there is no judge in this run, and nothing has a price
            block[part] = dict(PRICE) if "price" in part else copy.deepcopy(values["simulation"]["responder"])
        block = block[part]
    if last in ("base_url", "api_key_env") and block["engine"] != "api":
        block |= {"engine": "api", "base_url": place.servers[2].url}
    block[last] = another_value(key, block.get(last))
    if last == "base_url":
        block[last] = place.servers[0 if "beside.plain" in key else 2].url
    if last == "engine":
        block |= {"base_url": None, "model": "smollm2-135m"}
        block |= {"engine": "transformers"} if "realism" in key else {}  # llama.cpp is what it has
    if key == "simulation.seed_source":
        block[last] = str(place.folder / "other_seeds.jsonl")
    if key == "simulation.budget.dollars":
        block["user_price"] = PRICE
    return new


WORDS = ("temperature", "top_p", "max_new_tokens", "model", "base_url", "engine")
WORDS += ("extra_body", "leave_out", "system_as")


def could_differ(number, key):
    """How many of the requests of a whole run could be answered otherwise, or follow what could be.

    Written by hand from what each key means; a new key is none of the words until it has a line here.
    """
    block, _, rest = key.partition(".")
    side, _, name = rest.partition(".")
    if key == "seed":
        return WHOLE[number]
    if number == "03":
        if key in ("dialogue.template", "simulation.cut_turns", "simulation.responder_prompt"):
            return WHOLE[number]
        if key in ("usergpt_sft.learn_ending", "simulation.simulator"):
            return SIMULATED
        if key.startswith("simulation.beside.plain."):
            of_asker = key.removeprefix("simulation.beside.plain.")
            return BESIDE if of_asker == "simulator" or of_asker.removeprefix("user.") in WORDS else 0
        if block == "simulation" and (side == "guardrails" or (side == "responder" and name in WORDS)):
            return WHOLE[number]
        if block == "simulation" and side == "user" and name in WORDS:
            return SIMULATED
        return SEEDED * 2 * (ROUNDS - 1) if key == "simulation.seed_source" else 0
    # MT-Bench has its own temperatures, by category.
    mine = block == "mt_bench" and side in ("base", "realm") and name in WORDS
    return ANSWERED // 2 if mine and name != "temperature" else 0


# What is asked for the first time: a conversation more, or a round more of each.
NEW = {
    "simulation.free": 2 * ROUNDS,
    "simulation.seeded": 2 * (ROUNDS - 1),
    "simulation.max_rounds": 2 * (FREE + SEEDED + 1),
    "simulation.beside.plain.free": 2 * ROUNDS,
    "simulation.beside.plain.seeded": 2 * (ROUNDS - 1),
    "simulation.beside.plain.max_rounds": 2,
}


@pytest.mark.parametrize("key", all_keys())
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_key_asks_again_for_what_could_be_said_otherwise_and_nothing_is_gone(
    begun, copy_of, monkeypatch, number, state, key
):
    monkeypatch.setenv("STUB_API_KEY", "not-a-real-key-0123456789")
    place, answered = copy_of(number, state)
    before = place.kept()
    place.stage(number, changed_values(place.values(), key, place))
    sent, differ = place.asked(), could_differ(number, key)
    more = NEW.get(key, 0) if number == "03" else 0
    if state == "finished":
        assert len(sent) == differ + more
    elif differ in (0, WHOLE[number]):
        assert len(sent) == WHOLE[number] + more - (0 if differ else answered)
    assert len(set(sent)) == len(sent)
    assert before <= place.kept()
    # And back again: what was said first is still there, and only what never was is asked.
    place.stage(number, place.values())
    # The same request in another journal, of a corpus that differs, is none of what was said first.
    kept_of_it = (
        {WHOLE[number]: 0, SIMULATED: BESIDE, BESIDE: SIMULATED - answered} if number == "03" else {ANSWERED: 0}
    )
    of_this_run = kept_of_it.get(differ, len(set(sent) & begun[number, "finished"].paid))
    left = WHOLE[number] - answered - of_this_run if state != "finished" else 0
    assert len(place.asked()) == left
    assert before <= place.kept()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("number", NUMBERS)
def test_no_module_asks_again_for_anything_and_nothing_is_gone(copy_of, number, state):
    place, answered = copy_of(number, state)
    path = stage_by_number(number).path
    before, first = place.kept(), True
    for name in HASHES[path]:
        place.hashes[path][name] = f"changed {name}"
        place.stage(number, place.values())
        assert len(place.asked()) == (WHOLE[number] - answered if first else 0), name
        first = False
    assert before <= place.kept()
    assert len(HASHES[path]) > 40


@pytest.mark.parametrize("module", sorted(set(HASHES[STAGES[2].path]) | set(HASHES[STAGES[4].path])))
def test_no_module_asks_again_after_half_a_run(copy_of, module):
    for number in NUMBERS:
        place, answered = copy_of(number, "half-finished")
        before = place.kept()
        place.hashes[stage_by_number(number).path][module] = "changed"
        place.stage(number, place.values())
        assert len(place.asked()) == WHOLE[number] - answered
        assert before <= place.kept()
        shutil.rmtree(place.folder / "runs")
