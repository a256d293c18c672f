import asyncio

import numpy as np
import pytest
from stub_server import StubServer

from realm.conversations.conversation import PLACE, SESSION, Conversation, Message
from realm.core.errors import TooFewError
from realm.evaluation import realism
from realm.serving.client import Address, Client
from realm.simulation.simulators import ROLEPLAY, USERGPT

# With two or three texts some resamples hold one text alone, and no pair of different ones.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:The BCa confidence interval"),
]


def holds(measure):
    return measure.ci_low <= measure.value <= measure.ci_high


# ---------------------------------------------------------------- texts of one length


def test_texts_are_cut_at_the_same_number_of_tokens(byte_level):
    texts = ["what does this code do? Tell me more, please.", "hello", "", "   "]
    cut = realism.first_tokens(texts, byte_level, 5)
    assert texts[0].startswith(cut[0]) and cut[0] != texts[0]
    assert len(byte_level(cut[0], add_special_tokens=False).input_ids) <= 5
    assert cut[1:] == ["hello", "(empty)", "(empty)"]


# ---------------------------------------------------------------- diversity


def test_two_identical_texts_have_no_diversity():
    measure = realism.first_turn_diversity(["the same words"] * 2, seed=1)
    assert (measure.value, measure.n) == (0.0, 2)


def test_texts_without_a_shared_word_have_all_of_it():
    texts = ["red apples", "blue birds", "old stones", "cold rain"]
    measure = realism.first_turn_diversity(texts, seed=1)
    assert measure.value == 100.0


def test_diversity_is_one_minus_the_mean_jaccard_of_pairs():
    # a-b share one of three words, a-c and b-c none: (2/3 + 1 + 1) / 3.
    measure = realism.first_turn_diversity(["Red apples", "red birds", "rain"], seed=1)
    assert measure.value == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)


def test_the_interval_of_a_diversity_holds_its_value():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghij"), 4)) for _ in range(40)]
    measure = realism.first_turn_diversity(texts, seed=1)
    assert holds(measure)
    assert 0 < measure.ci_high - measure.ci_low < 20
    assert realism.first_turn_diversity(texts, seed=1) == measure


def test_empty_texts_are_alike():
    assert realism.first_turn_diversity(["", "?!", "..."], seed=1).value == 0.0


def test_topic_diversity_excludes_each_text_with_itself():
    same = np.tile([1.0, 0.0], (4, 1))
    assert realism.topic_diversity(same, seed=1).value == pytest.approx(0.0)
    assert realism.topic_diversity(np.eye(6), seed=1).value == pytest.approx(1.0)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert realism.topic_diversity(opposite, seed=1).value == pytest.approx(2.0)


def test_the_interval_of_a_topic_diversity_holds_its_value():
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert holds(realism.topic_diversity(vectors, seed=1))


# ---------------------------------------------------------------- length


def test_words_and_their_mean():
    assert realism.words("How do I boil an egg?") == 6
    measure = realism.mean_words(["one", "one two three"] * 20, seed=1)
    assert measure.value == 2.0
    assert measure.ci_low < 2.0 < measure.ci_high


def test_length_distance_is_in_words():
    short, long = ["a b"] * 30, ["a b c d e"] * 30
    measure = realism.length_distance(short, long, seed=1)
    assert (measure.value, measure.n) == (3.0, 30)
    assert holds(measure)


def test_the_interval_of_a_small_length_distance_holds_its_value():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 60)
    texts = [" ".join(["word"] * n) for n in lengths]
    assert holds(realism.length_distance(texts, texts, seed=1))


# ---------------------------------------------------------------- turns to compare


def talk(name, first, role="user", place=0):
    meta = {SESSION: name.partition("_")[0], PLACE: place}
    return Conversation(name, (Message(role, first), Message("assistant", "yes")), meta)


def test_one_first_turn_a_session():
    segments = [talk(f"s{i}_{part}", f"turn {i}.{part}", place=part) for i in range(6) for part in range(3)]
    turns = realism.opening_turns(segments, 6, seed=1)
    assert sorted(turns) == [f"turn {i}.0" for i in range(6)]
    assert turns != sorted(turns)
    assert turns == realism.opening_turns(segments, 6, seed=1) != realism.opening_turns(segments, 6, seed=2)


def test_later_segments_and_answers_are_no_openings():
    later = [talk("a_0", "in the middle", place=3), talk("b_0", "an answer", role="assistant")]
    assert realism.opening_turns([*later, talk("d_0", "an opening")], 1, seed=1) == ["an opening"]


def test_two_groups_share_no_session_and_too_few_sessions_name_the_key():
    segments = [talk(f"s{i}_0", f"turn {i}") for i in range(6)]
    one, other = realism.two_human_groups(segments, 3, seed=1)
    assert len(one) == len(other) == 3 and not set(one) & set(other)
    with pytest.raises(TooFewError, match=r"two groups of 4 .* 6 sessions .*simulator_realism\.conversations"):
        realism.two_human_groups(segments, 4, seed=1)


@pytest.mark.parametrize("simulator", [USERGPT, ROLEPLAY])
def test_simulated_openings_differ_in_seed_alone(simulator):
    async def draw(server):
        client = Client(Address(server.url, "stub"), server.endpoint(), simulator.name)
        try:
            return await realism.simulated_first_turns(client, simulator, 5, seed=1)
        finally:
            await client.close()

    with StubServer(reply=lambda body: f" opening {body['seed']} ") as server:
        turns = asyncio.run(draw(server))
        assert len(set(turns)) == 5 and all(t == t.strip() for t in turns)
        expected = [(m.role, m.content) for m in simulator.messages([])]
        assert all(r.said == expected for r in server.completions)
