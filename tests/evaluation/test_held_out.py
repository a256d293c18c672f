"""A planted leak of each kind is refused, and what training saw is read from its manifests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from realm.cleaning.duplicates import CLUSTER
from realm.conversations.conversation import SESSION, Conversation, Message
from realm.conversations.writers import write_conversations
from realm.core.files import ArtefactError, file_sha256, write_json
from realm.core.manifest import TRAINED_ON
from realm.evaluation.held_out import LeakError, Seen, held_out, require_held_out, seen_by_training

QUESTION = "Could you please tell me how bees find their way home in the evening?"
ANSWER = "They learn landmarks around the hive and keep the angle to the sun in mind as they fly."


def talk(name: str, question: str, answer: str, **meta) -> Conversation:
    session = {SESSION: name.partition("_")[0]}
    return Conversation(name, (Message("user", question), Message("assistant", answer)), session | meta)


TRAINED = [talk("a_0", QUESTION, ANSWER, **{CLUSTER: "bees"}), talk("b_0", "Go on.", "You are welcome.")]
CLEAN = talk("z_0", "Which wood is best for a small boat that carries two people?", "Cedar: light, and slow to rot.")
LEAKS = {
    "session": replace(CLEAN, id="a_7", meta={SESSION: "a"}),
    "near-duplicate": replace(CLEAN, meta={CLUSTER: "bees"}),
    "turn of the human": talk("y_0", QUESTION.upper().replace(" ", "  "), "Something else."),
    "turn of the assistant": talk("x_0", "And how do they do it?", ANSWER),
}


@pytest.fixture
def seen():
    seen = Seen()
    seen.add(TRAINED, "01_data/train.jsonl")
    return seen


@pytest.mark.parametrize("kind", LEAKS)
def test_a_planted_leak_is_refused_by_name(seen, kind):
    with pytest.raises(LeakError) as refused:
        require_held_out([CLEAN, LEAKS[kind]], seen)
    assert str(refused.value).startswith(f"{LEAKS[kind].id}: ")
    assert kind.split()[0] in str(refused.value) and "01_data/train.jsonl" in str(refused.value)


def test_what_was_not_seen_may_be_evaluated(seen):
    require_held_out([CLEAN, talk("c_0", "Go on.", "You are welcome.")], seen)  # what people repeat tells nothing


def test_conversations_that_share_a_turn_are_set_aside_and_counted(seen):
    shared = [LEAKS["near-duplicate"], LEAKS["turn of the human"], LEAKS["turn of the assistant"]]
    assert held_out([shared[0], CLEAN, *shared[1:]], seen) == ([CLEAN], 3)


def test_a_session_on_both_sides_is_no_count_but_an_error(seen):
    with pytest.raises(LeakError, match=r"a_7: its session a is in 01_data/train.jsonl; the splits .* do not hold"):
        held_out([CLEAN, LEAKS["session"]], seen)


@pytest.fixture
def run_folder(tmp_path):
    """Two finished stages: one was trained on the split, the other on what was simulated."""
    for stage, name, held in (
        ("02_usergpt_sft", "01_data/train.jsonl", TRAINED),
        ("04_realm_sft", "03_simulation/realchat.jsonl", [LEAKS["turn of the assistant"]]),
    ):
        write_conversations(tmp_path / name, held)
        write_json(tmp_path / stage / "manifest.json", {TRAINED_ON: {name: file_sha256(tmp_path / name)}})
    write_json(tmp_path / "01_data" / "manifest.json", {TRAINED_ON: {}})
    return tmp_path


def test_manifests_say_what_each_stage_was_trained_on(run_folder):
    seen = seen_by_training(run_folder, ["01_data", "02_usergpt_sft", "04_realm_sft"])
    assert seen.sessions == {
        "a": "01_data/train.jsonl",
        "b": "01_data/train.jsonl",
        "x": "03_simulation/realchat.jsonl",
    }
    assert seen_by_training(run_folder, ["01_data"]).sessions == {}


def test_a_file_that_changed_since_training_is_told(run_folder):
    write_conversations(run_folder / "01_data" / "train.jsonl", [CLEAN])
    with pytest.raises(ArtefactError, match="not the file that 02_usergpt_sft was trained on"):
        seen_by_training(run_folder, ["02_usergpt_sft"])


def test_a_stage_that_did_not_run_is_named(run_folder):
    with pytest.raises(ArtefactError, match=r"03_simulation/manifest.json: missing"):
        seen_by_training(run_folder, ["03_simulation"])
