"""A turn that stops in the middle, at a limit of tokens, is learned without its end: nobody stopped there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.presets import alternate
from realm.conversations.conversation import CUT_TURNS, Message
from realm.dialogue.encoder import IGNORED, Encoder
from realm.dialogue.format import chat_format
from realm.dialogue.segments import split_long, without_context

TURNS = ("What is it?", "It is a long", "And then?", "Then it ends.", "Thank")


def encoder_for(tokenizer, supervise, **values) -> Encoder:
    return Encoder(tokenizer, chat_format("chatml", tokenizer), supervise, **{"max_length": None, **values})


def ends_learned(encoder: Encoder, conversation) -> list[str]:
    """Supervised turns as they are learned: "…" stands for a missing end."""
    row = encoder.encode(conversation)
    text = encoder.tokenizer.decode([i for i in row.labels if i != IGNORED])
    end = encoder.format.ends["user"]
    turns = [m for m in conversation.messages if m.role == encoder.supervise]
    found = []
    for message in turns:
        assert text.startswith(message.content), (text, message)
        text = text.removeprefix(message.content)
        found.append(message.content + ("" if text.startswith(end) else "…"))
        text = text.removeprefix(end)
    assert text == ""
    return found


@pytest.mark.parametrize(
    ("supervise", "learned"),
    [
        ("user", ["What is it?", "And then?", "Thank…"]),
        ("assistant", ["It is a long…", "Then it ends."]),
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_end_of_a_cut_turn_is_not_learned(byte_level, talk, supervise, learned, system):
    shift = system is not None
    told = talk(*TURNS, system=system, meta={CUT_TURNS: [1 + shift, 4 + shift]})
    assert ends_learned(encoder_for(byte_level, supervise), told) == learned


@given(cut=st.sets(st.integers(0, 9)), room=st.integers(60, 200), context=st.sampled_from([0, 8]))
def test_segments_keep_the_marks_of_their_turns(byte_level, talk, cut, room, context):
    turns = [f"turn {i} of ten" for i in range(10)]
    whole = talk(*turns, meta={CUT_TURNS: sorted(cut)})
    encoder = encoder_for(byte_level, "both", max_length=room, system=None, context=context)
    [segments] = split_long([whole], encoder)
    marked = [s.messages[i].content for s in map(without_context, segments) for i in sorted(s.cut_turns)]
    assert marked == [turns[i] for i in sorted(cut)]
    for segment in segments:
        own = {s.content for i, s in enumerate(segment.messages) if i in segment.cut_turns}
        assert own <= set(marked)


def test_cleaning_moves_the_marks_with_the_turns(talk):
    odd = talk("an answer", *TURNS, "", first="assistant", system="Be brief.", meta={CUT_TURNS: [3, 6]})
    [kept] = alternate(odd).kept
    assert kept.messages[0] == Message("user", TURNS[0])
    assert [kept.messages[i].content for i in sorted(kept.cut_turns)] == ["It is a long", "Thank"]


@pytest.mark.parametrize("odd", [None, 3, "12", {"a": 1}, [None, "x"], [True]])
def test_a_foreign_meta_of_that_name_is_no_mark(byte_level, talk, odd):
    told = talk(*TURNS, meta={CUT_TURNS: odd})
    assert not any("…" in turn for turn in ends_learned(encoder_for(byte_level, "user"), told))
