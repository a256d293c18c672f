"""A profile's run from end to end against stub servers: exports, shards, resuming, and processes that are killed."""

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import random
import re
import signal
import socket
import sqlite3
import time

import pytest
import yaml
from simulation_stage import SEEDS, as_told
from stub_server import BAD_KEY, NO_MODEL, Fault, StubServer, echo_digest

from realm.conversations.conversation import Conversation, Message
from realm.conversations.readers import load_conversations
from realm.conversations.writers import write_conversations
from realm.core.profile import Endpoint, load_profile, run_folder
from realm.dialogue import encoder
from realm.models import assets
from realm.serving import local
from realm.serving.client import Address
from realm.simulation import export
from realm.simulation import run as simulation
from realm.simulation.endings import Ending, EndReason
from realm.simulation.journal import Journal
from realm.simulation.plan import Shard, plan
from realm.simulation.records import Attempt, Usage
from realm.simulation.run import STAGE_FOLDER, SimulationError, identity, main, merge, simulate
from realm.simulation.simulators import USERGPT

FILES = ["README.md", "realchat.jsonl", "realchat.parquet", "realchat_sharegpt.json"]


@pytest.fixture(autouse=True)
def small_tokenizer(monkeypatch, byte_level):
    monkeypatch.setattr(encoder, "load_tokenizer", lambda name: byte_level)


def profile_of(servers, **values):
    smoke = load_profile("smoke")
    user, responder = (s.endpoint(context_length=4096) for s in servers)
    chosen = {"user": user, "responder": responder, "free": 6, "seeded": 3, "max_rounds": 2, **values}
    return smoke.model_copy(update={"simulation": smoke.simulation.model_copy(update=chosen)})


@pytest.fixture
def folder(tmp_path):
    return with_seeds(tmp_path / "run")


def with_seeds(folder):
    (folder / "01_data").mkdir(parents=True)
    write_conversations(folder / "01_data" / "seeds.jsonl", SEEDS)
    return folder


def run(chosen, folder, shard=None):
    return asyncio.run(simulate(chosen, 7, folder, shard))


def asked(servers):
    return sum(len(s.completions) for s in servers)


# ---------------------------------------------------------------- exports


def test_a_run_writes_all_exports_and_they_read_back_alike(servers, folder):
    outcome = run(profile_of(servers), folder)
    out = folder / STAGE_FOLDER
    assert sorted(p.name for p in out.iterdir() if p.name in FILES) == FILES
    told = as_told(outcome.conversations)
    assert as_told(load_conversations(out / "realchat.jsonl")) == told
    assert as_told(load_conversations(out / "realchat.parquet")) == told
    again = load_conversations(out / "realchat_sharegpt.json")
    assert [(c.id, c.messages) for c in again] == [(c.id, c.messages) for c in outcome.conversations]


def test_the_folder_opens_as_a_data_set(servers, folder, tmp_path):
    import datasets

    outcome = run(profile_of(servers), folder)
    rows = datasets.load_dataset(str(folder / STAGE_FOLDER), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(rows["id"]) == [c.id for c in outcome.conversations]
    assert rows[0]["messages"] == as_told(outcome.conversations)[0]["messages"]
    file = str(folder / STAGE_FOLDER / export.PARQUET)
    alone = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert list(alone) == list(rows)


def test_a_conversation_in_which_nothing_was_said_is_counted_and_left_out(servers, folder):
    servers[0].reply = lambda body: " " if len(body["messages"]) == 1 else echo_digest(body)  # an opening is empty
    chosen = profile_of(servers, free=1, seeded=1, guardrails=load_profile("paper").simulation.guardrails)
    outcome = run(chosen, folder)
    assert outcome.reasons == {"empty_turn": 1, "max_rounds": 1}
    assert len(load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")) == len(outcome.conversations) == 1
    assert "| in which nothing was said, left out | 1 |" in (folder / STAGE_FOLDER / "README.md").read_text()


def test_nothing_to_export_is_still_readable(tmp_path):
    config = load_profile("smoke").simulation
    talks = [Conversation("a", (), {"mode": "free", "end_reason": "empty_turn", "simulator": "usergpt"})]
    assert export.write_exports(tmp_path, talks, config, 1, {}, []) == []
    assert load_conversations(tmp_path / "realchat.jsonl") == []
    assert load_conversations(tmp_path / "realchat.parquet") == []


def test_the_card_counts_what_is_there(servers, folder, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "not-a-real-key-0123456789")
    servers[0].script = ["One?", "One?", "Two?"]
    servers[1].reply = lambda body: "an answer with not-a-real-key-0123456789"
    run(profile_of(servers, free=4, seeded=2), folder)
    text = (folder / STAGE_FOLDER / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["configs"][0]["data_files"] == [{"split": "train", "path": "realchat.parquet"}]
    assert values["size_categories"] == ["n<1K"] and "arxiv:2308.11534" in values["tags"]
    assert "| conversations | 6 |" in body and "| free | 4 |" in body and "| seeded | 2 |" in body
    assert "| max_rounds | 6 |" in body and "| 2 | 6 |" in body and "| seed | 7 |" in body
    assert all(f"| {reason} |" in body for reason in EndReason)
    assert "an answer" not in text and "One?" not in text  # numbers only
    assert "{{" not in text and not re.search(r"\n\n\n", text)


def test_the_card_names_licence_and_hash_of_a_model_that_is_served_from_a_gguf(tmp_path):
    config = load_profile("smoke").simulation
    responder = config.responder.model_copy(update={"model": "qwen2.5-coder-1.5b"})
    user = config.user.model_copy(update={"engine": "api", "base_url": "http://127.0.0.1:1/v1", "model": "minilm"})
    export.write_exports(tmp_path, [], config.model_copy(update={"responder": responder, "user": user}), 1, {}, [])
    text = (tmp_path / "README.md").read_text()
    digest = assets.ASSETS["qwen2.5-coder-1.5b"].sha256
    assert f"| responder | qwen2.5-coder-1.5b (Apache-2.0, SHA-256 `{digest}`) |" in text
    assert "| user model | minilm |" in text  # a service's name is no asset of ours


def test_a_failed_write_leaves_the_old_files(servers, folder, monkeypatch):
    chosen = profile_of(servers)
    run(chosen, folder)
    before = {name: (folder / STAGE_FOLDER / name).read_bytes() for name in FILES}
    monkeypatch.setattr(export, "_write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(chosen, folder)
    assert {name: (folder / STAGE_FOLDER / name).read_bytes() for name in FILES} == before
    assert not list((folder / STAGE_FOLDER).glob(".*.partial"))


# ---------------------------------------------------------------- what a run goes by


def test_the_estimate_is_printed_before_anything_is_asked(servers, folder, capsys):
    servers[0].script = [BAD_KEY]
    with pytest.raises(SimulationError):
        run(profile_of(servers), folder)
    assert "before it starts: 9 conversations with turns of full length: " in capsys.readouterr().out


def test_a_finished_run_connects_to_nothing(folder):
    with StubServer() as user, StubServer() as responder:
        first = run(profile_of((user, responder)), folder)
    again = run(profile_of((user, responder)), folder)  # both are gone
    assert (as_told(again.conversations), again.usage) == (as_told(first.conversations), first.usage)
    assert again.resumed_turns == 9 * 4 - 3 * 2


def test_what_does_not_shape_the_words_does_not_change_the_journal(servers, folder):
    one = profile_of(servers)
    patience = {"timeout_seconds": 9.0, "concurrency": 2, "requests_per_minute": 60, "max_retries": 3}
    patient = servers[0].endpoint(context_length=4096, **patience)
    budget = one.simulation.budget.model_copy(update={"requests": 5})
    assert identity(one, 7, folder) == identity(profile_of(servers, user=patient, budget=budget, free=9), 7, folder)
    warm = servers[0].endpoint(context_length=4096, temperature=0.1)
    assert identity(one, 7, folder) != identity(profile_of(servers, user=warm), 7, folder)
    assert identity(one, 7, folder) != identity(one, 8, folder)


def test_a_replay_runs_by_profile_without_a_user(servers, folder):
    outcome = run(profile_of(servers, simulator="replay", user=None, free=0, seeded=4), folder)
    assert [c.turns("user") for c in outcome.conversations] == [c.turns("user") for c in replayed(folder)]
    assert outcome.reasons == {"user_ended": 4}
    assert not servers[0].requests


def replayed(folder):
    known = {c.id: c for c in SEEDS}
    talks = load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")
    return [known[c.id.partition("-")[2].partition("-")[2]] for c in talks]


def test_a_seed_with_a_token_of_the_template_is_named_before_anything_is_asked(servers, folder):
    spoiled = Conversation("bad", (Message("user", "What is <|im_end|>?"), Message("assistant", "An end.")))
    write_conversations(folder / "01_data" / "seeds.jsonl", [*SEEDS, spoiled])
    with pytest.raises(SimulationError, match=r"seeded-\d+-bad: its seed holds <\|im_end\|>, a token of the template"):
        run(profile_of(servers, seeded=6), folder)
    assert asked(servers) == 0


def test_a_missing_split_names_what_to_run(servers, tmp_path):
    with pytest.raises(SimulationError, match=r"seeds\.jsonl: missing; run notebooks/01_data_inspection\.ipynb first"):
        run(profile_of(servers), tmp_path)


def test_a_full_disk_is_one_clear_error(servers, folder, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "add_turn", full)
    with pytest.raises(SimulationError, match=r"journal-\w+\.sqlite: database or disk is full; make room"):
        run(profile_of(servers), folder)


def test_a_journal_has_one_writer(tmp_path):
    first = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(SimulationError, match="another run writes here"):
        Journal(tmp_path / "journal.sqlite")
    first.close()
    Journal(tmp_path / "journal.sqlite").close()


# ---------------------------------------------------------------- shards


def test_every_conversation_is_in_one_shard():
    starts = plan(100, 5, SEEDS)
    shares = [[s.id for s in starts if Shard(i, 4).holds(s)] for i in (1, 2, 3, 4)]
    assert sorted(name for share in shares for name in share) == sorted(s.id for s in starts)
    assert all(10 < len(s) < 45 for s in shares)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(SimulationError, match="expected i/n with 1 <= i <= n"):
        Shard.parse(text)


def test_shards_together_are_the_whole_run(servers, folder, tmp_path):
    chosen, other = profile_of(servers), with_seeds(tmp_path / "sharded")
    whole = run(chosen, folder)
    paid = asked(servers)
    for number in (1, 2, 3):
        run(chosen, other, Shard(number, 3))
    assert not (other / STAGE_FOLDER / "realchat.jsonl").exists()
    assert asked(servers) == 2 * paid
    assert merge(chosen, 7, other)[0] == merge(chosen, 7, other)[0] == 3
    joined = run(chosen, other)
    assert asked(servers) == 2 * paid
    assert joined.usage == whole.usage
    for name in FILES:
        assert (other / STAGE_FOLDER / name).read_bytes() == (folder / STAGE_FOLDER / name).read_bytes(), name


def test_a_merge_before_all_shards_ended_says_how_many_are_missing(servers, folder):
    chosen = profile_of(servers)
    first = run(chosen, folder, Shard(1, 3))
    missing = 9 - first.reasons.total()
    with pytest.raises(SimulationError, match=f"{missing} of 9 conversations have not ended in 1 shards"):
        merge(chosen, 7, folder)


def test_a_merge_keeps_what_ended_and_replaces_what_did_not(tmp_path):
    main_one, shard = Journal(tmp_path / "main.sqlite"), Journal(tmp_path / "shard.sqlite")
    for journal, word in ((main_one, "main"), (shard, "shard")):
        for name in ("whole", "cut"):
            paid = Attempt(name, 0, 0, "user", 1, 1, "kept")
            journal.add_turn(name, 0, Message("user", word), paid)
    main_one.end(["whole"], Ending(EndReason.MAX_ROUNDS))
    main_one.end(["cut"], Ending(EndReason.BUDGET_SPENT))
    shard.end(["whole", "cut"], Ending(EndReason.USER_ENDED))
    shard.close()
    main_one.absorb(tmp_path / "shard.sqlite")
    assert [main_one.turns(n)[0].content for n in ("whole", "cut")] == ["main", "shard"]
    assert main_one.ended() == {"whole": EndReason.MAX_ROUNDS, "cut": EndReason.USER_ENDED}
    assert main_one.usage() == {"user": Usage(3, 3, 3)}  # what was paid for words that were replaced stays paid
    main_one.choose(["whole", "cut"])
    assert main_one.usage() == {"user": Usage(2, 2, 2)}
    main_one.close()


def cut_after(path, turns):
    """A journal in which so many turns of one conversation were said."""
    journal = Journal(path)
    for position in range(turns):
        paid = Attempt("cut", position, 0, "user", 1, 1, "kept")
        journal.add_turn("cut", position, Message("user", str(position)), paid)
    return journal


def test_a_merge_leaves_no_tries_of_turns_that_it_replaced_and_forgets_none(tmp_path):
    main_one, shard = cut_after(tmp_path / "main.sqlite", 3), cut_after(tmp_path / "shard.sqlite", 1)
    main_one.end(["cut"], Ending(EndReason.BUDGET_SPENT))
    shard.end(["cut"], Ending(EndReason.EMPTY_TURN))
    shard.close()
    for _ in range(2):
        main_one.absorb(tmp_path / "shard.sqlite")
    assert len(main_one.turns("cut")) == 1
    assert main_one.faults("cut", 1) == main_one.faults("cut", 2) == []
    assert main_one.usage() == {"user": Usage(4, 4, 4)}
    main_one.close()


def test_a_merge_takes_of_two_cut_short_what_came_further(tmp_path):
    main_one, shard = cut_after(tmp_path / "main.sqlite", 3), cut_after(tmp_path / "shard.sqlite", 1)
    for journal in (main_one, shard):
        journal.end(["cut"], Ending(EndReason.BUDGET_SPENT))
    shard.close()
    main_one.absorb(tmp_path / "shard.sqlite")
    assert len(main_one.turns("cut")) == 3
    main_one.close()


def test_shards_and_the_whole_run_take_from_each_other(servers, folder):
    few, many = profile_of(servers, free=2, seeded=1), profile_of(servers)
    run(few, folder)
    first = asked(servers)
    for number in (1, 2):
        run(many, folder, Shard(number, 2))
    whole = 9 * 4 - 3 * 2
    assert asked(servers) == whole
    for number in (1, 2, 3):  # another division asks nothing again
        run(many, folder, Shard(number, 3))
    assert asked(servers) == whole > first
    assert len(run(many, folder).conversations) == 9  # without --merge too
    assert asked(servers) == whole


def test_a_merge_without_endpoints_exports_and_starts_nothing(folder):
    with StubServer() as user, StubServer() as responder:
        chosen = profile_of((user, responder))
        for number in (1, 2):
            run(chosen, folder, Shard(number, 2))
    count, outcome = merge(chosen, 7, folder)  # both are gone
    assert (count, outcome.reasons.total()) == (2, 9)
    assert len(load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")) == 9


def test_a_merge_of_a_spent_budget_exports_and_asks_nothing(servers, folder, monkeypatch):
    budget = load_profile("smoke").simulation.budget.model_copy(update={"requests": 13})
    chosen = profile_of(servers, budget=budget)
    for number in (1, 2):
        run(chosen, folder, Shard(number, 2))
    assert asked(servers) == 12
    monkeypatch.setattr(simulation, "connect", lambda *_, **__: pytest.fail("a server was started"))
    _, outcome = merge(chosen, 7, folder)
    assert outcome.reasons["budget_spent"] > 0 and outcome.reasons.total() == 9
    whole = budget.model_copy(update={"requests": 12})
    again = run(profile_of(servers, budget=whole), folder)  # nothing is left to spend
    assert again.reasons == outcome.reasons and asked(servers) == 12


def test_exports_that_change_are_set_aside(servers, folder):
    out = folder / STAGE_FOLDER
    run(profile_of(servers), folder)
    before = {name: (out / name).read_bytes() for name in FILES}
    run(profile_of(servers), folder)
    assert not (folder / "set_aside").exists()
    run(profile_of(servers, free=8), folder)
    [place] = (folder / "set_aside").iterdir()
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


# ---------------------------------------------------------------- whose words


def test_fewer_rounds_cut_and_more_go_on_without_asking_again(servers, folder):
    told = {}
    for rounds, more in ((2, 30), (1, 0), (3, 18), (2, 0)):
        before = asked(servers)
        outcome = run(profile_of(servers, max_rounds=rounds), folder)
        assert asked(servers) - before == more
        assert {c.rounds for c in outcome.conversations} == {rounds}
        assert outcome.reasons == {"max_rounds": 9}
        assert told.setdefault(rounds, as_told(outcome.conversations)) == as_told(outcome.conversations)


def test_another_context_cuts_and_goes_on_without_asking_again(servers, folder):
    servers[1].reply = lambda body: "word " * 30
    short = [s.endpoint(context_length=400) for s in servers]
    long = [s.endpoint(context_length=4096) for s in servers]
    told = []
    for user, responder in (short, long, short):
        chosen = profile_of(servers, user=user, responder=responder, max_rounds=4)
        told.append(as_told(run(chosen, folder).conversations))
    assert told[0] == told[2] and told[0] != told[1]
    assert all(b["messages"][: len(a["messages"])] == a["messages"] for a, b in zip(*told[:2], strict=True))
    assert len({r.body["seed"] for s in servers for r in s.completions}) == asked(servers)


def test_another_opening_under_the_same_name_is_another_conversation(servers, folder):
    run(profile_of(servers, free=0, seeded=1), folder)
    first = load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")
    shortened = [Conversation(c.id, (c.messages[0], Message("assistant", "Short."))) for c in SEEDS]
    for seeds, asks in ((shortened, 2), (SEEDS, 0)):
        write_conversations(folder / "01_data" / "seeds.jsonl", seeds)
        before = asked(servers)
        run(profile_of(servers, free=0, seeded=1), folder)
        assert asked(servers) - before == asks
    assert load_conversations(folder / STAGE_FOLDER / "realchat.jsonl") == first


@pytest.fixture
def local_user(servers, folder, monkeypatch):
    """A profile whose user is the model of stage 02, served by the stub, and that model's folder."""
    merged = folder / "02_usergpt_sft" / "merged"
    merged.mkdir(parents=True)
    (merged / "model.safetensors").write_bytes(b"weights")
    (merged / "README.md").write_text("a card, with a date")

    @contextlib.contextmanager
    def reached(endpoint, *_, **__):
        yield Address(endpoint.base_url or servers[0].url, "stub")

    monkeypatch.setattr(local, "reach", reached)
    user = Endpoint(engine="llama.cpp", model="stage:02_usergpt_sft", max_new_tokens=16, context_length=4096)
    return profile_of(servers, user=user), merged


def test_other_weights_get_another_journal_beside_it_and_one_line(local_user, servers, folder, capsys):
    chosen, merged = local_user
    run(chosen, folder)
    whole = asked(servers)
    (merged / "README.md").write_text("another date")
    run(chosen, folder)
    assert asked(servers) == whole
    capsys.readouterr()
    (merged / "model.safetensors").write_bytes(b"other weights")
    run(chosen, folder)
    assert asked(servers) == 2 * whole
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: journal-")]
    assert re.search(
        r"journal-\w+\.sqlite is new: what journal-\w+\.sqlite keeps was said otherwise \(user\.weights", line
    )
    assert len(list((folder / STAGE_FOLDER).glob("journal-*.sqlite"))) == 2
    (merged / "model.safetensors").write_bytes(b"weights")
    run(chosen, folder)
    assert asked(servers) == 2 * whole


def test_other_prompts_get_another_journal(servers, folder, monkeypatch):
    run(profile_of(servers), folder)
    whole = asked(servers)
    monkeypatch.setattr(simulation, "USERGPT", dataclasses.replace(USERGPT, system="Another prompt."))
    monkeypatch.setitem(simulation.SIMULATORS, "usergpt", simulation.USERGPT)
    run(profile_of(servers), folder)
    assert asked(servers) == 2 * whole


# ---------------------------------------------------------------- command line


@pytest.fixture
def call(tmp_path, monkeypatch, folder):
    """``main`` with a profile; the run folder is ``folder``."""
    monkeypatch.setenv("REALM_RUNS", str(folder.parent))
    path = tmp_path / "run.yaml"

    def run_it(chosen, *words):
        path.write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
        assert run_folder(str(path)) == folder
        return main(["--profile", str(path), *words])

    return run_it


@pytest.fixture
def command(servers, call):
    """The same with a profile that points to the stubs."""
    return lambda *words: call(profile_of(servers), *words)


def test_the_command_line_holds_shards_and_merges_them(command, folder, capsys):
    assert [command("--shard", f"{i}/2") for i in (1, 2)] == [0, 0]
    assert command("--merge") == 0
    assert "2 shards joined\n9 conversations: max_rounds 9\n" in capsys.readouterr().out
    assert len(load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")) == 9


def test_the_command_line_says_what_is_wrong_in_one_line(command, servers, capsys):
    servers[0].models = BAD_KEY
    assert command() == 1
    assert re.fullmatch(r"error: user .*key is refused.*; run again to go on\n", capsys.readouterr().err)
    assert command("--shard", "9/2") == 1
    assert capsys.readouterr().err.startswith("error: --shard 9/2: expected i/n")


@contextlib.contextmanager
def useless_address(trouble):
    """Of a responder that cannot be asked."""
    if trouble == "silence":
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        return
    models = {"wrong key": BAD_KEY, "wrong model": Fault(404, "not found")}.get(trouble)
    with StubServer(lambda body: NO_MODEL, models) as server:
        if trouble != "nothing there":
            yield server.url
    if trouble == "nothing there":
        yield server.url


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("wrong key", r"the key is refused \(401\); check api_key_env, which is not set"),
        ("wrong model", r"no such model or path \(404\); correct model or base_url"),
        ("nothing there", "nothing answers there; start it, or correct base_url"),
        ("silence", "no answer in 3 s"),
    ],
)
def test_who_cannot_be_asked_is_one_line_within_seconds_and_nothing_is_spent(
    servers, call, folder, capsys, trouble, words
):
    good = profile_of(servers)
    with useless_address(trouble) as url:
        responder = good.simulation.responder.model_copy(update={"base_url": url, "max_retries": 4})
        started = time.monotonic()
        assert call(profile_of(servers, responder=responder)) == 1
        assert time.monotonic() - started < 5
    assert re.fullmatch(rf"error: responder \(.*\): {words}; run again to go on\n", capsys.readouterr().err)
    assert asked(servers) == 0
    assert call(good) == 0
    assert len(load_conversations(folder / STAGE_FOLDER / "realchat.jsonl")) == 9


def test_a_wrong_key_shows_before_a_local_server_is_started(servers, call, capsys):
    servers[1].models = BAD_KEY
    local = Endpoint(engine="llama.cpp", model="no such model", max_new_tokens=8)
    assert call(profile_of(servers, user=local)) == 1
    assert "the key is refused" in capsys.readouterr().err


# ---------------------------------------------------------------- killed


def hold(chosen, folder):
    """The body of a process that is to be killed."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    run(chosen, folder)


def sometimes_empty(body):
    """As deterministic as the usual reply, with work for the guardrails."""
    return " " if body["seed"] % 7 == 0 else echo_digest(body)


def test_kill_9_at_random_moments_loses_nothing_and_pays_nothing_twice(folder, tmp_path):
    rng = random.Random(5)
    with StubServer(sometimes_empty) as user, StubServer(sometimes_empty) as responder:
        chosen = profile_of((user, responder), free=57)
        run(chosen, folder)
        whole = asked((user, responder))
        for server in (user, responder):
            server.requests.clear()
            server.seconds = 0.01
        killed, again = 0, with_seeds(tmp_path / "killed")
        # A fork has the library loaded already: what is to be killed is the work, not the imports.
        fork = multiprocessing.get_context("fork")
        for target in sorted(rng.sample(range(5, whole - 20), 20)):
            process = fork.Process(target=hold, args=(chosen, again))
            process.start()
            deadline = time.monotonic() + 20
            while asked((user, responder)) < target and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.join(10)
            killed += process.exitcode == -signal.SIGKILL
        run(chosen, again)
        seeds = [r.body["seed"] for s in (user, responder) for r in s.completions]
    assert killed >= 18
    for name in ("realchat.jsonl", "realchat_sharegpt.json", "realchat.parquet", "README.md"):
        assert (again / STAGE_FOLDER / name).read_bytes() == (folder / STAGE_FOLDER / name).read_bytes(), name
    assert len(set(seeds)) == whole
    assert len(seeds) - whole <= killed * 8  # four in flight on either side
