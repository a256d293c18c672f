from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.duplicates import CLUSTER, content_digest
from realm.cleaning.funnel import Outcome, run_funnel
from realm.cleaning.presets import (
    alternate,
    no_product_names,
    no_reserved_tokens,
    steps,
    teaches_the_user,
    two_messages,
)
from realm.conversations.conversation import CONTEXT, ENDS_SESSION, Conversation, Message
from realm.conversations.sessions import ANOTHER
from realm.dialogue.encoder import IGNORED, Encoder
from realm.dialogue.format import chat_format

RESERVED = ["<|im_start|>", "<|im_end|>", "<s>"]
PRESETS = ["paper", "fixed"]


def conversation(*turns: tuple[str, str], id: str = "c", **meta) -> Conversation:
    return Conversation(id, tuple(Message(role, content) for role, content in turns), meta)


def contents(outcome: Outcome) -> list[str]:
    (kept,) = outcome.kept
    return [m.content for m in kept.messages]


@pytest.fixture(scope="module")
def steps_of(byte_level):
    def build(
        preset: str, max_length: int = 120, replace_private_data: bool = True, marks: dict | None = None, **options
    ):
        chat = chat_format("chatml", byte_level)
        encoder = Encoder(byte_level, chat, "user", max_length, system=None, **(marks or {}))
        options = {"near_duplicate_threshold": 0.7, "replace_private_data": replace_private_data, **options}
        return steps(preset, encoder, **options)

    return build


# ---------------------------------------------------------------- rules


def test_an_alternating_conversation_stays_as_it_is(talk):
    whole = talk("q", "a", "q2", meta={ENDS_SESSION: True})
    assert alternate(whole) == Outcome([whole])


def test_system_turns_and_leading_answers_are_taken_off_and_told():
    outcome = alternate(
        conversation(("system", "s"), ("assistant", "x"), ("user", "q"), ("system", "t"), ("assistant", "a"))
    )
    assert contents(outcome) == ["q", "a"]
    assert outcome.reason == "leading answer or system turn taken off"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("assistant", "a")], "no user turn"),
        ([("system", "s")], "no user turn"),
        ([("user", ""), ("assistant", "a")], "empty turn"),
        ([("assistant", "a"), ("user", " \n")], "empty turn"),
    ],
)
def test_what_has_no_beginning_goes_with_a_reason(turns, reason):
    assert alternate(conversation(*turns)) == Outcome([], reason)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("user", "q"), ("assistant", " \n")], "cut off: empty turn"),
        ([("user", "q"), ("assistant", ""), ("user", "r"), ("assistant", "b")], "cut off: empty turn"),
        ([("user", "q"), ("user", "q")], "cut off: turns do not alternate"),
        ([("user", "q"), ("tool", "t"), ("assistant", "a")], "cut off: turns do not alternate"),
    ],
)
def test_what_follows_a_wrong_turn_is_cut_off_and_no_end_is_claimed(turns, reason):
    outcome = alternate(conversation(*turns, **{ENDS_SESSION: True, "model": "m"}))
    assert outcome == Outcome([conversation(("user", "q"), model="m")], reason)


def test_blanks_around_turns_go():
    assert contents(alternate(conversation(("user", "\n q \n"), ("assistant", "\ta")))) == ["q", "a"]


ROLE = st.sampled_from(["user", "assistant", "system"])


@given(st.lists(st.tuples(ROLE, st.sampled_from(["", " x ", "y"])), min_size=1))
def test_what_comes_out_alternates_from_a_user_turn(turns):
    whole = conversation(*turns, **{ENDS_SESSION: True})
    outcome = alternate(whole)
    for kept in outcome.kept:
        assert all(m.role == ("user", "assistant")[i % 2] for i, m in enumerate(kept.messages))
        assert all(m.content == m.content.strip() != "" for m in kept.messages)
        assert (ENDS_SESSION in kept.meta) is not outcome.reason.startswith("cut off")
        if ENDS_SESSION in kept.meta:
            last = [t for t in turns if t[0] != "system"][-1]
            assert (kept.messages[-1].role, kept.messages[-1].content) == (last[0], last[1].strip())
    assert outcome.kept or outcome.reason


@pytest.mark.parametrize("name", ["OpenAI", "openai", "ChatGPT", "Chat GPT", "OPEN AI", "openai_key"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("after", [".", " here", ""])
def test_product_names_on_either_side_drop_the_conversation(talk, name, side, after):
    texts = ["who are you?", "an assistant"]
    texts[side] += f" of {name}{after}"
    assert no_product_names(talk(*texts)) == Outcome([], "names OpenAI or ChatGPT")


@pytest.mark.parametrize("text", ["open a chat", "open air, open aisle", "gpt", "reopen air"])
def test_other_names_stay(talk, text):
    assert no_product_names(talk(text, "a")).kept


@pytest.mark.parametrize("token", RESERVED)
@pytest.mark.parametrize("side", [0, 1])
def test_a_spelled_reserved_token_drops_the_conversation(talk, token, side):
    texts = ["q", "a"]
    texts[side] = f"x{token}y"
    assert no_reserved_tokens(RESERVED)(talk(*texts)) == Outcome([], "spells a reserved token")


def test_reserved_tokens_are_text_not_patterns(talk):
    assert no_reserved_tokens(RESERVED)(talk("im_start or |im_end|", "<S> < s >")).kept


def test_with_nothing_reserved_everything_stays(talk):
    assert no_reserved_tokens([])(talk("q", "a")).kept


def test_one_message_is_no_conversation(talk):
    assert two_messages(talk("q")) == Outcome([], "one message")
    assert two_messages(talk("q", "a")).kept


def test_a_segment_without_a_human_turn_goes(talk, byte_level):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", 120, system=None)
    answer = talk("a", first="assistant", meta={ENDS_SESSION: True})
    assert teaches_the_user(encoder)(answer) == Outcome([], "no human turn")
    assert teaches_the_user(encoder)(talk("a", "q", first="assistant")).kept
    learns = Encoder(byte_level, chat_format("chatml", byte_level), "user", 120, system=None, ending=True)
    assert teaches_the_user(learns)(talk("a", first="assistant")) == Outcome([], "no human turn")
    assert teaches_the_user(learns)(answer).reason == "no human turn: kept as the place of an ending"


# ---------------------------------------------------------------- presets

ORDER = {
    "paper": [
        "segments joined to sessions",
        "markup converted, product names dropped",
        "English by the paper's rule",
        "alternating turns",
        "no reserved tokens",
        "split at max_length",
        "two messages or more",
        "no exact duplicates",
        "near-duplicates marked",
    ],
    "fixed": [
        "segments joined to sessions",
        "HTML answers to Markdown",
        "page captions removed",
        "alternating turns",
        "no product names",
        "human turns in English",
        "no reserved tokens",
        "private data replaced",
        "no exact duplicates",
        "no near-duplicates",
        "split at max_length",
        "a human turn or an ending in each segment",
    ],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_steps_of_a_preset_and_their_order(steps_of, preset):
    assert [step.name for step in steps_of(preset)] == ORDER[preset]


def test_private_data_stay_where_the_profile_says_so(steps_of, talk):
    names = [step.name for step in steps_of("fixed", replace_private_data=False)]
    assert names == [name for name in ORDER["fixed"] if name != "private data replaced"]
    made = [talk("my mail is a@b.org", "ok")]
    assert run_funnel(made, steps_of("fixed"))[0][0].turns("user") == ["my mail is [EMAIL]"]
    assert run_funnel(made, steps_of("fixed", replace_private_data=False))[0][0].turns("user") == ["my mail is a@b.org"]


TEXT = ["q", "a", "", "é", "translate é", "<p>x</p>", "ChatGPT", "<s>", "python\nCopy code\nx", "mail a@b.org"]
TURN = st.tuples(ROLE, st.sampled_from([*TEXT, "word " * 40, "long " * 200]))
SESSIONS = st.lists(st.lists(TURN, min_size=1, max_size=6), max_size=6)


@given(SESSIONS, st.sampled_from(PRESETS), st.booleans())
def test_every_conversation_is_accounted_for_and_a_second_run_is_equal(steps_of, drawn, preset, one_session):
    made = [conversation(*turns, id=f"s_{i}" if one_session else f"s{i}_0") for i, turns in enumerate(drawn)]
    before = copy.deepcopy(made)
    left, reports = run_funnel(made, steps_of(preset))
    assert made == before
    expected = len(made)
    for report in reports:
        assert report.segments_in == expected
        dropped = sum(report.reasons.values()) - report.changed
        grown = report.segments_out - (report.segments_in - dropped)
        assert grown == 0 or (report.step == "split at max_length" and grown > 0)
        expected = report.segments_out
    assert expected == len(left)
    again, reports_again = run_funnel(made, steps_of(preset))
    assert again == left
    assert [(r.reasons, r.found, r.examples) for r in reports_again] == [
        (r.reasons, r.found, r.examples) for r in reports
    ]


@given(SESSIONS, st.sampled_from(PRESETS))
def test_what_is_left_fits_the_promises(steps_of, byte_level, drawn, preset):
    left, _ = run_funnel([conversation(*t, id=f"s{i}_0") for i, t in enumerate(drawn)], steps_of(preset))
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", 120, system=None)
    assert all(m.content.strip() for c in left for m in c.messages)
    if preset == "fixed":
        assert len({content_digest(c) for c in left if "/" not in c.id}) == len([c for c in left if "/" not in c.id])
        assert all(c.turns("user") for c in left)
        assert all(len(c.messages) == 1 or not encoder.encode(c).cut for c in left)
    else:
        assert all(len(c.messages) >= 2 for c in left)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_keeps_nothing_between_two_runs(steps_of, talk, preset):
    of_preset = steps_of(preset)
    made = [talk("a question", "an answer", id=f"s{i}_0") for i in range(3)]
    assert run_funnel(made, of_preset)[0] == run_funnel(made, of_preset)[0] != []


def test_examples_show_a_conversation_before_and_after(steps_of, talk):
    _, reports = run_funnel([talk("q", "<p>Hi</p>", id="s_0")], steps_of("fixed"))
    (example,) = reports[1].examples
    assert (example.reason, example.before.turns("assistant")) == ("answer converted from HTML", ["<p>Hi</p>"])
    assert example.after[0].turns("assistant") == ["Hi"]


def test_unknown_ends_reach_the_joining(steps_of, talk):
    made = [talk("q", "a", id="s_0"), talk("r", "b", id="t_0")]
    left, _ = run_funnel(made, steps_of("fixed", cut_after={0}))
    assert [ENDS_SESSION in c.meta for c in left] == [False, True]


def test_the_paper_marks_near_duplicates_and_the_default_drops_them(steps_of, talk):
    long = "tell me how the old bridge over the river was built and by whom it was paid for in the end "
    made = [talk(long * 2, "ok", id="s_0"), talk(long * 2 + "please", "ok", id="t_0")]
    paper, fixed = (run_funnel(made, steps_of(preset, max_length=400))[0] for preset in PRESETS)
    assert [c.meta[CLUSTER] for c in paper] == ["t_0", "t_0"]
    assert [c.id for c in fixed] == ["t_0"]


def test_turns_that_the_papers_split_loses_are_told(steps_of, talk):
    made = [talk("word " * 200, id="s_0"), talk("q", "a", "the last word", id="t_0"), talk("q", "a", id="u_0")]
    split = next(s for s in steps_of("paper") if s.name == "split at max_length")
    assert [o.reason for o in split.apply(made)] == ["no segment left", "turns lost", ""]


def test_the_default_split_loses_no_turn(steps_of, talk):
    whole = talk(*(f"turn {i} " * 8 for i in range(9)), id="s_0", meta={ENDS_SESSION: True})
    split = next(s for s in steps_of("fixed") if s.name == "split at max_length")
    (outcome,) = split.apply([whole])
    assert len(outcome.kept) > 1 and outcome.reason == "split"
    assert tuple(m for c in outcome.kept for m in c.messages) == whole.messages
    assert [ENDS_SESSION in c.meta for c in outcome.kept] == [False] * (len(outcome.kept) - 1) + [True]


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(SIZES, st.sampled_from([0, 8, 24]), st.sampled_from([40, 60, 120]))
def test_every_known_end_after_an_answer_stays_to_be_learned(steps_of, byte_level, sizes, context, max_length):
    """However long the last answers are: one row of each such session ends with the human's end token alone."""
    marks = {"ending": True, "context": context if 2 * context <= max_length else 0}
    turns = [(("user", "assistant")[i % 2], f"{i} " + "word " * size) for i, size in enumerate(sizes)]
    left, _ = run_funnel([conversation(*turns, id="s")], steps_of("fixed", max_length, marks=marks))
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", max_length, system=None, **marks)
    rows = [encoder.encode(c) for c in left if c.meta.get(ENDS_SESSION) and c.messages[-1].role == "assistant"]
    assert len(rows) == int(len(sizes) % 2 == 0)
    end = byte_level.convert_tokens_to_ids("<|im_end|>")
    for row in rows:
        assert not row.cut
        last = np.flatnonzero(row.labels != IGNORED)[-1]
        assert row.labels[last] == end and row.labels[last - 1] == IGNORED


def test_an_ending_alone_looks_like_any_segment_from_within(steps_of, talk):
    """Were its answer longer than what others show of theirs, length would tell that it is the last."""
    whole = talk("q", "word " * 300, "q2 " * 30, "word " * 300, id="s_0")
    left, reports = run_funnel([whole], steps_of("fixed", marks={"ending": True, "context": 20}))
    inside = [c for c in left if CONTEXT in c.meta]
    assert [len(c.turns("user")) for c in inside] == [1, 0]
    assert [c.meta[CONTEXT] for c in inside] == [1, 1]
    assert len({len(c.messages[0].content) for c in inside}) == 1
    assert not any(c.opens_session for c in inside)
    assert reports[-1].reasons == {"no human turn": 1, "no human turn: kept as the place of an ending": 1}


def test_numbered_unrelated_talks_and_repeated_ids_pass_the_funnel_as_they_came(steps_of, talk):
    topics = ["pears", "rust", "chess", "wool", "trains", "valleys"]
    made = [talk(f"what about {t}?", f"much about {t}.", id=f"conv_{i}") for i, t in enumerate(topics)]
    made += [talk(f"and {t}?", f"less about {t}.", id="0") for t in topics[:2]]
    left, reports = run_funnel(made, steps_of("fixed", near_duplicate_threshold=1.0))
    assert [c.messages for c in left] == [c.messages for c in made]
    assert all(c.meta[ENDS_SESSION] and c.opens_session for c in left)
    assert (reports[0].sessions_in, reports[0].sessions_out) == (8, 8)
    assert reports[0].reasons == {ANOTHER: 1}


def test_marks_that_a_file_brings_are_not_taken_for_ours(steps_of, talk):
    brought = {"context": "a talk", "near_duplicates": ["x"], "session": "morning", "segments": "none", "goes_on": 1}
    made = [talk("what about pears?", "much.", id=f"a{i}", meta=dict(brought)) for i in range(2)]
    made += [talk("what about rust?", "much.", id="b", meta={"place_in_session": "Berlin", "context_turns": "two"})]
    for preset in PRESETS:
        left, _ = run_funnel(made, steps_of(preset))
        assert [c.session for c in left] == ["a0", "b"]
        assert all(c.opens_session for c in left)
