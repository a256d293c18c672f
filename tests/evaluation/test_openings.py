import asyncio

import numpy as np
import pytest
from stub_server import BAD_KEY, StubServer

from realm.conversations.conversation import PLACE, SESSION, Conversation, Message
from realm.core.errors import TooFewError
from realm.evaluation import openings
from realm.evaluation.kept import Kept
from realm.pipeline import marks
from realm.pipeline.stages import stage_by_number
from realm.serving.client import Address, Client
from realm.serving.faults import EndpointError
from realm.simulation.simulators import ROLEPLAY, USERGPT

# ---------------------------------------------------------------- texts of one length


def test_texts_are_cut_at_the_same_number_of_tokens(byte_level):
    texts = ["what does this code do? Tell me more, please.", "hello", "", "   "]
    cut = openings.first_tokens(texts, byte_level, 5)
    assert texts[0].startswith(cut[0]) and cut[0] != texts[0]
    assert len(byte_level(cut[0], add_special_tokens=False).input_ids) <= 5
    assert cut[1:] == ["hello", "(empty)", "(empty)"]


def test_each_text_is_embedded_once_and_cut(byte_level, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(openings, "embed", lambda texts, folder: asked.extend(texts) or np.eye(len(texts)))
    samples = [{"humans": [["one", "two"], ["one"]]}, {"usergpt": [["two"]], "base": []}]
    first, other = openings.embed_turns(samples, byte_level, 50, tmp_path)
    assert asked == ["one", "two"]
    assert [v.shape for v in first["humans"]] == [(2, 2), (1, 2)]
    assert (first["humans"][0][1] == other["usergpt"][0][0]).all() and other["base"] == []
    assert openings.embed_turns([{"humans": []}], byte_level, 50, tmp_path) == [{"humans": []}]


# ---------------------------------------------------------------- turns to compare


def talk(name, first, role="user", place=0):
    meta = {SESSION: name.partition("_")[0], PLACE: place}
    return Conversation(name, (Message(role, first), Message("assistant", "yes")), meta)


def test_one_first_turn_a_session():
    segments = [talk(f"s{i}_{part}", f"turn {i}.{part}", place=part) for i in range(6) for part in range(3)]
    turns = openings.opening_turns(segments, 6, seed=1)
    assert sorted(turns) == [f"turn {i}.0" for i in range(6)]
    assert turns != sorted(turns)
    assert turns == openings.opening_turns(segments, 6, seed=1) != openings.opening_turns(segments, 6, seed=2)


def test_later_segments_and_answers_are_no_openings():
    later = [talk("a_0", "in the middle", place=3), talk("b_0", "an answer", role="assistant")]
    assert openings.opening_turns([*later, talk("d_0", "an opening")], 1, seed=1) == ["an opening"]


def test_two_groups_share_no_session_and_too_few_sessions_name_the_key():
    segments = [talk(f"s{i}_0", f"turn {i}") for i in range(6)]
    both = openings.two_human_groups(segments, 3, seed=1)
    assert len(both) == len(set(both)) == 6
    with pytest.raises(TooFewError, match=r"two groups of 4 .* 6 sessions .*simulator_realism\.conversations"):
        openings.two_human_groups(segments, 4, seed=1)


# ---------------------------------------------------------------- simulators


def draw(server, folder, simulator, count=5, seed=1, **endpoint):
    async def asked():
        client = Client(Address(server.url, "stub"), server.endpoint(**endpoint), "usergpt")
        try:
            return await openings.simulated(Kept(client, folder, "usergpt"), simulator, count, seed)
        finally:
            await client.close()

    return asyncio.run(asked())


@pytest.mark.parametrize("simulator", [USERGPT, ROLEPLAY])
def test_simulated_openings_differ_in_seed_alone(simulator, tmp_path):
    with StubServer(reply=lambda body: f" opening {body['seed']} ") as server:
        replies = draw(server, tmp_path, simulator)
        assert len({r.text for r in replies}) == 5
        expected = [(m.role, m.content) for m in simulator.messages([])]
        assert all(r.said == expected for r in server.completions)


def test_no_opening_is_asked_for_twice(tmp_path):
    with StubServer(reply=lambda body: f"opening {body['seed']}") as server:
        server.script = [None] * 3 + [BAD_KEY] * 99
        with pytest.raises(EndpointError):
            draw(server, tmp_path, USERGPT, concurrency=1)
        server.script.clear()
        server.requests.clear()
        first = draw(server, tmp_path, USERGPT)
        assert len(server.completions) == 2  # three were answered before the service refused
        more = draw(server, tmp_path, USERGPT, count=7)
        assert more[:5] == first and len(server.completions) == 4
        draw(server, tmp_path, USERGPT, count=7, temperature=0.2)
        assert len(server.completions) == 11  # another temperature is another question


def test_the_stage_keeps_them_when_it_is_run_anew(tmp_path):
    with StubServer() as server:
        draw(server, tmp_path / "06_simulator_realism" / "openings", USERGPT)
        before = sorted(p.name for p in tmp_path.rglob("*.journal.*"))
        assert len(before) == 2
        stage = stage_by_number("06")
        for made in ({"code": "old"}, {"code": "new"}):
            marks.begin(stage, made, tmp_path)
            (tmp_path / stage.folder / "turns.json").write_text("{}")
        assert (tmp_path / stage.folder / "set_aside").exists() or list(tmp_path.rglob("set_aside*"))
        assert sorted(p.name for p in (tmp_path / stage.folder / "openings").iterdir()) == before
        server.requests.clear()
        draw(server, tmp_path / "06_simulator_realism" / "openings", USERGPT)
        assert not server.completions
