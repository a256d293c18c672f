import math
import random

import pytest

from realm.evaluation import wording

TEXT = (
    "the cat sat on the mat and the dog sat on the log while a bird sang in the old tree near the wide river " * 4
).split()


# ---------------------------------------------------------------- of one text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("mean_words", "How do I boil an egg?", 6),
        ("mean_words", "", 0),
        ("capitals", "  what is it", 0),
        ("capitals", '"What is it', 1),
        ("capitals", "123 ?!", math.nan),
        ("sentence_ends", "Do it.", 1),
        ("sentence_ends", 'He said "no!" ', 1),
        ("sentence_ends", "do it", 0),
        ("sentence_ends", "", math.nan),
        ("punctuation", "yes, no!", 1.0),
        ("punctuation", "look: ```a[0] = b(c);``` here", 0.5),
        ("punctuation", "?!", math.nan),
        ("typos", "please writ teh aricle agian", 0.6),
        ("typos", "please write the article again", 0.0),
        ("typos", "call `dfgh(xyzzy)` in my_modul or at https://qwrt.example", 0.0),
        ("typos", "MySQL IBM Ångström", math.nan),
        ("polite", "Could you help me?", 1),
        ("polite", "thx", 1),
        ("polite", "candid words", 0),
        ("questions", "what is rain", 1),
        ("questions", "rain is wet, right?", 1),
        ("questions", "explain `a ? b : c`", 0),
        ("orders", "Write a poem", 1),
        ("orders", "please, explain this", 1),
        ("orders", "I write poems", 0),
        ("orders", "", 0),
    ],
)
def test_a_mark_of_one_text(key, text, value):
    found = wording.MARKS[key][1](text)
    assert found == pytest.approx(value, nan_ok=True)


def test_a_mean_leaves_out_texts_without_a_value():
    assert wording.mean_over(["Yes.", "", "no"], wording.ends_with_mark) == 0.5
    assert math.isnan(wording.mean_over(["", " "], wording.ends_with_mark))


# ---------------------------------------------------------------- of many words


def test_mattr_is_the_mean_of_its_windows():
    words = random.Random(1).choices("abcdefgh", k=90)
    by_hand = [len(set(words[i : i + 50])) / 50 for i in range(41)]
    assert wording.mattr(words) == pytest.approx(sum(by_hand) / 41)
    assert wording.mattr(["a", "b", "a", "c"]) == 0.75
    assert math.isnan(wording.mattr([]))


def test_hdd_is_what_random_draws_show():
    chance = random.Random(1)
    drawn = [len(set(chance.sample(TEXT, 42))) / 42 for _ in range(4_000)]
    assert wording.hdd(TEXT) == pytest.approx(sum(drawn) / len(drawn), abs=0.005)
    assert math.isnan(wording.hdd(TEXT[:41]))


def test_mtld_counts_the_runs_until_words_repeat():
    # Ten words, then one of them again and again: 10 distinct of 14 fall below 0.72, forwards; backwards 2 of 10 do.
    forwards = [*"abcdefghij", *"aaaa"]
    assert wording.mtld(forwards) == pytest.approx((14 + 14 / (1 + (1 - 4 / 4) / 0.28)) / 2)
    assert wording.mtld(list("abcdefghijkl")) == 12  # nothing repeats: as long as the text
    assert math.isnan(wording.mtld([]))


@pytest.mark.parametrize("key", wording.LEXICAL)
def test_one_sentence_repeated_has_less_of_every_diversity(key):
    chance = random.Random(1)
    vocabulary = [f"word{i}" for i in range(400)]
    rich = chance.choices(vocabulary, k=800)
    of = wording.LEXICAL[key][1]
    assert of(rich[:10] * 80) < 0.4 * of(rich)
