import math

import pytest

from realm.evaluation import memory

TRAINED = [
    "How can I plant tulips in a small garden before the frost comes in November?",
    "Write a letter to my landlord about the broken heating, and ask for a lower rent.",
    "plant tulips in a small",
]


@pytest.fixture(scope="module")
def training():
    return memory.TrainingTurns(TRAINED)


def test_a_copied_training_turn_is_caught(training):
    found = training.shared("how can I plant tulips, in a small garden before the frost comes in november")
    assert (found.longest, found.begins, found.share, found.copied) == (15, 0, 1.0, True)


def test_a_copy_inside_a_longer_turn_is_found_where_it_begins(training):
    text = "Hello! Write a letter to my landlord about the broken heating now"
    found = training.shared(text)
    assert (found.words, found.longest, found.begins) == (12, 10, 1)
    assert found.copied and found.share == 6 / 8
    [row] = memory.examples([text, "nothing of it"], [found, training.shared("nothing of it")], 5).to_dict("records")
    assert row["run"] == "write a letter to my landlord about the broken heating"


def test_words_of_ones_own_are_no_copy(training):
    found = training.shared("Which bread goes well with a soup of lentils and old carrots?")
    assert (found.longest, found.share, found.copied) == (0, 0.0, False)
    assert memory.examples(["x"], [training.shared("x")], 5).empty


def test_a_run_does_not_go_on_in_the_next_turn(training):
    # The end of one training turn and the beginning of the next, as they stand in the list.
    found = training.shared("before the frost comes in november write a letter to my landlord")
    assert found.longest == 6 and not found.copied


def test_short_turns_are_not_told(training):
    found = training.shared("tulips in a small")
    assert found.copied is None and math.isnan(found.share) and found.longest == 0
    assert training.shared("").words == 0


def test_no_training_turns_share_nothing():
    assert memory.TrainingTurns([]).shared("one two three four five six seven eight").longest == 0
