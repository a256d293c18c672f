import fnmatch
import json
import math

import numpy as np
import pytest

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, SESSION, Conversation, Message
from realm.evaluation import going_on
from realm.evaluation.going_on import Talk
from realm.pipeline.stages import stage_by_number


def conversation(name, turns, first="user", **meta):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = tuple(Message(roles[i % 2], t) for i, t in enumerate(turns))
    return Conversation(name, messages, meta)


def talk(*turns, before=None, given=0, ended=False):
    return Talk("t", turns, tuple(before or [""] * len(turns)), given, ended)


# ---------------------------------------------------------------- talks


def test_a_session_is_put_together_from_its_segments():
    parts = [
        conversation("s/1", ["a2", "u3"], "assistant", **{SESSION: "s", PLACE: 4, CONTEXT: 1, ENDS_SESSION: True}),
        conversation("s/0", ["u1", "a1", "u2", "a2"], **{SESSION: "s", PLACE: 0}),
    ]
    [found] = going_on.human_talks(parts)
    assert (found.turns, found.before, found.given, found.ended) == (("u1", "u2", "u3"), ("", "a1", "a2"), 0, True)
    assert list(found.later) == [1, 2]
    assert found.up_to(2) == Talk("s", ("u1", "u2"), ("", "a1"), 0, False)
    assert found.up_to(3).ended


def test_a_session_with_a_gap_ends_there_and_nobody_knows_how():
    parts = [
        conversation("s/0", ["u1", "a1"], **{SESSION: "s", PLACE: 0}),
        conversation("s/2", ["a3", "u4"], "assistant", **{SESSION: "s", PLACE: 6, CONTEXT: 1, ENDS_SESSION: True}),
    ]
    [found] = going_on.human_talks(parts)
    assert (found.turns, found.ended) == (("u1",), False)


def test_a_session_without_its_opening_is_none():
    assert going_on.human_talks([conversation("s", ["u2", "a2"], **{PLACE: 2})]) == []


def test_of_a_seeded_conversation_the_first_round_was_a_humans():
    [free, seeded] = going_on.simulated_talks(
        [
            conversation("a", ["u1", "a1", "u2", "a2"], mode="free", end_reason="max_rounds"),
            conversation("b", ["h1", "h2", "u2", "a2"], mode="seeded", end_reason="user_ended"),
        ]
    )
    assert (free.given, free.ended, list(free.later)) == (0, False, [1])
    assert (seeded.given, seeded.ended, list(seeded.later)) == (1, True, [1])


def test_conversations_of_another_simulator_are_missing_and_named(tmp_path):
    def write(place, simulator):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        record = {"id": "a", "messages": [{"role": "user", "content": "hm"}], "meta": {"simulator": simulator}}
        (tmp_path / place).write_text(json.dumps(record) + "\n")

    write("03_simulation/realchat.jsonl", "usergpt")
    write("03_simulation/beside/roleplay/realchat.jsonl", "usergpt")
    found, line = going_on.simulated_in(tmp_path)
    assert list(found) == ["usergpt"]
    assert line.startswith("3 of 4 kinds of whole conversations are missing: base (") and "\n" not in line
    assert "responder (03_simulation/beside/roleplay/realchat.jsonl holds those of usergpt)" in line
    write("03_simulation/beside/roleplay/realchat.jsonl", "roleplay")
    assert list(going_on.simulated_in(tmp_path)[0]) == ["usergpt", "responder"]


def test_the_stage_reads_every_file_that_is_looked_at():
    places = [place for place, _ in going_on.WHERE.values()]
    assert all(any(fnmatch.fnmatch(p, read) for read in stage_by_number("06").reads) for p in places)


# ---------------------------------------------------------------- of one conversation


def test_repeats_are_of_ones_own_earlier_turns():
    assert going_on.repeats(talk("red apples", "red apples")) == 1.0
    assert going_on.repeats(talk("red apples", "blue birds", "apples birds red")) == pytest.approx((0 + 2 / 3) / 2)
    assert math.isnan(going_on.repeats(talk("red apples")))


def test_entrainment_counts_content_words_of_the_answer_before():
    said = talk("what is it", "tell me more about tulips and frost", before=["", "Tulips like frost."])
    assert going_on.entrainment(said) == pytest.approx(2 / 3)  # tell, tulips, frost; the others are stop words


def test_drift_is_the_distance_from_turn_to_turn():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert going_on.drift(talk("a", "b", "c"), vectors) == pytest.approx(0.5)
    assert going_on.drift(talk("a", "b", "c", given=2), vectors) == pytest.approx(1.0)


def test_turns_that_answer_as_the_assistant():
    turns = ("How can I assist you today?", "what is rain", "Sure, here is a poem")
    assert going_on.as_assistant(talk(*turns)) == pytest.approx(2 / 3)
    assert going_on.as_assistant(talk(*turns, given=1)) == 0.5
    assert math.isnan(going_on.as_assistant(talk("hm", given=1)))


# ---------------------------------------------------------------- of many


def test_the_hazard_leaves_out_what_is_not_known():
    talks = [talk("a", ended=True), talk("a"), *[talk("a", "b", ended=True)] * 2, talk("a", "b", "c")]
    table = going_on.hazard(talks, 3, seed=1)
    assert table["round"].tolist() == [1, 2]
    assert table.known.tolist() == [4, 3] and table.ended.tolist() == [1, 2]
    assert table.hazard.tolist() == pytest.approx([1 / 4, 2 / 3])
    assert (table.ci_low <= table.hazard).all() and (table.hazard <= table.ci_high).all()


def test_rounds_that_a_limit_cut_off_count_as_far_as_they_are_known():
    everyone = np.arange(4)
    assert going_on.expected_rounds([talk("a", "b", "c")] * 4, everyone, 3) == 3
    assert going_on.expected_rounds([talk("a", ended=True)] * 4, everyone, 3) == 1
    # Two stop after one round, one is cut off then: of the three whose first round's end is known two ended.
    mixed = [talk("a", ended=True)] * 2 + [talk("a"), talk("a", "b", "c")]
    assert going_on.expected_rounds(mixed, everyone, 3) == pytest.approx(1 + 1 / 3 + 1 / 3)
