import math

import numpy as np
import pytest

from realm.evaluation import levels, wording
from realm.evaluation.measure import Measure


def holds(m):
    return m.ci_low <= m.value <= m.ci_high


def test_a_mean_leaves_out_conversations_without_a_value():
    level = levels.mean_level([1.0, math.nan, 3.0, 2.0], seed=1)
    assert (level.n, level.measure.value) == (3, 2.0) and holds(level.measure)


def test_a_share_of_none_is_not_known_to_be_none():
    none, all_ = (levels.mean_level([v] * 24, seed=1).measure for v in (0.0, 1.0))
    assert (none.value, none.ci_low) == (0.0, 0.0) and 0.1 < none.ci_high < 0.2
    assert (all_.value, all_.ci_high) == (1.0, 1.0) and 0.8 < all_.ci_low < 0.9


def test_the_interval_of_pooled_words_covers_what_other_conversations_show():
    """Of 60 samples of one source, about 57 intervals hold the value of a very large one."""
    rng = np.random.default_rng(1)
    vocabulary = np.array([f"w{i}" for i in range(500)])
    weights = 1 / np.arange(1, 501)
    talks = lambda n: [list(rng.choice(vocabulary, 20, p=weights / weights.sum())) for _ in range(n)]  # noqa: E731
    truth = wording.hdd([w for t in talks(5_000) for w in t])
    found = [levels.pooled_level(talks(40), wording.hdd, seed=i).measure for i in range(60)]
    assert sum(m.ci_low <= truth <= m.ci_high for m in found) >= 53
    assert np.mean([m.ci_high - m.ci_low for m in found]) < 0.1


def test_pairs_are_of_two_different_conversations():
    assert levels.pairwise_level(np.ones((4, 4)), 100.0, seed=1).measure.value == 0.0
    assert levels.pairwise_level(np.eye(6), 1.0, seed=1).measure == Measure(1.0, 1.0, 1.0, 6)
    half = levels.pairwise_level(np.eye(6), 1.0, seed=1)
    assert half.of(np.array([0, 2, 4])) == 1.0


def test_a_gap_is_a_distance_with_the_interval_of_a_difference():
    far = levels.gap(Measure(5.0, 4.0, 6.0, 30), Measure(1.0, 0.0, 2.0, 60))
    reach = math.hypot(1, 1)
    assert (far.value, far.n) == (4.0, 30)
    assert (far.ci_low, far.ci_high) == pytest.approx((4 - reach, 4 + reach))
    assert levels.gap(Measure(1.0, 0.0, 2.0, 60), Measure(5.0, 4.0, 6.0, 30)).ci_low == pytest.approx(far.ci_low)
    near = levels.gap(Measure(1.0, 0.0, 2.0, 30), Measure(1.5, 0.5, 2.5, 60))
    assert near.value == 0.5 and near.ci_low == 0.0 and near.ci_high == pytest.approx(0.5 + reach)


def test_the_floor_is_what_two_halves_of_the_humans_differ_by():
    rng = np.random.default_rng(1)
    humans = levels.mean_level(rng.normal(size=400), seed=1)
    # The difference of two means of 200 has a standard deviation of 0.1; its absolute value a mean of 0.08.
    assert levels.floor(humans, 200) == pytest.approx(0.08, abs=0.03)
    assert levels.floor(humans, 20) > 2 * levels.floor(humans, 200)
    assert levels.floor(levels.mean_level([2.0] * 40, seed=1), 20) == 0.0
