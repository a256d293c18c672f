from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.duplicates import CLUSTER, content_digest
from realm.cleaning.funnel import Outcome, run_funnel
from realm.cleaning.presets import alternate, has_human_turn, no_product_names, no_reserved_tokens, steps, two_messages
from realm.conversations.conversation import ENDS_SESSION, Conversation, Message
from realm.dialogue.encoder import Encoder
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
    def build(preset: str, max_length: int = 120, replace_private_data: bool = True, **options):
        encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", max_length, system=None)
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


def test_a_segment_without_a_human_turn_goes(talk):
    assert has_human_turn(talk("a", first="assistant")) == Outcome([], "no human turn")
    assert has_human_turn(talk("a", "q", first="assistant")).kept


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
        "a human turn in each segment",
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
    left, _ = run_funnel(made, steps_of("fixed", no_end={"s"}))
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
