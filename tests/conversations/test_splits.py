from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.conversations.conversation import PLACE, SESSION, Conversation, Message
from realm.conversations.splits import (
    SIDES,
    Sides,
    apart,
    first_turn,
    one_per_session,
    session_groups,
    split_sides,
)
from realm.core.fine_tunes import OwnSplit
from realm.core.seeds import unit_hash

MARK = "cluster"
SESSIONS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=4), st.integers(0, 3)), max_size=40, unique=True)
# session, segment within it ("" for whole), opening, cluster
ROW = st.tuples(
    st.integers(0, 15),
    st.sampled_from(["", "/0", "/1", "/2"]),
    st.sampled_from("pqrstuvw"),
    st.sampled_from([None, 1, 2, 3]),
)
ROWS = st.lists(ROW, max_size=30, unique_by=lambda row: row[:2])


def made_of(rows, prefix: str = "s") -> list[Conversation]:
    made = []
    for number, part, opening, cluster in rows:
        meta = {SESSION: f"{prefix}{number}", PLACE: 2 * int(part[1:] or 0)} | ({MARK: cluster} if cluster else {})
        messages = (Message("user", opening), Message("assistant", "a"))
        made.append(Conversation(f"{prefix}{number}_0{part}", messages, meta))
    return made


def split(conversations, seed: int = 0, valid: float = 0.25, test: float = 0.25, seeds: float = 0.15) -> Sides:
    return split_sides(conversations, {"test": test, "valid": valid, "seeds": seeds}, seed, MARK)


def of_sessions(pairs) -> list[Conversation]:
    """Sessions that open differently, so that each is a group of its own."""
    turns = lambda s: (Message("user", f"about {s}"), Message("assistant", "a"))  # noqa: E731
    return [Conversation(f"{s}_{n}", turns(s), {SESSION: s, PLACE: 2 * n}) for s, n in pairs]


# ---------------------------------------------------------------- leaks


@given(ROWS, st.integers(0, 5))
def test_no_session_cluster_or_first_turn_stands_on_two_sides_and_none_is_lost(rows, seed):
    made = made_of(rows)
    sides = split(made, seed)
    for (_, one), (_, other) in combinations(sides.items(), 2):
        assert not {c.session for c in one} & {c.session for c in other}
        assert not {c.meta[MARK] for c in one if MARK in c.meta} & {c.meta[MARK] for c in other if MARK in c.meta}
        assert not {first_turn(c) for c in one} & {first_turn(c) for c in other}
    everyone = [c for _, side in sides.items() for c in side] + sides.leaking
    assert sorted(c.id for c in everyone) == sorted(c.id for c in made)


@given(ROWS, st.integers(0, 5))
def test_only_held_out_segments_from_within_a_session_are_taken_out(rows, seed):
    sides = split(made_of(rows), seed)
    open_in_train = {first_turn(c) for c in sides.train}
    open_in_test = {first_turn(c) for c in sides.test}
    before = open_in_train | open_in_test | {first_turn(c) for c in sides.valid}
    assert all(first_turn(c) in before for c in sides.leaking)
    openings = {first_turn(c) for c in sides.train if c.opens_session}
    assert not any(c.opens_session and first_turn(c) in openings for c in sides.leaking)


def test_segments_from_within_that_open_alike_are_set_apart():
    made = [*of_sessions([(f"s{i}", 0) for i in range(40)])]
    inner = [Conversation(f"{c.id}/1", (Message("user", " Go  ON"),), c.meta | {PLACE: 2}) for c in made]
    sides = split([*made, *inner])
    on = {side: sum(first_turn(c) == "go on" for c in held) for side, held in sides.items()}
    assert on["train"] > 0 == on["valid"] == on["test"] == on["seeds"]
    assert on["train"] + len(sides.leaking) == 40
    assert sum(len(held) for _, held in sides.items()) - on["train"] == 40


@pytest.mark.parametrize("other", ["HELLO there ", "hello\n there"])
def test_case_and_blanks_do_not_tell_first_turns_apart(talk, other):
    assert first_turn(talk("Hello there")) == first_turn(talk(other))
    assert session_groups([talk("Hello there", id="b_0"), talk(other, id="a_0")], MARK) == {"a_0": "a_0", "b_0": "a_0"}


def test_the_first_human_turn_counts_and_the_first_turn_where_there_is_none(talk):
    assert first_turn(talk("An answer", "The Question", first="assistant")) == "the question"
    assert first_turn(talk("An answer", first="assistant")) == "an answer"


@given(ROWS)
def test_groups_are_the_sessions_linked_by_cluster_or_opening(rows):
    made = made_of(rows)
    group = session_groups(made, MARK)
    held = defaultdict(set)
    for session, name in group.items():
        held[name].add(session)
    assert all(name == min(sessions) for name, sessions in held.items())
    colour = {c.session: c.session for c in made}
    for a, b in combinations(made, 2):
        alike = a.opens_session and b.opens_session and first_turn(a) == first_turn(b)
        if alike or (MARK in a.meta and a.meta[MARK] == b.meta.get(MARK)):
            old, new = colour[a.session], colour[b.session]
            colour = {s: new if k == old else k for s, k in colour.items()}
    linked = defaultdict(set)
    for session, name in colour.items():
        linked[name].add(session)
    assert sorted(map(sorted, held.values())) == sorted(map(sorted, linked.values()))


def test_a_long_chain_is_one_group(talk):
    made = [talk(f"q{i}", id=f"s{i}_0", meta={MARK: (i + 1) // 2}) for i in range(2_000)]
    made += [talk(f"q{2 * i}", id=f"t{i}_0") for i in range(1_000)] + [
        talk(f"q{2 * i + 1}", id=f"t{i}_0") for i in range(1_000)
    ]
    assert set(session_groups(made, MARK).values()) == {"s0_0"}


# ---------------------------------------------------------------- stability and shares


@given(ROWS, st.integers(0, 5), st.randoms())
def test_the_seed_alone_decides(rows, seed, random):
    made = made_of(rows)
    shuffled = made[:]
    random.shuffle(shuffled)
    assert split(made, seed) == split(made, seed)
    for side in (*SIDES, "leaking"):
        ids = {c.id for c in getattr(split(made, seed), side)}
        assert {c.id for c in getattr(split(shuffled, seed), side)} == ids


@given(SESSIONS, SESSIONS, st.integers(0, 5))
def test_more_data_move_nobody_they_do_not_join(pairs, more, seed):
    before, after = split(of_sessions(pairs), seed), split(of_sessions([*more, *pairs]), seed)
    for (_, small), (_, large) in zip(before.items(), after.items(), strict=True):
        assert {c.session for c in small} <= {c.session for c in large}


def test_data_that_join_a_group_by_a_later_name_move_nobody(talk):
    made = of_sessions([(f"s{i}", 0) for i in range(60)])
    joining = [talk(f"about s{i}", id=f"t{i}_0") for i in range(60)]
    before, after = split(made), split([*made, *joining])
    for (_, small), (_, large) in zip(before.items(), after.items(), strict=True):
        assert {c.id for c in small} <= {c.id for c in large}
        assert len(large) == 2 * len(small)


def test_shares_are_of_groups_and_the_seed_deals_anew():
    made = of_sessions([(f"s{i}", 0) for i in range(4_000)])
    sides = split(made, seed=1, valid=0.1, test=0.2)
    assert len(sides.valid) == pytest.approx(400, rel=0.2)
    assert len(sides.test) == pytest.approx(800, rel=0.2)
    assert sides.leaking == []
    assert {c.id for c in split(made, seed=2, valid=0.1, test=0.2).test} != {c.id for c in sides.test}


def test_a_larger_test_share_keeps_the_smaller_one():
    made = of_sessions([(f"s{i}", 0) for i in range(200)])
    assert {c.id for c in split(made, test=0.1).test} <= {c.id for c in split(made, test=0.3).test}


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


# ---------------------------------------------------------------- the authors' own


def test_the_authors_split_of_twenty():
    """By hand: numpy.random.seed(125), numpy.random.permutation(20), the first int(20 * 0.95) are trained on."""
    made = of_sessions([(f"s{i}", 0) for i in range(20)])
    np.random.seed(125)
    order = list(np.random.permutation(20))
    train, valid = apart(made, OwnSplit(train_share=0.95, seed=125))
    assert [made.index(c) for c in train] == order[:19]
    assert [made.index(c) for c in valid] == order[19:]


@pytest.mark.parametrize(("count", "trained"), [(50_728, 48_191), (1, 0), (19, 18), (20, 19), (101, 95)])
def test_the_authors_count_rounds_down(count, trained, talk):
    one = talk("hi", "hello")
    train, valid = apart([one] * count, OwnSplit(train_share=0.95, seed=125))
    assert (len(train), len(valid)) == (trained, count - trained)


def test_without_a_split_of_its_own_all_is_trained_on():
    made = of_sessions([(f"s{i}", 0) for i in range(5)])
    assert apart(made, None) == (made, [])


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_each_stands_on_one_side_of_an_own_split(count, share, seed):
    made = of_sessions([(f"s{i}", 0) for i in range(count)])
    train, valid = apart(made, OwnSplit(train_share=share, seed=seed))
    assert sorted(c.id for c in train + valid) == sorted(c.id for c in made)
    assert apart(made, OwnSplit(train_share=share, seed=seed)) == (train, valid)
