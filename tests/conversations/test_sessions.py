from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations.conversation import ENDS_SESSION, Conversation, Message
from realm.conversations.readers import ReadReport, read_conversations
from realm.conversations.sessions import join_segments, unknown_ends

SPEAKERS = ("user", "assistant")
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=7)


def turns(count: int, first: int = 0) -> tuple[Message, ...]:
    return tuple(Message(SPEAKERS[i % 2], f"turn {i}") for i in range(first, first + count))


def segment(number: int, first: int, count: int, session: str = "s", **meta) -> Conversation:
    return Conversation(f"{session}_{number}", turns(count, first), meta)


def one_by_one(sizes: list[int]) -> list[Conversation]:
    return [segment(n, sum(sizes[:n]), size) for n, size in enumerate(sizes)]


def by_turn(sizes: list[int]) -> list[Conversation]:
    """N is the first turn's place; a segment that would begin with a human turn repeats the answer before it."""
    made, place = [], 0
    for size in sizes:
        shared = int(place > 0 and place % 2 == 0)
        made.append(segment(place - shared, place - shared, size + shared))
        place += size
    return made


def joined(segments: list[Conversation], no_end=()) -> list[Conversation]:
    return [j.conversation for j in join_segments(segments, no_end) if j.conversation is not None]


@given(CUTS, st.sampled_from([one_by_one, by_turn]), st.randoms())
def test_whatever_was_cut_is_joined_again(sizes, cut, order):
    segments = cut(sizes)
    whole = Conversation("s_0", turns(sum(sizes)), {"session": "s", "segments": len(sizes), ENDS_SESSION: True})
    order.shuffle(segments)
    assert joined(segments) == [whole]


@given(CUTS, CUTS, st.randoms())
def test_sessions_do_not_mix(first, second, order):
    made = [*one_by_one(first), *(Conversation(f"t{c.id}", c.messages) for c in by_turn(second))]
    order.shuffle(made)
    assert {c.session: c.messages for c in joined(made)} == {"s": turns(sum(first)), "ts": turns(sum(second))}


@given(CUTS.filter(lambda sizes: len(sizes) > 2), st.data())
def test_a_missing_segment_gives_two_stretches_and_says_so(sizes, data):
    segments = by_turn(sizes)
    gone = data.draw(st.integers(1, len(segments) - 2))
    missing = segments[gone].messages
    outcomes = join_segments(segments[:gone] + segments[gone + 1 :])
    kept = [o.conversation for o in outcomes if o.conversation]
    told = [o.reason for o in outcomes if o.conversation]
    has_gap = set(missing) - {m for c in segments[:gone] + segments[gone + 1 :] for m in c.messages}
    assert (len(kept), told[-1] == "turns missing before it") == ((2, True) if has_gap else (1, False))
    assert [m for c in kept for m in c.messages] == [m for m in turns(sum(sizes)) if m not in has_gap]
    assert [ENDS_SESSION in c.meta for c in kept] == ([False, True] if has_gap else [True])


def test_a_missing_one_of_segments_numbered_one_by_one():
    segments = [segment(0, 0, 5), segment(2, 9, 3)]
    before, after = join_segments(segments)
    assert (before.reason, after.reason) == ("", "turns missing before it")
    assert [c.id for c in joined(segments)] == ["s_0", "s_2"]


def test_a_session_that_lacks_its_beginning_does_not_open():
    (left,) = joined([segment(4, 4, 2)])
    assert (left.id, left.opens_session, left.meta[ENDS_SESSION]) == ("s_4", False, True)


def test_the_joined_conversation_stands_where_its_first_segment_stood():
    outcomes = join_segments([segment(1, 2, 2), Conversation("t_0", turns(2)), segment(0, 0, 2)])
    assert [o.conversation and o.conversation.id for o in outcomes] == [None, "t_0", "s_0"]
    assert [o.reason for o in outcomes] == ["joined to the segments before it", "", "joined"]


def test_a_segment_that_stands_twice_counts_once():
    assert joined([segment(0, 0, 4), segment(0, 0, 4)])[0].messages == turns(4)


def test_meta_of_the_first_segment_travels():
    (left,) = joined([segment(0, 0, 2, model="m"), segment(2, 2, 2, model="n")])
    assert left.meta == {"model": "m", "session": "s", "segments": 2, ENDS_SESSION: True}


def test_ids_without_a_number_are_sessions_of_their_own():
    made = [Conversation("a", turns(2)), Conversation("b", turns(2))]
    assert [(c.id, c.meta[ENDS_SESSION]) for c in joined(made)] == [("a", True), ("b", True)]


# ---------------------------------------------------------------- unknown ends


@given(CUTS, st.sampled_from([one_by_one, by_turn]))
def test_an_unknown_end_carries_no_mark(sizes, cut):
    (left,) = joined(cut(sizes), no_end={"s"})
    assert ENDS_SESSION not in left.meta


def test_a_mark_that_a_segment_brought_does_not_make_an_end_known():
    brought = [segment(0, 0, 2, ends_session=True), segment(2, 2, 2)]
    assert ENDS_SESSION not in joined(brought, no_end={"s"})[0].meta
    assert [ENDS_SESSION in c.meta for c in joined([brought[0], segment(6, 6, 2)])] == [False, True]


FILE = (
    '[{"id": "s_0", "messages": [{"role": "user", "content": "a"}]}, %s,'
    ' {"id": "t_0", "messages": [{"role": "user", "content": "c"}]}, '
    ' {"id": "u_0", "messages": [{"role": "user", "content": "d"}]}%s'
)


def read(tmp_path, text: str) -> tuple[list[Conversation], ReadReport]:
    (tmp_path / "f.json").write_text(text)
    report = ReadReport()
    return list(read_conversations(tmp_path / "f.json", report=report)), report


@pytest.mark.parametrize(
    ("record", "ending", "unknown"),
    [
        ('{"id": "v_0", "messages": [{"role": "user", "content": "b"}]}', "]", set()),
        ('{"id": "s_1", "messages": []}', "]", {"s"}),
        ('{"id": "v_1", "messages": [{"role": "narrator", "content": "b"}]}', "]", {"v"}),
        ('{"id": "s_1", "messages": [}', "]", {"s"}),
        ('{"id": "s_1", "messages": []}, {"id": "s_2", "messages": [}', "]", {"s"}),
        ('{"id": "v_0", "messages": [{"role": "user", "content": "b"}]}', ', {"id": "u_1", "mess', {"u"}),
    ],
    ids=["whole", "no turns", "unknown role", "malformed", "two in a row", "cut off"],
)
def test_what_the_file_does_not_show_is_unknown(tmp_path, record, ending, unknown):
    conversations, report = read(tmp_path, FILE % (record, ending))
    named = {s for s in unknown_ends(report, conversations) if not s.startswith("record ")}
    assert named == unknown
    marked = {c.session for c in joined(conversations, unknown_ends(report, conversations)) if ENDS_SESSION in c.meta}
    assert marked == {c.session for c in conversations} - unknown


def test_the_last_session_is_unknown_where_reading_stopped(tmp_path):
    conversations, report = read(
        tmp_path, FILE % ('{"id": "v_0", "messages": [{"role": "user", "content": "b"}]}', "]")
    )
    assert unknown_ends(report, conversations[:2]) == {"v"}
    assert unknown_ends(report, conversations) == set()
    assert unknown_ends(report, []) == set()


def test_a_thousand_segments_in_any_order():
    segments = one_by_one([2] * 1_000)
    random.Random(0).shuffle(segments)
    assert joined(segments)[0].messages == turns(2_000)
