from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations.conversation import PLACE, SESSION, Conversation, Message
from realm.conversations.evidence import Kind, families, family_of, style_of
from realm.conversations.sessions import REASONS, TOLD, join_segments


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("abc_3", ("abc", 3)),
        ("a_b_12", ("a_b", 12)),
        ("abc", ("abc", None)),
        ("_3", ("_3", None)),
        ("a_", ("a_", None)),
        ("a_x", ("a_x", None)),
        ("a_²", ("a_²", None)),
        ("été_7", ("été", 7)),
        ("a/b_7", ("a/b", 7)),
        ("a_" + "1" * 5_000, ("a_" + "1" * 5_000, None)),
    ],
)
def test_ids_tell_which_records_to_compare(identifier, expected):
    assert family_of(identifier) == expected


def talks(*shapes: str, name: str = "s", places: bool = False) -> list[Conversation]:
    """A letter a turn, capital where the assistant speaks; ``places``: numbered by the count of letters before."""
    made, place = [], 0
    for n, shape in enumerate(shapes):
        messages = tuple(Message("assistant" if turn.isupper() else "user", f"{name} {turn}") for turn in shape)
        made.append(Conversation(f"{name}_{place if places else n}", messages))
        place += len(shape)
    return made


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("aB", "cD", Kind.NOTHING),
        ("aB", "BcD", Kind.SHARED),
        ("aBc", "cD", Kind.SHARED),
        ("aBcD", "cDe", Kind.SHARED),
        ("aBc", "D", Kind.ANSWER),
        ("aBc", "Df", Kind.ANSWER),
        ("aBc", "dE", Kind.NOTHING),
        ("aB", "Cd", Kind.NOTHING),
        ("aB", "aBcD", Kind.NOTHING),
        ("aB", "aB", Kind.NOTHING),
        ("a", "b", Kind.COUNT),
        ("B", "Bc", Kind.SHARED),
    ],
)
def test_what_one_record_shows_about_the_one_before_it(before, after, kind):
    ((link,),) = [family.links for family in families(talks(before, after))]
    assert link.kind == kind


def test_the_longest_run_of_shared_turns_is_taken():
    ((link,),) = [family.links for family in families(talks("aBaBa", "BaBaBc"))]
    assert (link.kind, link.repeated) == (Kind.SHARED, 4)


@pytest.mark.parametrize(
    ("made", "counts_turns"),
    [
        (talks("aB", "cD", "eF"), False),
        (talks("a", "b", "c", "d"), False),
        (talks("aB", "cD", "eF", places=True), False),
        (talks("aB", "BcD", "DeF"), False),
        (talks("aBc", "DeF", places=True), True),
        ([c for name in "stu" for c in talks("aB", "cDeF", name=name, places=True)], True),
        ([c for name in "st" for c in talks("aB", "cDeF", name=name, places=True)], False),
        ([c for name in "stu" for c in talks("a", "b", name=name, places=True)], False),
    ],
)
def test_what_a_number_means_is_shown_by_turns(made, counts_turns):
    assert style_of(families(made)).counts_turns is counts_turns


TURNS = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "system"]), st.sampled_from("ab")), min_size=1
)
META = st.sampled_from(
    [{}, {}, {SESSION: "s"}, {SESSION: 3, PLACE: "x"}, {SESSION: "s", PLACE: 2}, {"context_turns": 1}]
)
IDS = st.sampled_from(["s", "s_0", "s_1", "s_2", "s_4", "t_1", "s/1", "s (2)", "_1"])
RECORDS = st.lists(st.builds(Conversation, IDS, TURNS.map(tuple), META), max_size=12)


@given(RECORDS, st.sets(st.integers(0, 12)))
def test_every_record_is_accounted_for_whatever_the_file_holds(records, cut_after):
    outcomes = join_segments(records, cut_after)
    left = [o.conversation for o in outcomes if o.conversation]
    assert len(outcomes) == len(records)
    assert all(o.reason in {"", *TOLD.values()} for o in outcomes)
    assert all(o.reason in REASONS.values() for o in outcomes if not o.conversation)
    assert sum(c.meta["segments"] for c in left) + sum(o.reason == REASONS[Kind.SAME] for o in outcomes) == len(records)
    assert len({c.id for c in left}) == len(left)
    assert {m for c in records for m in c.messages} >= {m for c in left for m in c.messages}
    assert join_segments(records, cut_after) == outcomes
