from __future__ import annotations

import random

import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from realm.cleaning import duplicates
from realm.cleaning.duplicates import (
    CLUSTER,
    PERMUTATIONS,
    content_digest,
    exact_duplicates,
    linked,
    near_duplicate_clusters,
    near_duplicates,
    shingles,
    similar_pairs,
    similarity,
)
from realm.cleaning.funnel import Step, run_funnel
from realm.conversations.conversation import Conversation, Message

WORDS = [f"word{i}" for i in range(400)]


def saying(words: list[str], id: str = "c") -> Conversation:
    return Conversation(id, (Message("user", "Tell me."), Message("assistant", " ".join(words))))


def changed(words: list[str], *places: int) -> list[str]:
    return [f"other{i}" if i in places else word for i, word in enumerate(words)]


def clusters(conversations: list[Conversation], threshold: float = 0.7) -> set[frozenset[str]]:
    found = near_duplicate_clusters(conversations, threshold)
    return {frozenset(conversations[i].id for i in cluster) for cluster in found}


# ---------------------------------------------------------------- exact


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
    for _ in range(2):
        assert len(run_funnel([talk("q", "a")], [Step("no exact duplicates", exact_duplicates)])[0]) == 1


# ---------------------------------------------------------------- similarity


def test_similarity_is_jaccard_of_five_word_runs():
    a, b = shingles(saying(WORDS[:40])), shingles(saying(changed(WORDS[:40], 20)))
    both = 42 - 4  # runs of 5 in 2 + 40 words; one changed word is in 5 of them
    assert len(a) == len(b) == both
    assert similarity(a, b) == pytest.approx((both - 5) / (both + 5))
    assert similarity(a, a) == 1


def test_case_punctuation_and_roles_do_not_matter(talk):
    one = talk("Tell me, PLEASE: what is a prime number?", "A number.")
    two = talk("tell me please what is a prime number", "a number", first="assistant")
    assert similarity(shingles(one), shingles(two)) == 1


def test_only_the_beginning_is_compared():
    long = ["same"] * 1_500 + ["end"]
    assert similarity(shingles(saying([*long, "one"])), shingles(saying([*long, "two", "three"]))) == 1


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6])
def test_few_words_are_compared_too(talk, size):
    text = " ".join(WORDS[:size])
    assert len(shingles(talk(text))) == max(1, size - 4)
    assert similarity(shingles(talk(text)), shingles(talk(text + " x"))) < 1


def test_conversations_without_words_are_alike_only_when_equal(talk):
    made = [talk("?!", id="a"), talk("...", id="b"), talk("?!", id="c"), talk("", id="d"), talk("", id="e")]
    assert clusters(made) == {frozenset("ac"), frozenset("de")}


# ---------------------------------------------------------------- clusters


def test_one_changed_word_is_found_and_the_unrelated_are_not():
    made = [saying(WORDS[:120], "a"), saying(WORDS[200:320], "b"), saying(changed(WORDS[:120], 60), "c")]
    assert clusters(made, 0.7) == {frozenset("ac")}
    assert clusters(made, 0.99) == set()


def test_pairs_just_over_the_threshold_are_found():
    # Sixty orders of words, each twice, with so many words changed that 0.70 to 0.74 is shared.
    made = []
    for k in range(60):
        words = [WORDS[(i * (2 * k + 3) + k) % 401 % 400] for i in range(300)]
        made += [saying(words, f"a{k}"), saying(changed(words, *range(20, 20 + 10 * 10, 10)), f"b{k}")]
    assert all(0.7 <= similarity(shingles(a), shingles(b)) < 0.74 for a, b in zip(made[::2], made[1::2], strict=True))
    assert len(clusters(made)) == 60


def test_equality_is_found_at_threshold_one():
    assert clusters([saying(WORDS[:50], "a"), saying(WORDS[:50], "b")], 1.0) == {frozenset("ab")}


def test_links_are_transitive():
    a, b = WORDS[:120], changed(WORDS[:120], 10, 20, 30)
    c = changed(b, 80, 90, 100)
    made = [saying(a, "a"), saying(c, "c"), saying(b, "b")]
    assert similarity(shingles(made[0]), shingles(made[1])) < 0.7 <= similarity(shingles(made[0]), shingles(made[2]))
    assert clusters(made) == {frozenset("abc")}


@settings(max_examples=15)
@given(st.permutations(range(12)))
def test_the_order_does_not_matter(order):
    bases = [WORDS[40 * k : 40 * k + 90] for k in range(4)]
    made = [saying(changed(bases[i % 4], 45 + i // 4) if i >= 4 else bases[i % 4], f"c{i}") for i in range(12)]
    assert clusters([made[i] for i in order]) == clusters(made)
    assert len(clusters(made)) == 4


def family(size: int, edits: int, seed: int, start: int = 0) -> list[Conversation]:
    """One text ``size`` times, each with ``edits`` words of its own."""
    chance = random.Random(seed)
    made = []
    for k in range(size):
        places = chance.sample(range(120), edits)
        words = [f"{word}-{k}" if i in places else word for i, word in enumerate(WORDS[start : start + 120])]
        made.append(saying(words, f"f{start}-{k}"))
    return made


def all_similar_pairs(conversations: list[Conversation], threshold: float) -> list[list[int]]:
    """The groups by the plain way: every candidate of the index is compared."""
    index = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=PERMUTATIONS)
    pairs, sets = [], [shingles(c) for c in conversations]
    for i, own in enumerate(sets):
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        sketch.update_batch(own)
        pairs += [(j, i) for j in index.query(sketch) if similarity(own, sets[j]) >= threshold]
        index.insert(i, sketch)
    return [group for group in linked(len(conversations), pairs) if len(group) > 1]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("seed", range(6))
def test_the_groups_are_those_of_comparing_every_candidate(seed, threshold):
    chance = random.Random(seed)
    made = [c for start in (0, 60, 200) for c in family(20, chance.randint(0, 9), seed, start)]
    chance.shuffle(made)
    assert near_duplicate_clusters(made, threshold) == all_similar_pairs(made, threshold)


@pytest.mark.parametrize("edits", [0, 1])
def test_one_large_family_takes_a_few_comparisons_each(monkeypatch, edits):
    compared = []
    monkeypatch.setattr(duplicates, "similarity", lambda a, b: compared.append(1) or similarity(a, b))
    made = family(400, edits, 0)
    assert [len(group) for group in near_duplicate_clusters(made, 0.7)] == [400]
    assert len(compared) < 400 * 5  # each with each would be 79,800


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15)


@given(PAIRS)
def test_linked_is_the_partition_by_links(pairs):
    parts = linked(10, pairs)
    assert sorted(i for part in parts for i in part) == list(range(10))
    home = {i: n for n, part in enumerate(parts) for i in part}
    assert all(home[a] == home[b] for a, b in pairs)
    # As many parts as a spanning forest leaves: no two are merged without a link.
    colour = list(range(10))
    for a, b in pairs:
        colour = [colour[a] if c == colour[b] else c for c in colour]
    assert len(parts) == len(set(colour))
    assert [len(p) for p in parts] == sorted(map(len, parts), reverse=True)


def test_nothing_gives_nothing():
    assert near_duplicate_clusters([], 0.7) == [] == list(similar_pairs([], 0.7))
    assert near_duplicates([], 0.7, drop=True) == []


# ---------------------------------------------------------------- the step

FAMILY = [saying(WORDS[:100], "short"), saying(WORDS[:106], "long"), saying(WORDS[200:300], "alone")]


def test_the_longest_stays():
    outcomes = near_duplicates(FAMILY, 0.7, drop=True)
    assert [[c.id for c in o.kept] for o in outcomes] == [[], ["long"], ["alone"]]
    assert [o.reason for o in outcomes] == ["near-duplicate of a longer one", "stands for its cluster", ""]
    assert outcomes[1].kept[0].meta == {CLUSTER: "long"}
    assert outcomes[2].kept == [FAMILY[2]]


@pytest.mark.parametrize("drop", [True, False])
def test_clusters_are_reported_by_size(drop):
    pair = [saying(WORDS[300:390], "p"), saying(WORDS[300:390], "q")]
    step = Step("near", lambda cs: near_duplicates(cs, 0.7, drop))
    _, (report,) = run_funnel([*FAMILY, saying(WORDS[:103], "third"), *pair], [step])
    assert report.found == {"clusters of 3": 1, "clusters of 2": 1}
    assert "clusters of 3: 1" in report.row()["why"]


def test_marking_drops_nobody():
    outcomes = near_duplicates(FAMILY, 0.7, drop=False)
    assert [o.kept[0].meta.get(CLUSTER) for o in outcomes] == ["long", "long", None]
    assert outcomes[0].reason == "near-duplicate, marked"
    assert FAMILY[0].meta == {}


def test_of_equally_long_ones_the_first_stays():
    made = [saying(WORDS[:100], "first"), saying(WORDS[:100], "second")]
    assert [len(o.kept) for o in near_duplicates(made, 0.7, drop=True)] == [1, 0]
