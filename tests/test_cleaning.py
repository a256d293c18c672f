from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning import (
    EXAMPLES_KEPT,
    Outcome,
    Step,
    alternate,
    ascii_or_translation,
    content_digest,
    each,
    exact_duplicates,
    no_product_names,
    no_reserved_tokens,
    one_per_session,
    paper_steps,
    run_funnel,
    split_by_session,
    two_messages,
    unit_hash,
    without_interface_residue,
)
from realm.conversation import Conversation, Message

RESERVED = ["<|im_start|>", "<|im_end|>", "<s>"]
SESSIONS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=4), st.integers(0, 3)), max_size=40, unique=True)


def conversation(*turns: tuple[str, str], id: str = "c") -> Conversation:
    return Conversation(id, tuple(Message(role, content) for role, content in turns))


def contents(outcome: Outcome) -> list[str]:
    (kept,) = outcome.kept
    return [m.content for m in kept.messages]


# ---------------------------------------------------------------- rules


def test_an_alternating_conversation_stays_as_it_is(talk):
    whole = talk("q", "a", "q2")
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
        ([("user", "q"), ("assistant", " \n")], "empty turn"),
        ([("user", ""), ("assistant", "a")], "empty turn"),
        ([("user", "q"), ("user", "q")], "turns do not alternate"),
        ([("user", "q"), ("assistant", "a"), ("assistant", "b")], "turns do not alternate"),
        ([("user", "q"), ("tool", "t")], "turns do not alternate"),
    ],
)
def test_what_does_not_alternate_goes_with_a_reason(turns, reason):
    assert alternate(conversation(*turns)) == Outcome([], reason)


def test_blanks_around_turns_go():
    assert contents(alternate(conversation(("user", "\n q \n"), ("assistant", "\ta")))) == ["q", "a"]


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.sampled_from(["", " x ", "y"])), min_size=1)
)
def test_what_comes_out_alternates_from_a_user_turn(turns):
    for kept in alternate(conversation(*turns)).kept:
        assert all(m.role == ("user", "assistant")[i % 2] for i, m in enumerate(kept.messages))
        assert all(m.content == m.content.strip() != "" for m in kept.messages)


@pytest.mark.parametrize(
    ("answer", "clean"),
    [
        ("<p>Hello <strong>you</strong></p>", "Hello you"),
        ("<div class='markdown prose'>Hello</div>", "Hello"),
        ("python\nCopy code\nprint(1)", "python\nprint(1)"),
        ("2 / 2\nHello", "Hello"),
        ("Hello\n\nShare Prompt", "Hello"),
    ],
)
def test_markup_and_captions_leave_answers(talk, answer, clean):
    outcome = without_interface_residue(talk("q", answer))
    assert contents(outcome) == ["q", clean]
    assert outcome.reason == "markup or button captions removed"


@pytest.mark.parametrize(
    "answer",
    ["if a < b and b > c", "vector<int> x", "I'll copy code for you", "page 2 / 2 of it", "<preface>", "a <3 you"],
)
def test_other_answers_stay(talk, answer):
    assert without_interface_residue(talk("q", answer)) == Outcome([talk("q", answer)])


FENCED = "Like this:\n```html\n<div><p>hi</p></div>\n```"


@pytest.mark.parametrize("answer", [FENCED, "Use the `<br>` tag."])
def test_code_in_answers_stays(talk, answer):
    assert contents(without_interface_residue(talk("q", answer))) == ["q", answer]


@pytest.mark.parametrize("answer", ["one<br>two", "<p>one</p><p>two</p>", "<td>one</td><td>two</td>"])
def test_words_do_not_grow_together(talk, answer):
    assert contents(without_interface_residue(talk("q", answer)))[1].split() == ["one", "two"]


def test_what_a_human_typed_stays(talk):
    typed = "<div>why?</div>\nCopy code\n1 / 2"
    assert contents(without_interface_residue(talk(typed, "<p>so</p>", typed))) == [typed, "so", typed]


def test_an_answer_of_markup_alone_stays_rather_than_becoming_empty(talk):
    assert contents(without_interface_residue(talk("q", "<br>"))) == ["q", "<br>"]


@pytest.mark.parametrize("name", ["OpenAI", "openai", "ChatGPT", "Chat GPT", "OPEN AI"])
@pytest.mark.parametrize("side", [0, 1])
def test_product_names_on_either_side_drop_the_conversation(talk, name, side):
    turns = ["who are you?", "an assistant"]
    turns[side] += f" of {name}."
    assert no_product_names(talk(*turns)) == Outcome([], "names OpenAI or ChatGPT")


def test_other_names_stay(talk):
    assert no_product_names(talk("open a chat", "gpt")).kept


@pytest.mark.parametrize(
    ("turns", "kept", "reason"),
    [
        (("plain", "text\x7f"), True, ""),
        (("plain", "café"), False, "a character from U+0080 on"),
        (("\x80", "x"), False, "a character from U+0080 on"),
        (("Translate: café", "coffee"), True, "kept as a translation task"),
        (("and the TRANSLATION?", "café"), True, "kept as a translation task"),
        (("what?", "I translate: café"), False, "a character from U+0080 on"),
    ],
)
def test_the_papers_english_rule(talk, turns, kept, reason):
    outcome = ascii_or_translation(talk(*turns))
    assert (bool(outcome.kept), outcome.reason) == (kept, reason)


@pytest.mark.parametrize("token", RESERVED)
@pytest.mark.parametrize("side", [0, 1])
def test_a_spelled_reserved_token_drops_the_conversation(talk, token, side):
    turns = ["q", "a"]
    turns[side] = f"x{token}y"
    assert no_reserved_tokens(RESERVED)(talk(*turns)) == Outcome([], "spells a reserved token")


def test_reserved_tokens_are_text_not_patterns(talk):
    assert no_reserved_tokens(RESERVED)(talk("im_start or |im_end|", "<S> < s >")).kept


def test_with_nothing_reserved_everything_stays(talk):
    assert no_reserved_tokens([])(talk("q", "a")).kept


def test_one_message_is_no_conversation(talk):
    assert two_messages(talk("q")) == Outcome([], "one message")
    assert two_messages(talk("q", "a")).kept


# ---------------------------------------------------------------- duplicates


def test_the_second_of_two_equals_goes_whatever_its_id(talk):
    outcomes = exact_duplicates([talk("q", "a", id="1"), talk("q", "b"), talk("q", "a", id="2", meta={"k": 1})])
    assert [o.reason for o in outcomes] == ["", "", "exact duplicate"]
    assert outcomes[0].kept[0].id == "1"


def test_equal_texts_of_other_roles_are_no_duplicates(talk):
    assert all(o.kept for o in exact_duplicates([talk("x", "y"), talk("x", "y", first="assistant")]))


def test_texts_cut_differently_are_no_duplicates(talk):
    assert content_digest(talk("ab", "c")) != content_digest(talk("a", "bc"))
    assert content_digest(talk("a", "b", "c")) != content_digest(talk("a", "b c"))


def test_duplicates_are_forgotten_between_runs(talk):
    step = Step("no exact duplicates", exact_duplicates)
    for _ in range(2):
        assert len(run_funnel([talk("q", "a")], [step])[0]) == 1


# ---------------------------------------------------------------- the funnel


def halves(conversations: list[Conversation]) -> list[list[Conversation]]:
    """Stands for the split by tokens: four messages become two and two."""
    return [
        [c]
        if len(c.messages) < 4
        else [
            replace(c, id=f"{c.id}/{i}", messages=c.messages[2 * i : 2 * i + 2], meta={"session": c.session})
            for i in range(2)
        ]
        for c in conversations
    ]


TURN = st.tuples(
    st.sampled_from(["user", "assistant", "system"]),
    st.sampled_from(["q", "a", "", "é", "translate é", "<p>x</p>", "ChatGPT", "<s>", "Copy code\nx"]),
)


@given(st.lists(st.lists(TURN, min_size=1, max_size=5), max_size=8))
def test_every_conversation_is_accounted_for(drawn):
    made = [conversation(*turns, id=f"s_{i}") for i, turns in enumerate(drawn)]
    left, reports = run_funnel(made, paper_steps(RESERVED, halves))
    expected_in = len(made)
    for report in reports:
        assert report.conversations_in == expected_in
        if report.step != "split at max_length":
            dropped = sum(report.reasons.values()) - report.changed
            assert report.conversations_in == report.conversations_out + dropped
        expected_in = report.conversations_out
    assert expected_in == len(left)
    assert len({content_digest(c) for c in left}) == len(left)


def test_the_papers_steps_come_in_its_order(talk):
    steps = [step.name for step in paper_steps(RESERVED, halves)]
    assert (
        steps.index("markup removed") < steps.index("English by the paper's rule") < steps.index("split at max_length")
    )
    assert steps[-2:] == ["two messages or more", "no exact duplicates"]


def test_a_step_reports_changes_drops_sessions_and_examples(talk):
    made = [talk("q", f"<p>{i}</p>", id=f"s_{i}") for i in range(5)] + [talk("q", "ChatGPT", id="t_0")]
    left, (markup, names) = run_funnel(
        made, [Step("m", each(without_interface_residue)), Step("n", each(no_product_names))]
    )
    assert (markup.conversations_in, markup.conversations_out, markup.changed) == (6, 6, 5)
    assert markup.examples == [f"s_{i}" for i in range(EXAMPLES_KEPT)]
    assert (names.conversations_out, names.sessions_out, names.changed) == (5, 1, 0)
    assert names.reasons == {"names OpenAI or ChatGPT": 1}
    assert names.row()["why"] == "names OpenAI or ChatGPT: 1"
    assert len(left) == 5


def test_a_split_shows_in_the_report(talk):
    left, reports = run_funnel([talk("a", "b", "c", "d", id="s_0")], [paper_steps(RESERVED, halves)[5]])
    assert [c.id for c in left] == ["s_0/0", "s_0/1"]
    assert (reports[0].reasons, reports[0].conversations_out, reports[0].sessions_out) == ({"split": 1}, 2, 1)


def test_a_step_that_loses_count_is_an_error(talk):
    with pytest.raises(ValueError, match="zip"):
        run_funnel([talk("q"), talk("r")], [Step("broken", lambda conversations: [Outcome([])])])


def test_the_input_is_left_alone(talk):
    made = [talk(" q ", "<p>a</p>")]
    run_funnel(made, paper_steps(RESERVED, halves))
    assert made == [talk(" q ", "<p>a</p>")]


# ---------------------------------------------------------------- train, valid and test


def of_sessions(pairs: list[tuple[str, int]]) -> list[Conversation]:
    return [conversation(("user", "q"), ("assistant", "a"), id=f"{session}_{n}") for session, n in pairs]


@given(SESSIONS, st.integers(0, 5))
def test_no_session_stands_on_two_sides_and_none_is_lost(pairs, seed):
    made = of_sessions(pairs)
    sides = split_by_session(made, 0.3, 0.3, seed)
    names = [{c.session for c in side} for side in sides.values()]
    assert sum(map(len, names)) == len(set.union(*names))
    assert sorted(c.id for side in sides.values() for c in side) == sorted(c.id for c in made)
    assert sides == split_by_session(made, 0.3, 0.3, seed)


@given(SESSIONS, SESSIONS, st.integers(0, 5))
def test_more_data_move_nobody(pairs, more, seed):
    before = split_by_session(of_sessions(pairs), 0.3, 0.3, seed)
    after = split_by_session(of_sessions(more + pairs), 0.3, 0.3, seed)
    for side in before:
        assert {c.session for c in before[side]} <= {c.session for c in after[side]}


def test_segments_follow_their_session(talk):
    made = [talk("q", id="s_1/0", meta={"session": "s"}), talk("q", id="s_4"), talk("q", id="s")]
    assert sorted(map(len, split_by_session(made, 0.3, 0.3, 0).values())) == [0, 0, 3]


def test_shares_are_of_sessions():
    made = of_sessions([(f"s{i}", 0) for i in range(4_000)])
    sides = split_by_session(made, 0.1, 0.2, seed=1)
    assert len(sides["valid"]) == pytest.approx(400, rel=0.2)
    assert len(sides["test"]) == pytest.approx(800, rel=0.2)


def test_the_seed_decides_who_goes_where():
    made = of_sessions([(f"s{i}", 0) for i in range(50)])
    assert split_by_session(made, 0.3, 0.3, 0) != split_by_session(made, 0.3, 0.3, 1)


def test_a_larger_test_share_keeps_the_smaller_one():
    made = of_sessions([(f"s{i}", 0) for i in range(200)])
    small = split_by_session(made, 0.1, 0.1, 0)["test"]
    assert {c.id for c in small} <= {c.id for c in split_by_session(made, 0.1, 0.3, 0)["test"]}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_unit_hash_lies_between_0_and_1(text):
    assert 0 <= unit_hash(text) < 1
    assert unit_hash(text) == unit_hash(text)


@given(SESSIONS, st.randoms())
def test_one_per_session_takes_the_first_and_orders_by_seed(pairs, random):
    made = of_sessions(pairs)
    chosen = one_per_session(made, seed=3)
    first = {}
    for c in made:
        first.setdefault(c.session, c)
    assert {c.session: c for c in chosen} == first
    assert len(chosen) == len(first)
    shuffled = made[:]
    random.shuffle(shuffled)
    assert [c.session for c in one_per_session(shuffled, seed=3)] == [c.session for c in chosen]
