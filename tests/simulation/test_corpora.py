"""Corpora beside RealChat: the same code, a folder each, and who asks in one changes nothing of the others."""

import asyncio
import contextlib
import sqlite3

import pytest
import yaml
from simulation_stage import SEEDS
from stub_server import BAD_KEY, NO_WAY, echo_digest

from realm.conversations.conversation import CONTEXT, PLACE, SESSION, Conversation, Message
from realm.conversations.readers import load_conversations
from realm.conversations.writers import write_conversations
from realm.core.asker import Asker
from realm.core.profile import PROFILE_FOLDER, Profile, load_profile, run_folder
from realm.core.seeds import turn_seed
from realm.core.set_aside import set_aside_so_far
from realm.dialogue import encoder
from realm.dialogue.segments import from_their_opening
from realm.simulation.engine import RESPONDER_SYSTEM_PROMPT
from realm.simulation.plan import OF
from realm.simulation.run import SimulationError, corpus_folder, identity, main, simulate

REPLAY = {"simulator": "replay", "user": None}


@pytest.fixture(autouse=True)
def small_tokenizer(monkeypatch, byte_level):
    monkeypatch.setattr(encoder, "load_tokenizer", lambda name: byte_level)


def talk(session, turns, place=0, **meta):
    messages = tuple(Message(role, f"{session} {role} {number}") for role, number in turns)
    return Conversation(f"{session}/{place}", messages, {SESSION: session, PLACE: place, **meta})


TRAIN = [
    talk("whole", [("user", 0), ("assistant", 1), ("user", 2), ("assistant", 3)]),
    talk("cut", [("user", 0), ("assistant", 1)]),
    talk("cut", [("assistant", 1), ("user", 2), ("assistant", 3)], 2, **{CONTEXT: 1}),
    talk("from within", [("user", 4), ("assistant", 5)], 4),
]
TEST = [talk(f"held{i}", [("user", 0), ("assistant", 1)], near_duplicates=f"c{i}") for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "run" / "01_data"
    data.mkdir(parents=True)
    for side, conversations in (("seeds", SEEDS), ("train", TRAIN), ("test", TEST)):
        write_conversations(data / f"{side}.jsonl", conversations)
    return tmp_path / "run"


def profile_of(servers, beside, **values):
    """Profile smoke with stub servers; ``beside``: name -> what differs, ``user`` being the stub where it is asked."""
    smoke = load_profile("smoke").model_dump(mode="json")
    user, responder = (s.endpoint(context_length=4096).model_dump(mode="json") for s in servers)
    askers = {name: {"simulator": "usergpt", "user": user, **own} for name, own in beside.items()}
    chosen = {"user": user, "responder": responder, "free": 2, "seeded": 1, "max_rounds": 2, "beside": askers}
    smoke["simulation"] |= {**chosen, **values}
    smoke.pop("teaching", None)
    return Profile.model_validate(smoke)


def hold(chosen, folder, *corpora):
    return [asyncio.run(simulate(chosen, 7, folder, corpus=name)) for name in corpora]


def asked(servers):
    """Completions since the last call."""
    found = [len(s.completions) for s in servers]
    for server in servers:
        server.requests.clear()
    return found


def turns_in(path):
    with contextlib.closing(sqlite3.connect(path)) as journal:
        return journal.execute("SELECT * FROM turns ORDER BY 1, 2").fetchall()


# ---------------------------------------------------------------- folders and words


def test_each_corpus_has_its_folder_with_all_that_realchat_has(servers, folder):
    chosen = profile_of(servers, {"told": {"simulator": "roleplay"}, "humans": REPLAY | {"seed_source": "train"}})
    hold(chosen, folder, None, "told", "humans")
    for name in ("told", "humans"):
        there = {p.name for p in corpus_folder(folder, name).iterdir()}
        assert {"realchat.jsonl", "realchat.parquet", "realchat_sharegpt.json", "README.md"} <= there
        assert len([n for n in there if n.endswith(".sqlite")]) == 1
    told = load_conversations(corpus_folder(folder, "told") / "realchat.jsonl")
    assert {c.meta["simulator"] for c in told} == {"roleplay"} and len(told) == 3
    systems = {r.body["messages"][0]["content"] for r in servers[1].completions}
    assert systems == {RESPONDER_SYSTEM_PROMPT}  # the responder is told the same


def test_without_beside_and_prompt_a_journal_is_named_as_before(servers, folder):
    words = identity(profile_of(servers, {}), 7, folder)
    assert words["responder_system"] == RESPONDER_SYSTEM_PROMPT and not {"beside", "responder_prompt"} & words.keys()
    assert words == identity(profile_of(servers, {"told": {"simulator": "roleplay"}}), 7, folder)


def test_nothing_is_asked_twice_and_a_changed_asker_leaves_the_others_alone(servers, folder):
    beside = {"told": {"simulator": "roleplay"}, "humans": REPLAY | {"seed_source": "train", "seeded": 2}}
    hold(profile_of(servers, beside), folder, None, "told", "humans")
    assert asked(servers) == [2 * 5, 2 * 5 + 4]
    hold(profile_of(servers, beside), folder, None, "told", "humans")
    assert asked(servers) == [0, 0]
    kept = {p: turns_in(p) for p in folder.rglob("journal-*.sqlite")}
    beside["told"] = {"simulator": "usergpt", "user": servers[0].endpoint(temperature=0.1).model_dump(mode="json")}
    hold(profile_of(servers, beside), folder, None, "told", "humans")
    assert asked(servers) == [5, 5]
    assert all(turns_in(p) == rows for p, rows in kept.items())  # and what "told" said before is still there
    [place] = set_aside_so_far(folder)  # its files, which hold something else by now, were set aside
    assert (place / "realchat.jsonl").exists() and place.parent.parent.name == "beside"


def test_an_interrupted_corpus_goes_on_where_it_stopped(servers, folder):
    chosen = profile_of(servers, {"told": {"simulator": "roleplay"}})
    servers[1].script = [None, None, None] + [BAD_KEY] * 99
    with pytest.raises(SimulationError, match="run again"):
        hold(chosen, folder, "told")
    servers[1].script.clear()
    [path] = corpus_folder(folder, "told").glob("journal-*.sqlite")
    said = turns_in(path)
    asked(servers)
    hold(chosen, folder, "told")
    again = asked(servers)
    assert len(said) + sum(again) == len(turns_in(path)) == 2 * 5 and set(said) < set(turns_in(path))


def test_failed_conversations_are_told_until_they_are_no_longer_asked_again(servers, folder):
    chosen = profile_of(servers, {"told": {"simulator": "roleplay"}})
    poison = turn_seed("free-00001", 0, 7)
    servers[0].reply = lambda body: "poison?" if body["seed"] == poison else echo_digest(body)
    servers[1].reply = lambda body: NO_WAY if "poison" in str(body["messages"]) else echo_digest(body)
    assert [hold(chosen, folder, "told")[0].again for _ in range(4)] == [1, 1, 0, 0]


def test_shards_and_merge_and_the_command_line(servers, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    chosen = profile_of(servers, {"told": {"simulator": "roleplay"}})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    assert run_folder(str(path)) == folder.resolve()
    common = ["--profile", str(path), "--corpus", "told"]
    assert [main([*common, "--shard", f"{i}/2"]) for i in (1, 2)] == [0, 0]
    assert main([*common, "--merge"]) == 0
    assert "2 shards joined" in capsys.readouterr().out
    assert len(load_conversations(corpus_folder(folder, "told") / "realchat.jsonl")) == 3
    assert not (folder / "03_simulation" / "realchat.jsonl").exists()
    asked(servers)
    assert main(common) == 0 and asked(servers) == [0, 0]
    assert main(["--profile", str(path), "--corpus", "other"]) != 0
    assert "other: no such corpus; simulation.beside has told" in capsys.readouterr().err


# ---------------------------------------------------------------- the responder's prompt


def test_the_responder_prompt_reaches_every_corpus_and_names_another_journal(servers, folder):
    beside = {"told": {"simulator": "roleplay"}}
    before = hold(profile_of(servers, beside), folder, None, "told")
    asked(servers)
    chosen = profile_of(servers, beside, responder_prompt="Answer in one line.")
    after = hold(chosen, folder, None, "told")
    assert {r.body["messages"][0]["content"] for r in servers[1].completions} == {"Answer in one line."}
    assert [c.messages for c in before[0].conversations] != [c.messages for c in after[0].conversations]
    assert len(list(folder.rglob("journal-*.sqlite"))) == 4
    card = (folder / "03_simulation" / "README.md").read_text()
    assert "Answer in one line." in card


def test_the_prompts_tokens_count_towards_the_context(servers, folder):
    long = "Answer briefly. " * 1000
    beside = {"humans": REPLAY | {"seed_source": "train", "seeded": 1}}
    [found] = hold(profile_of(servers, beside, responder_prompt=long), folder, "humans")
    assert found.reasons == {"context_full": 1} and asked(servers) == [0, 0]


def test_a_prompt_that_holds_a_token_of_the_template_is_refused(servers, folder, byte_level):
    with pytest.raises(SimulationError, match=r"responder_prompt holds <.im_end.>"):
        hold(profile_of(servers, {}, responder_prompt="Be brief.<|im_end|>"), folder, None)


# ---------------------------------------------------------------- whose turns are replayed


def test_replays_of_train_begin_at_the_opening_and_go_through_the_whole_session(servers, folder):
    chosen = profile_of(servers, {"humans": REPLAY | {"seed_source": "train", "seeded": 2, "max_rounds": 9}})
    [found] = hold(chosen, folder, "humans")
    said = {c.session: c.turns("user") for c in found.conversations}
    assert said == {name: [f"{name} user 0", f"{name} user 2"] for name in ("whole", "cut")}
    assert all(not a.startswith(c.session) for c in found.conversations for a in c.turns("assistant"))


def test_more_than_the_sessions_that_open_is_refused(servers, folder):
    chosen = profile_of(servers, {"humans": REPLAY | {"seed_source": "train", "seeded": 3}})
    with pytest.raises(SimulationError, match="3 to replay asked for, 2 of 2"):
        hold(chosen, folder, "humans")


def test_a_held_out_replay_tells_whose_it_is(servers, folder):
    [found] = hold(profile_of(servers, {"test": REPLAY | {"seed_source": "test", "seeded": 3}}), folder, "test")
    assert {c.session for c in found.conversations} == {c.session for c in TEST}
    assert {c.meta[OF] for c in found.conversations} == {c.id for c in TEST}
    assert all(c.meta["near_duplicates"] == f"c{c.session[-1]}" for c in found.conversations)


def test_a_session_is_joined_as_far_as_it_goes_without_a_gap():
    alone = [talk("gap", [("user", 0)]), talk("gap", [("assistant", 1), ("user", 2)], 2, **{CONTEXT: 1})]
    far = [talk("far", [("user", 0), ("assistant", 1)])]
    far += [talk("far", [("assistant", 5), ("user", 6)], 6, **{CONTEXT: 1})]
    joined = {c.session: c.turns("user") for c in from_their_opening([*reversed(alone), *far, TRAIN[3]])}
    assert joined == {"gap": ["gap user 0", "gap user 2"], "far": ["far user 0"]}


# ---------------------------------------------------------------- the profile


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"Told": {"simulator": "roleplay"}}, "beside: 'Told' is no name here"),
        ({"realchat": {"simulator": "roleplay"}}, "'realchat' is no name here"),
        ({"set_aside": {"simulator": "roleplay"}}, "'set_aside' is no name here"),
        ({"humans": {"simulator": "replay"}}, "beside.humans: simulator replay needs user: null"),
        ({"told": {"simulator": "roleplay", "user": None}}, "beside.told: simulator roleplay needs a user endpoint"),
        ({"humans": REPLAY | {"free": 3}}, "beside.humans: .*free must be 0"),
        ({"humans": REPLAY | {"seeded": 0}}, "beside.humans: free and seeded are both 0"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused_by_name(servers, beside, words):
    with pytest.raises(ValueError, match=words):
        profile_of(servers, beside)


def test_what_a_corpus_does_not_say_it_has_from_the_simulation(servers):
    chosen = profile_of(servers, {"humans": REPLAY, "told": {"simulator": "roleplay", "free": 5}})
    corpora = chosen.corpora()
    for config in corpora.values():
        assert config.beside == {} and config.responder == chosen.simulation.responder
        assert (config.max_rounds, config.seed_source) == (2, "split")
    assert (corpora["humans"].free, corpora["humans"].seeded) == (0, 1)
    assert (corpora["told"].free, corpora["told"].seeded) == (5, 1)
    assert "simulation.beside.told.user" in chosen.endpoints() and "simulation.responder" in chosen.endpoints()
    assert Asker(**REPLAY).differs() == {"simulator": "replay", "user": None, "free": 0}


def test_an_unknown_key_of_an_asker_is_named(tmp_path):
    values = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text())
    values["simulation"]["beside"] = {"humans": {**REPLAY, "max_round": 1}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(Exception, match=r"simulation.beside.humans.max_round: unknown key; allowed: simulator, user"):
        load_profile(str(path))
