from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.authors import (
    ascii_or_translation,
    markdown_of,
    markup_and_names,
    same_text_duplicates,
    slips,
    split_turns,
)
from realm.cleaning.funnel import Outcome
from realm.conversations.conversation import Conversation, Message

SPEAKERS = ("user", "assistant")


# ---------------------------------------------------------------- markup and names


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("plain words", "plain words"),
        ("<p>Hello <strong>you</strong></p>", "Hello **you**"),
        ("<div class='x'>Hello</div>", "Hello"),
        ("2 / 2Hello", "Hello"),
        ("```pythonCopy codeprint(1)```", "```python\nprint(1)\n```"),
        ("Copy12 chars / 3 wordsHello", "Hello"),
        ("snake_case", "snake\\_case"),
        ("vector<int> x", "vector x"),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_everything_goes_through_the_converter(talk, text, altered):
    assert markdown_of(text) == altered
    outcome = markup_and_names(talk(text, text))
    assert [m.content for m in outcome.kept[0].messages] == [altered, altered]
    assert outcome.reason == ("text altered by the conversion" if text != altered else "")


def test_sessions_of_one_message_go(talk):
    assert markup_and_names(talk("q")) == Outcome([], "one message")


@pytest.mark.parametrize("name", ["OpenAI", "openai", "ChatGPT", "my_chatgpt_key"])
@pytest.mark.parametrize("side", [0, 1])
def test_names_on_either_side_drop_the_session(talk, name, side):
    contents = ["who are you?", "an assistant"]
    contents[side] += f" of {name}."
    assert markup_and_names(talk(*contents)) == Outcome([], "names OpenAI or ChatGPT")


def test_names_in_two_words_stay(talk):
    assert markup_and_names(talk("open ai and chat gpt", "a")).kept


def test_markup_that_the_converter_cannot_read_is_told(talk):
    assert markup_and_names(talk("q", "<p>" * 5_000)) == Outcome([], "markup that the converter cannot read")


# ---------------------------------------------------------------- English


@pytest.mark.parametrize(
    ("contents", "kept", "reason"),
    [
        (("plain", "text\x7f"), True, ""),
        (("plain", "café"), False, "a character from U+0080 to U+FFFF"),
        (("\x80", "x"), False, "a character from U+0080 to U+FFFF"),
        (("it’s", "x"), False, "a character from U+0080 to U+FFFF"),
        (("\uffff", "x"), False, "a character from U+0080 to U+FFFF"),
        (("fine \U0001f600", "x \U00010000"), True, ""),
        (("Translate: café", "coffee"), True, "kept as a translation task"),
        (("what does translation of é mean", "x"), True, "kept as a translation task"),
        (("and the TRANSLATION?", "café"), False, "a character from U+0080 to U+FFFF"),
        (("what?", "I translate: café"), False, "a character from U+0080 to U+FFFF"),
    ],
)
def test_the_papers_english_rule(talk, contents, kept, reason):
    outcome = ascii_or_translation(talk(*contents))
    assert (bool(outcome.kept), outcome.reason) == (kept, reason)


# ---------------------------------------------------------------- splitting


def literal_split(roles: list[str], lengths: list[int], limit: int) -> list[list[int]]:
    """The algorithm as its description says it, on lists of numbers, with Python's negative index and all."""
    pieces, begin, total, place = [], 0, 0, 0
    numbers = list(range(len(roles)))
    while place < len(roles):
        stop = place if roles[place] == "user" else place + 1  # a segment never ends with a human turn
        if total + lengths[place] > limit:
            pieces.append(numbers[begin:stop])
            if roles[place] == "user":
                begin, total = place - 1, lengths[place - 1] + lengths[place]
            else:
                begin, total = place, lengths[place]
        elif place == len(roles) - 1:
            pieces.append(numbers[begin:stop])
        else:
            total += lengths[place]
        place += 1
    return pieces


@given(st.lists(st.integers(1, 30), min_size=1, max_size=14), st.integers(1, 80), st.integers(0, 1))
def test_turns_are_split_as_described(lengths, limit, first):
    roles = [SPEAKERS[(i + first) % 2] for i in range(len(lengths))]
    assert split_turns(roles, lengths, limit) == literal_split(roles, lengths, limit)


@pytest.mark.parametrize(
    ("lengths", "segments"),
    [
        ([2, 2, 2, 2], [[0, 1, 2, 3]]),
        ([2, 2, 2], [[0, 1]]),
        ([9, 9, 9, 9], [[0, 1, 2, 3]]),
        ([30, 50, 30, 20, 10, 10], [[0, 1], [1, 2, 3], [3, 4, 5]]),
        ([30, 80, 10, 10], [[0, 1], [1, 2, 3]]),
        ([200, 10], [[], [1]]),
        ([200], [[]]),
    ],
)
def test_known_splits(lengths, segments):
    roles = [SPEAKERS[i % 2] for i in range(len(lengths))]
    assert split_turns(roles, lengths, 100) == segments == literal_split(roles, lengths, 100)


# ---------------------------------------------------------------- duplicates


def test_duplicates_are_told_by_text_alone(talk):
    made = [talk("x", "y"), talk("x", "y", first="assistant"), talk("xy"), talk("z", "y")]
    assert [bool(o.kept) for o in same_text_duplicates(made)] == [True, False, False, True]
    assert same_text_duplicates(made)[1].reason == "same text as an earlier one"


# ---------------------------------------------------------------- slips

SMALL = [
    (["What’s the best way to learn to swim in summer?", "Go slowly."], [5, 5]),
    (["How do I set my_long_variable in this shell script?", "Use export."], [5, 5]),
    (["Where is the best place to see the moon rise?", "A hill."], [5, 5]),
    (["Where is the best place to see the moon rise?A hill."], [10]),
    (["How large is a very long question allowed to be?", "Not so large."], [30, 5]),
    (["Please say one, then the other thing, in that order.", "One.", "And?", "Two."], [5, 10, 8, 5]),
    (["Please tell me a very long story about two rivers.", "Once.", "More!", "So.", "Ah."], [5, 25, 5, 5, 5]),
]


def rows(limit: int = 20, prompt: int = 0) -> dict[str, int]:
    sessions = [
        Conversation(f"s{n}", tuple(Message(SPEAKERS[i % 2], text) for i, text in enumerate(texts)))
        for n, (texts, _) in enumerate(SMALL)
    ]
    table = slips(sessions, [sizes for _, sizes in SMALL], limit, prompt)
    assert all(row["of"] == len(SMALL) and row["preset fixed"] for row in table)
    return {row["the authors' code"]: row["conversations hit"] for row in table}


def test_slips_are_counted_on_a_set_where_all_are_known():
    # Turns of each segment at 20 tokens: 01 | 01 | 01 | none | none, 1 | 01, 123 | 01, 1, 123, 3
    assert rows() == {
        "English with é, £ or a curly quote dropped as foreign": 1,
        "human turns rewritten by the HTML conversion": 1,
        "human turns that hold its backslashes: this dump went through such a conversion": 0,
        "taken for a duplicate though roles differ": 1,
        "part 1 of the dump merged with itself (all again)": 7,
        "split: an empty segment": 2,
        "split: a human turn lost": 3,
        "split: a turn in two segments": 2,
        "split: a segment over max_length": 2,
        "split: over it by the prompt, which another template measures": 0,
        "mask: last token unmasked for a human turn past the cut": 1,
        "mask: a segment with nothing supervised": 2,
        "mask: the begin token, which the prompt supplies, supervised": 7,
        "training and serving prompts differ by a line break": 7,
    }


def test_with_room_for_all_only_trailing_human_turns_are_lost():
    found = {
        name: hit for name, hit in rows(1_000).items() if name.startswith(("split", "mask: a", "mask: last")) and hit
    }
    assert found == {"split: an empty segment": 1, "split: a human turn lost": 2}


def test_segments_that_fit_only_without_the_prompt_are_counted():
    # Tokens of the segments above: 10 | 10 | 10 | none | none, 5 | 15, 23 | 30, 25, 35, 5
    assert rows(20, prompt=10)["split: over it by the prompt, which another template measures"] == 1
    assert rows(20, prompt=11)["split: over it by the prompt, which another template measures"] == 4


def test_backslashes_of_an_earlier_conversion_are_counted(talk):
    made = [talk("why is my\\_variable unset", "x"), talk("a \\_ b", "x"), talk("plain my_variable", "so\\_what")]
    table = slips(made, [[1, 1]] * 3, 10, 0)
    assert next(r["conversations hit"] for r in table if "backslashes" in r["the authors' code"]) == 1


def test_progress_sees_the_sessions_and_nothing_gives_nothing():
    assert [row["conversations hit"] for row in slips([], [], 10, 0)] == [0] * 14
    seen = []
    slips([Conversation("a", (Message("user", "q"),))], [[1]], 10, 0, progress=lambda c: seen.extend(c) or c)
    assert [c.id for c in seen] == ["a"]
