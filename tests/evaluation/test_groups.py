"""Controls of the realism card: what must come out right whoever is measured. The embeddings are the real ones."""

import random

import numpy as np
import pytest

from realm.core.metrics import Metrics
from realm.evaluation import groups, memory, openings
from realm.evaluation.going_on import Talk
from realm.models import assets

N = 40
THINGS = [
    "tulips",
    "soup",
    "bicycles",
    "taxes",
    "violins",
    "windows",
    "databases",
    "poems",
    "rockets",
    "carpets",
    "bread",
    "rivers",
    "loans",
    "chess",
    "whales",
    "engines",
    "moss",
    "letters",
    "tents",
    "glue",
    "maps",
    "onions",
    "fonts",
    "radios",
    "bees",
    "lamps",
    "kites",
    "rice",
    "boats",
    "locks",
    "pumps",
    "wool",
    "clocks",
    "jam",
    "dice",
    "ropes",
    "vines",
    "salt",
    "coins",
    "drums",
]
PLACES = ("garden", "kitchen", "office", "school", "cellar", "village", "harbour", "attic", "market", "forest")
WAYS = (
    "how do i fix {a} in my {p}",
    "write me a short text on {a} for our {p}",
    "whats the best way to store {a} ?",
    "why are {a} so expensive in the {p}, and who sells them",
    "explain {a} like i am new to it",
    "i have a problem with {a} at the {p}. what now",
    "list ten facts about {a}",
    "can you compare {a} and {b} please",
)
OFFERS = (
    "Sure, here is a short guide to {a}. First, take a good look at the {p}, then follow these steps.",
    "I'm happy to help you with {a}! It is important to keep the {p} clean.",
    "Certainly! There are several ways to enjoy {a}, and each has its own benefits.",
    "As an AI language model, I can tell you that {a} are popular in every {p}.",
)


def texts(count, seed, ways=WAYS):
    chance = random.Random(seed)
    return [
        chance.choice(ways).format(a=chance.choice(THINGS), b=chance.choice(THINGS), p=chance.choice(PLACES))
        for _ in range(count)
    ]


SAID = {
    "humans": texts(2 * N, 1),
    "usergpt": texts(N, 2),
    "base": ["tell me more about the history of rivers"] * N,
    "roleplay": texts(N, 3, OFFERS),
}


@pytest.fixture(scope="module")
def vectors():
    every = [t for some in SAID.values() for t in some]
    found = iter(openings.embed(every, assets.model("minilm")))
    return {who: [next(found)[None] for _ in some] for who, some in SAID.items()}


@pytest.fixture(scope="module")
def told(vectors):
    return groups.told_apart(vectors, N, repeats=2, permutations=20, seed=1)


def opened(said=SAID):
    return {who: [[t] for t in some] for who, some in said.items()}


# ---------------------------------------------------------------- what is asked


def test_humans_against_humans_are_at_the_floor(told):
    assert told.floor.value == pytest.approx(0.5, abs=0.1)
    same = told.tests["usergpt"].auc
    assert same.ci_low < 0.5 < same.ci_high and same.n == 2 * N


def test_assistant_text_passed_as_human_text_is_caught_by_the_classifier(told):
    assert told.tests["roleplay"].auc.ci_low > 0.9
    assert told.tests["roleplay"].p_value < 0.05 < told.tests["usergpt"].p_value


def test_labels_that_were_shuffled_tell_nothing(told, vectors):
    assert all(t.null_mean == pytest.approx(0.5, abs=0.06) for t in told.tests.values())
    mixed = [*vectors["humans"][:N], *vectors["roleplay"]]  # told apart at once by their own labels
    order = np.random.default_rng(1).permutation(2 * N)
    sides = {"humans": [mixed[i] for i in order[:N]] * 2, "usergpt": [mixed[i] for i in order[N:]]}
    found = groups.told_apart(sides, N, repeats=4, permutations=0, seed=1).tests["usergpt"].auc
    assert found.ci_low < 0.5 < found.ci_high


def test_what_is_told_has_the_names_of_the_contract(told):
    metrics = Metrics()
    groups.add_told(metrics, told)
    groups.add_told(metrics, told, at="_at_40")
    names = {m.name for m in metrics}
    assert {"two_sample_auc_human_floor", "two_sample_auc_human_floor_sd", "two_sample_null_95_usergpt"} <= names
    assert {"two_sample_difference_base", "two_sample_difference_roleplay", "two_sample_auc_usergpt_at_40"} <= names
    assert "two_sample_difference_usergpt" not in names
    assert metrics["two_sample_difference_roleplay"].ci_low > 0  # UserGPT is nearer
    assert len(groups.told_table(told)) == 4


def test_later_turns_are_told_by_conversation(vectors):
    twice = {who: [np.vstack([v, v]) for v in some] for who, some in vectors.items()}
    found = groups.told_apart(twice, N, repeats=1, permutations=0, seed=1)
    # The same turn twice in a conversation: folded whole it gives nobody away, and n counts conversations.
    assert found.tests["usergpt"].auc.n == 2 * N and found.tests["usergpt"].auc.value < 0.7
    assert groups.told_row(found, groups.LATER).key == "two_sample_auc_later"


def test_one_sentence_repeated_is_caught_by_every_diversity(vectors):
    rows = [*groups.diversity(SAID, vectors, seed=1), *groups.nearness(vectors, N, seed=1)]
    found = {row.key: row for row in [*rows, *groups.said(opened(), seed=1)]}
    for key in ("first_turn_diversity", "topic_diversity", "mattr", "hdd", "mtld"):
        one, humans = found[key].values["base"], found[key].values["humans"]
        assert one.ci_high < humans.ci_low and one.value < 0.6 * humans.value, key
    assert found["first_turn_diversity"].values["base"].value == 0.0
    assert found["coverage"].gaps["base"].value < 0.2 < found["coverage"].gaps["usergpt"].value


def test_word_overlap_is_jaccard():
    overlap = groups.word_overlap(["Red apples", "red birds", "rain", "", "?!"])
    assert overlap[0, 1] == pytest.approx(1 / 3) and overlap[0, 2] == 0.0
    assert overlap[3, 4] == 1.0 and overlap[0, 3] == 0.0  # two texts without words are alike


# ---------------------------------------------------------------- how it is said


def test_style_tells_an_assistant_from_people():
    rows = {r.key: r for r in groups.said(opened(), seed=1)}
    assert rows["capitals"].values["roleplay"].value == 1.0 > rows["capitals"].values["humans"].value
    places = {key: row.positions["usergpt"].value for key, row in rows.items() if row.positions}
    assert len(places) >= 6 and abs(np.median(list(places.values()))) < 0.3
    assert {"length_distance", "length_ks", "mean_words", "typos", "polite", "orders"} <= set(rows)


def test_later_turns_have_names_of_their_own():
    rows = groups.said(opened(), seed=1, suffix=groups.LATER)
    assert all(r.key.endswith("_later") and r.words.endswith(", later turns") for r in rows)


# ---------------------------------------------------------------- how it goes on


def talks(ended):
    turns = ("what is rain", "and snow")
    return [Talk(str(i), turns[: 1 + i % 2], ("", "Snow is cold.")[: 1 + i % 2], 0, ended) for i in range(40)]


def test_rounds_that_the_profile_fixed_are_no_result():
    found = {"humans": talks(True), "usergpt": talks(True), "roleplay": talks(False)}
    rows = {r.key: r for r in groups.goes_on(found, {}, 2, seed=1)}
    assert set(rows["rounds"].values) == {"humans", "usergpt"}
    assert rows["rounds"].values["usergpt"].value == pytest.approx(1.5)
    line = groups.fixed_rounds(found, 2)
    assert line.startswith("No result: base told to play a user ended no conversation") and "UserGPT" not in line
    assert groups.fixed_rounds({"usergpt": talks(True)}, 2) == ""


# ---------------------------------------------------------------- what it remembers


def test_a_copied_training_turn_is_caught_by_the_audit():
    trained = texts(200, 9)
    parrot = trained[:N]
    own = [f"{t}, said number {i} of nobody" for i, t in enumerate(texts(N, 11, ("could {a} ever fly over a {p}",)))]
    said = opened({"humans": own + own, "usergpt": parrot, "base": own})
    rows = {r.key: r for r in groups.remembers(said, memory.TrainingTurns(trained), seed=1)}
    assert rows["shared_runs"].values["usergpt"].value == 1.0
    assert rows["copied_turns"].values["usergpt"].ci_low > 0.8
    assert rows["copied_turns"].values["humans"].ci_high < 0.1
    assert rows["longest_shared_run"].gaps["usergpt"].ci_low > 5
