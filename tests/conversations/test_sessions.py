from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations import sessions
from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, SESSION, Conversation, Message
from realm.conversations.evidence import Kind
from realm.conversations.readers import ReadReport, read_conversations
from realm.conversations.sessions import ANOTHER, MISSING, REASONS, TOLD, join_segments, unknown_ends

SPEAKERS = ("user", "assistant")
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=7)


def turns(count: int, first: int = 0, of: str = "s") -> tuple[Message, ...]:
    return tuple(Message(SPEAKERS[i % 2], f"{of}: turn {i}") for i in range(first, first + count))


def segment(number: int, first: int, count: int, session: str = "s", **meta) -> Conversation:
    return Conversation(f"{session}_{number}", turns(count, first, session), meta)


def by_turn(sizes: list[int], session: str = "s") -> list[Conversation]:
    """N is the first turn's place; a segment that would begin with a human turn repeats the answer before it."""
    made, place = [], 0
    for size in sizes:
        shared = int(place > 0 and place % 2 == 0)
        made.append(segment(place - shared, place - shared, size + shared, session))
        place += size
    return made


def one_by_one(sizes: list[int], session: str = "s") -> list[Conversation]:
    """N counts segments; otherwise the same."""
    return [Conversation(f"{session}_{n}", c.messages, c.meta) for n, c in enumerate(by_turn(sizes, session))]


def by_human_turn(sizes: list[int], session: str = "s") -> list[Conversation]:
    """N is the first turn's place; no turn is repeated, and each segment begins with a human turn."""
    places = [2 * sum(sizes[:i]) for i in range(len(sizes))]
    return [segment(place, place, 2 * size, session) for place, size in zip(places, sizes, strict=True)]


def unrelated(numbers, session: str = "conv", size: int = 2) -> list[Conversation]:
    return [Conversation(f"{session}_{n}", turns(size, 0, f"{session} {n}")) for n in numbers]


def joined(segments: list[Conversation], cut_after=()) -> list[Conversation]:
    return [j.conversation for j in join_segments(segments, cut_after) if j.conversation is not None]


def as_they_came(segments: list[Conversation]) -> bool:
    left = joined(segments)
    alike = [(c.id, c.messages) for c in left] == [(c.id, c.messages) for c in segments]
    return alike and len({c.session for c in left}) == len(left) and all(c.meta[ENDS_SESSION] for c in left)


# ---------------------------------------------------------------- what turns show is joined


@given(CUTS, st.sampled_from([one_by_one, by_turn]), st.randoms())
def test_whatever_was_cut_is_joined_again(sizes, cut, order):
    segments = cut(sizes)
    order.shuffle(segments)
    (whole,) = joined(segments)
    assert whole.messages == turns(sum(sizes))
    assert (whole.id, whole.opens_session) == ("s_0", True)
    assert whole.meta["segments"] == len(sizes) and whole.meta[ENDS_SESSION]


@given(CUTS, CUTS, st.randoms())
def test_sessions_do_not_mix(first, second, order):
    made = [*one_by_one(first, "s"), *by_turn(second, "t")]
    order.shuffle(made)
    left = {c.id: c for c in joined(made)}
    assert {name: c.messages for name, c in left.items()} == {
        "s_0": turns(sum(first), of="s"),
        "t_0": turns(sum(second), of="t"),
    }
    assert len({c.session for c in left.values()}) == 2


def test_the_reasons_name_the_evidence_and_count_every_record():
    made = [*by_turn([4, 3, 3], "s"), segment(0, 0, 4, "t"), segment(4, 4, 2, "t"), *unrelated(range(5))]
    outcomes = join_segments(made)
    told = Counter(o.reason for o in outcomes)
    assert told == {
        "": 5,
        sessions.CONTINUED: 2,
        REASONS[Kind.SHARED]: 1,
        REASONS[Kind.ANSWER]: 1,
        REASONS[Kind.COUNT]: 1,
    }
    assert set(told) <= {"", *TOLD.values()}


def test_a_count_of_turns_joins_only_where_the_file_shows_that_its_numbers_count_turns():
    counted = [segment(0, 0, 4, "t"), segment(4, 4, 2, "t")]
    assert as_they_came(counted)
    assert [len(c.messages) for c in joined([*counted, *by_turn([4, 4])])] == [6, 8]


def test_a_splitter_that_cuts_before_human_turns_is_known_by_its_numbers():
    made = [c for i, sizes in enumerate([[2, 3], [1, 4, 2], [3, 3], [5]]) for c in by_human_turn(sizes, f"s{i}")]
    left = joined(made)
    assert [c.session for c in left] == ["s0", "s1", "s2", "s3"]
    assert [len(c.messages) for c in left] == [10, 14, 12, 10]
    assert as_they_came(by_human_turn([1] * 40))  # of a single name: rows of a table are numbered so, too


def test_turns_that_several_records_share_stand_once():
    made = [segment(0, 0, 6), segment(1, 3, 6)]
    assert joined(made)[0].messages == turns(9)


def test_each_segment_may_bring_its_system_turn():
    system = Message("system", "be brief")
    made = [Conversation(f"s_{n}", (system, *c.messages)) for n, c in enumerate(by_turn([4, 4, 3, 2]))]
    assert joined(made)[0].messages == (system, *turns(13))


def test_segments_of_one_id_are_joined_in_the_order_of_the_file():
    made = [Conversation("s", c.messages) for c in by_turn([3, 3, 2])]
    assert [(c.id, c.messages) for c in joined(made)] == [("s", turns(8))]


def test_records_without_ids_are_compared_with_their_neighbours(tmp_path):
    made = [*by_turn([3, 3, 2], "s"), *unrelated(range(3)), *by_turn([2, 4], "t"), *unrelated(range(3, 6))]
    lines = [{"messages": [{"role": m.role, "content": m.content} for m in c.messages]} for c in made]
    conversations, report = read(tmp_path, "\n".join(map(json.dumps, lines)))
    left = joined(conversations, unknown_ends(report, conversations))
    assert [len(c.messages) for c in left] == [8, 2, 2, 2, 6, 2, 2, 2]
    assert all(c.opens_session and c.meta[ENDS_SESSION] for c in left)


def test_the_first_segment_may_have_no_number():
    first, *others = one_by_one([4, 3])
    assert [c.messages for c in joined([Conversation("s", first.messages), *others])] == [turns(7)]


def test_the_joined_conversation_stands_where_its_first_segment_stood():
    outcomes = join_segments([segment(1, 1, 3), Conversation("t_0", turns(2)), segment(0, 0, 2)])
    assert [o.conversation and o.conversation.id for o in outcomes] == [None, "t_0", "s_0"]
    assert [o.reason for o in outcomes] == [REASONS[Kind.SHARED], "", sessions.CONTINUED]


def test_meta_of_the_first_segment_travels_and_foreign_marks_do_not():
    brought = {"model": "m", CONTEXT: 2, ENDS_SESSION: True}
    (left,) = joined([segment(0, 0, 2, **brought), segment(1, 1, 3, model="n")], cut_after={1})
    assert left.meta == {"model": "m", SESSION: "s_0", PLACE: 0, "segments": 2}
    assert left.messages == turns(4)


def test_a_thousand_segments_in_any_order():
    segments = one_by_one([2] * 1_000)
    random.Random(0).shuffle(segments)
    assert joined(segments)[0].messages == turns(2_000)


# ---------------------------------------------------------------- what they do not show is not


@given(st.sets(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 4), st.randoms())
def test_numbered_names_of_unrelated_talks_join_nothing(numbers, size, order):
    made = unrelated(numbers, size=size)
    order.shuffle(made)
    assert as_they_came(made)
    assert all(c.opens_session for c in joined(made))


def test_numbered_talks_beside_pieces_join_nothing():
    pieces = [c for i in range(6) for c in by_turn([4, 3, 4], f"s{i}")]
    talks = [*unrelated(range(40)), *unrelated(range(40), "one", size=1), *unrelated(range(3, 60, 7), "some")]
    left = joined([*pieces, *talks])
    assert [c.session for c in left] == [*(f"s{i}" for i in range(6)), *(c.id for c in talks)]
    assert all(c.opens_session and c.meta[ENDS_SESSION] for c in left)


@pytest.mark.parametrize(
    "ids", ["2024/05/{}", "a/{}", "ü_{}", "chat-{}", "{}", "f00dcafe{}", "x_{}/0", "_{}", "日本_{}_0"]
)
def test_ids_of_any_form_are_only_names(ids):
    made = [Conversation(ids.format(n), turns(2, 0, str(n))) for n in range(12)]
    assert as_they_came(made)
    assert all(c.opens_session for c in joined(made))


def test_two_styles_in_one_file_are_told_apart_session_by_session():
    counting_turns = [*by_turn([4, 3, 3], "t"), segment(10, 10, 4, "t")]  # the last begins with a human turn
    counting_pieces = [c for i in range(9) for c in one_by_one([4, 4, 3, 4], f"p{i}")]
    hashes = [Conversation(f"{i:032x}", turns(4, 0, f"hash {i}")) for i in range(9)]
    made = [*counting_pieces, *counting_turns, *hashes, *unrelated(range(30))]
    left = joined(made)
    assert [len(c.messages) for c in left] == [15] * 9 + [14] + [4] * 9 + [2] * 30
    assert len({c.session for c in left}) == len(left)
    assert all(c.opens_session and c.meta[ENDS_SESSION] for c in left)


def test_a_number_too_long_to_count_anything_is_a_name():
    assert as_they_came([Conversation("a_" + "9" * 6_000, turns(2)), Conversation("a_1", turns(2, 0, "t"))])


def test_talks_that_all_begin_with_the_assistant_are_no_answers():
    greeting = Message("assistant", "Welcome, what is it?")
    made = [Conversation(f"c_{n}", (greeting, Message("user", f"about {n}"))) for n in range(12)]
    assert as_they_came(made)
    assert [c.meta[PLACE] for c in joined(made)] == [0] * 12


def test_talks_of_whichever_speaker_first_are_no_answers():
    """Half of these begin with an answer, now after a human turn, now after another answer."""
    order = [0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1]
    made = [
        Conversation(f"d_{n}", (*turns(2, begin, f"{n} a"), *turns(ending, begin, f"{n} b")))
        for n, (begin, ending) in enumerate(zip(order, [1, 0, 0, 1, 1, 0, 1] * 2, strict=True))
    ]
    assert as_they_came(made)


def test_a_commonplace_that_two_talks_share_shows_nothing():
    start = Message("user", "/start")
    made = [Conversation(f"bot_{n}", (start, *turns(1, 1, str(n)), start)) for n in range(9)]
    assert as_they_came(made)


def test_equal_talks_under_other_numbers_and_talks_that_open_alike_stay():
    made = [
        *unrelated([0]),
        Conversation("conv_1", turns(2, 0, "conv 0")),
        Conversation("conv_2", turns(4, 0, "conv 0")),
    ]
    assert as_they_came(made)
    assert as_they_came([Conversation(f"p_{n}", (Message("user", "a poem"),)) for n in range(4)])


# ---------------------------------------------------------------- repeated ids


def test_different_talks_under_one_id_are_two_sessions_and_keep_their_ends():
    outcomes = join_segments([Conversation("0", turns(4)), Conversation("0", turns(2, 0, "t"))])
    left = [o.conversation for o in outcomes]
    assert [c.messages for c in left] == [turns(4), turns(2, 0, "t")]
    assert len({c.session for c in left}) == len({c.id for c in left}) == 2
    assert all(c.meta[ENDS_SESSION] and c.opens_session for c in left)
    assert [o.reason for o in outcomes] == ["", ANOTHER]


def test_names_that_were_given_are_not_given_again():
    made = [Conversation(name, turns(2, 0, str(i))) for i, name in enumerate(["a", "a (2)", "a", "a", "a (2)"])]
    left = joined(made)
    assert len({c.session for c in left}) == len({c.id for c in left}) == 5


def test_a_segment_that_stands_twice_counts_once():
    outcomes = join_segments([segment(0, 0, 4), segment(0, 0, 4)])
    assert [o.conversation and o.conversation.messages for o in outcomes] == [turns(4), None]
    assert outcomes[1].reason == REASONS[Kind.SAME]


@pytest.mark.parametrize("grown_first", [False, True])
def test_a_talk_and_what_it_grew_to_under_one_id_are_one(grown_first):
    made = [Conversation("s", turns(2)), Conversation("s", turns(6))]
    (left,) = joined(made[::-1] if grown_first else made)
    assert left.messages == turns(6) and left.meta[ENDS_SESSION]


def test_two_dumps_of_the_same_ids_give_each_session_twice():
    first = [*by_turn([4, 4, 3])]
    other = [Conversation(c.id, tuple(Message(m.role, m.content.upper()) for m in c.messages)) for c in first]
    left = joined([*first, *other])
    assert [c.messages for c in left] == [turns(11), tuple(Message(m.role, m.content.upper()) for m in turns(11))]
    assert len({c.session for c in left}) == 2


def test_one_id_for_all_records_is_no_session():
    assert len({c.session for c in joined([Conversation("train", turns(2, 0, str(n))) for n in range(300)])}) == 300


# ---------------------------------------------------------------- missing turns


@given(CUTS.filter(lambda sizes: len(sizes) > 2), st.data())
def test_a_missing_segment_gives_two_stretches_and_says_so(sizes, data):
    segments = by_turn(sizes)
    gone = data.draw(st.integers(1, len(segments) - 2))
    left = segments[:gone] + segments[gone + 1 :]
    has_gap = set(segments[gone].messages) - {m for c in left for m in c.messages}
    outcomes = join_segments([*by_turn([4, 4, 4], "proof"), *by_turn([3, 4, 4], "more"), *left])[6:]
    kept = [o.conversation for o in outcomes if o.conversation]
    told = [o.reason for o in outcomes if o.conversation]
    assert (len(kept), told[-1] == MISSING) == ((2, True) if has_gap else (1, False))
    assert [m for c in kept for m in c.messages] == [m for m in turns(sum(sizes)) if m not in has_gap]
    assert [ENDS_SESSION in c.meta for c in kept] == ([False, True] if has_gap else [True])
    assert {c.session for c in kept} == {"s"} and not any(c.opens_session for c in kept[1:])


def test_an_answer_first_behind_a_missing_segment_goes_on_with_something():
    before, after = join_segments([segment(0, 0, 5), segment(2, 9, 3)])
    assert (before.reason, after.reason) == ("", MISSING)
    assert before.conversation.session == after.conversation.session
    assert not after.conversation.opens_session
    assert [ENDS_SESSION in o.conversation.meta for o in (before, after)] == [False, True]


def test_a_session_that_lacks_its_beginning_does_not_open():
    proof = by_turn([4, 4, 4], "proof")
    for alone in (segment(4, 4, 2), segment(3, 3, 3), Conversation("hash", turns(3, 1))):
        left = joined([*proof, alone])[1]
        assert left.meta[PLACE] > 0 and left.meta[ENDS_SESSION] and not left.opens_session
    assert joined([segment(4, 4, 2)])[0].opens_session  # of its number alone nothing is known


# ---------------------------------------------------------------- what this package cut itself


def test_segments_of_our_own_are_known_by_their_meta():
    parts = []
    for n in range(4):
        whole = turns(9, 0, f"s{n}")
        meta = lambda place, n=n: {SESSION: f"s{n}", PLACE: place}  # noqa: E731
        parts += [
            Conversation(f"s{n}_0/0", whole[:4], meta(0)),
            Conversation(f"s{n}_0/1", (Message("assistant", "so it ends"), *whole[4:7]), meta(4) | {CONTEXT: 1}),
            Conversation(f"s{n}_0/2", whole[7:], meta(7) | {ENDS_SESSION: True}),
        ]
    left = joined(parts)
    assert [c.session for c in left] == ["s0", "s1", "s2", "s3"]
    assert [c.messages for c in left] == [turns(9, 0, f"s{n}") for n in range(4)]


# ---------------------------------------------------------------- unknown ends


@given(CUTS, st.sampled_from([one_by_one, by_turn]))
def test_an_unknown_end_carries_no_mark(sizes, cut):
    segments = cut(sizes)
    (left,) = joined(segments, cut_after={len(segments) - 1})
    assert ENDS_SESSION not in left.meta
    (left,) = joined(segments, cut_after=set(range(len(segments) - 1)))
    assert left.meta[ENDS_SESSION]


def test_a_mark_that_a_segment_brought_does_not_make_an_end_known():
    assert ENDS_SESSION not in joined([segment(0, 0, 2, ends_session=True)], cut_after={0})[0].meta


def test_where_segments_stand_in_no_order_a_cut_file_shows_no_end():
    ordered = [c for i in range(6) for c in by_turn([4, 3, 4], f"s{i}")]
    shuffled = ordered[::2] + ordered[1::2]
    marked = lambda made, cut: sum(ENDS_SESSION in c.meta for c in joined(made, cut))  # noqa: E731
    assert (marked(ordered, {17}), marked(shuffled, {17}), marked(shuffled, ())) == (5, 0, 6)


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
        ('{"id": "s_1", "messages": []}', "]", {"s_0"}),
        ('{"id": "s_0", "messages": []}', "]", {"s_0"}),
        ('{"id": "t_7", "messages": []}', "]", {"t_0"}),
        ('{"id": "v_1", "messages": [{"role": "narrator", "content": "b"}]}', "]", set()),
        ('{"id": "s_1", "messages": [}', "]", {"s_0"}),
        ('{"id": "s_1", "messages": []}, {"id": "s_2", "messages": [}', "]", {"s_0"}),
        ('{"id": "v_0", "messages": [{"role": "user", "content": "b"}]}', ', {"id": "u_1", "mess', {"u_0"}),
    ],
    ids=["whole", "no turns", "none of the same id", "behind", "unknown role", "malformed", "two in a row", "cut off"],
)
def test_what_the_file_does_not_show_is_unknown(tmp_path, record, ending, unknown):
    conversations, report = read(tmp_path, FILE % (record, ending))
    cut_after = unknown_ends(report, conversations)
    assert {conversations[i].id for i in cut_after} == unknown
    marked = {c.id for c in joined(conversations, cut_after) if ENDS_SESSION in c.meta}
    assert marked == {c.id for c in conversations} - unknown


def test_a_record_lost_before_the_last_segment_leaves_the_end_known(tmp_path):
    lost = '{"id": "s_0", "messages": []}, {"id": "s_2", "messages": [{"role": "assistant", "content": "b"}]}'
    conversations, report = read(tmp_path, FILE % (lost, "]"))
    assert {conversations[i].id for i in unknown_ends(report, conversations)} == {"s_0"}


def test_an_unusable_record_among_unrelated_talks_costs_one_end(tmp_path):
    lines = [f'{{"id": "conv_{n}", "messages": [{{"role": "user", "content": "q{n}"}}]}}' for n in range(9)]
    lines[4] = '{"id": "conv_4", "messages": []}'
    conversations, report = read(tmp_path, "\n".join(lines))
    left = joined(conversations, unknown_ends(report, conversations))
    assert [c.id for c in left if ENDS_SESSION not in c.meta] == ["conv_3"]


def test_the_last_session_is_unknown_where_reading_stopped(tmp_path):
    conversations, report = read(
        tmp_path, FILE % ('{"id": "v_0", "messages": [{"role": "user", "content": "b"}]}', "]")
    )
    assert unknown_ends(report, conversations[:2]) == {1}
    assert unknown_ends(report, conversations) == set()
    assert unknown_ends(report, []) == set()
