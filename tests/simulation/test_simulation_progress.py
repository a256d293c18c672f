"""A simulation seen from outside: while it talks, after it was cut off, and which shards are left."""

import asyncio
import contextlib

import pytest
from simulation_stage import SEEDS
from stub_server import BAD_KEY, answered

from realm.conversations.writers import write_conversations
from realm.core.profile import load_profile
from realm.dialogue import encoder
from realm.serving.dialect import GO_ON
from realm.simulation.plan import Shard
from realm.simulation.progress import open_shards, progress
from realm.simulation.run import SimulationError, Work, main, simulate


@pytest.fixture(autouse=True)
def small_tokenizer(monkeypatch, byte_level):
    monkeypatch.setattr(encoder, "load_tokenizer", lambda name: byte_level)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / "01_data").mkdir(parents=True)
    for side in ("seeds", "train"):
        write_conversations(tmp_path / "run" / "01_data" / f"{side}.jsonl", SEEDS)
    return tmp_path / "run"


@pytest.fixture
def chosen(servers):
    smoke = load_profile("smoke")
    user, responder = (s.endpoint(context_length=4096) for s in servers)
    beside = {"humans": smoke.simulation.beside["humans"]}
    values = {"user": user, "responder": responder, "free": 6, "seeded": 3, "max_rounds": 2, "beside": beside}
    budget = smoke.simulation.budget.model_copy(update={"responder_price": PRICE})
    return smoke.model_copy(update={"simulation": smoke.simulation.model_copy(update={**values, "budget": budget})})


PRICE = load_profile("paper").simulation.budget.responder_price


def hold(chosen, folder, number, of=3, corpus=None):
    return asyncio.run(simulate(chosen, 7, folder, Shard(number, of), corpus))


def test_nothing_was_said_yet(chosen, folder):
    found = progress(chosen, 7, folder)
    assert (found.planned, found.ended, found.turns, found.spent) == (9, 0, 0, "0 requests, 0 tokens, $0.00")
    assert open_shards(chosen, 7, folder, 3) == (1, 2, 3)


def test_shards_that_are_done_and_one_that_is_at_work(servers, chosen, folder):
    for number in (1, 3):
        hold(chosen, folder, number)
    asked = sum(len(s.completions) for s in servers)
    for number in (1, 3):
        hold(chosen, folder, number, corpus="humans")
    assert open_shards(chosen, 7, folder, 3) == (2,)
    of_two = Shard(2, 3)
    there = sum(of_two.holds(s) for s in Work.of(chosen, 7, folder).starts)
    assert there
    with contextlib.closing(Work.of(chosen, 7, folder, of_two).journal(of_two)):  # as a task of the array has it
        found = progress(chosen, 7, folder)
    assert (found.planned, found.ended) == (9, 9 - there)
    assert found.spent.startswith(f"{asked} requests") and found.dollars > 0


def test_requests_that_go_on_with_a_cut_turn_are_counted(servers, chosen, folder, monkeypatch):
    monkeypatch.setitem(GO_ON, "api", {"continue_final_message": True})
    servers[1].script = [answered("First of all the", "length")] * 4
    simulation = chosen.simulation.model_copy(update={"cut_turns": "continue"})
    chosen = chosen.model_copy(update={"simulation": simulation})
    asyncio.run(simulate(chosen, 7, folder))
    asked = sum(len(s.completions) for s in servers)
    assert progress(chosen, 7, folder).spent.startswith(f"{asked} requests")


def test_what_was_taken_over_is_counted_once(servers, chosen, folder):
    hold(chosen, folder, 1, 2)
    asyncio.run(simulate(chosen, 7, folder))  # the whole run takes in what the shard said
    found = progress(chosen, 7, folder)
    asked = sum(len(s.completions) for s in servers)
    assert (found.planned, found.ended) == (9, 9) and found.spent.startswith(f"{asked} requests")


def test_a_run_that_was_cut_off_shows_what_it_kept(servers, chosen, folder):
    servers[1].script = [None] * 5 + [BAD_KEY]
    with pytest.raises(SimulationError):
        asyncio.run(simulate(chosen, 7, folder))
    found = progress(chosen, 7, folder)
    assert found.ended < 9 and found.turns >= 5
    assert open_shards(chosen, 7, folder, 1) == (1,)


def test_a_shard_holds_all_corpora(servers, chosen, folder, tmp_path, monkeypatch, capsys):
    import yaml

    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**chosen.model_dump(mode="json"), "teaching": None}))
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    for number in (1, 2):
        assert main(["--profile", str(tmp_path / "run.yaml"), "--shard", f"{number}/2", "--beside"]) == 0
    said = capsys.readouterr().out
    assert said.count("-- RealChat\n") == said.count("-- humans\n") == 2
    seed = chosen.seed
    assert open_shards(chosen, seed, folder, 2) == ()
    assert progress(chosen, seed, folder, "humans").ended == 2
    assert main(["--profile", str(tmp_path / "run.yaml"), "--merge", "--beside"]) == 0
    assert (folder / "03_simulation" / "beside" / "humans" / "realchat.jsonl").exists()
