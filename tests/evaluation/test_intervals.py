from __future__ import annotations

import math

import numpy as np
import pytest

from realm.core.metrics import Metrics
from realm.evaluation.intervals import (
    bootstrap,
    fixed_by_limit,
    interval_around,
    interval_within,
    jackknife_variance,
    mean_interval,
    ratio_of_sums,
)
from realm.evaluation.perplexity import perplexity_difference, perplexity_of

DRAWS = np.random.default_rng(5).normal(10, 2, 400)


def test_the_interval_of_a_mean_is_what_theory_says():
    low, high = mean_interval(DRAWS, seed=0)
    half_width = 1.96 * DRAWS.std(ddof=1) / np.sqrt(len(DRAWS))
    assert low == pytest.approx(DRAWS.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(DRAWS.mean() + half_width, abs=0.1 * half_width)


def test_about_95_of_100_intervals_hold_the_truth():
    generator = np.random.default_rng(1)
    intervals = [mean_interval(generator.exponential(1.0, 60), seed) for seed in range(100)]
    assert 88 <= sum(low <= 1.0 <= high for low, high in intervals) <= 99


@pytest.mark.parametrize("constant", [0.0, 1.0, 22.3])
def test_the_interval_of_a_constant_is_the_constant(constant):
    assert mean_interval([constant] * 10, seed=0) == pytest.approx((constant, constant), abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_row_has_no_interval(values):
    low, high = mean_interval(values, seed=0)
    assert math.isnan(low) and math.isnan(high)
    recorded = Metrics().add("rounds", 3.0, ci=(low, high), n=1)
    assert (recorded.ci_low, recorded.ci_high, recorded.n) == (None, None, 1)
    with pytest.raises(ValueError, match="not finite"):
        Metrics().add("rounds", 3.0, ci=(low, high), n=2)


def test_two_rows_have_one():
    assert mean_interval([1.0, 3.0], seed=0) == (1.0, 3.0)


def test_the_seed_decides():
    assert mean_interval(DRAWS, seed=3) == mean_interval(DRAWS, seed=3)
    assert mean_interval(DRAWS, seed=3) != mean_interval(DRAWS, seed=4)


def test_rows_are_resampled_together():
    shifted = lambda a, b, axis=-1: np.mean(b - a, axis=axis)  # noqa: E731
    assert bootstrap([DRAWS, DRAWS + 3], shifted, seed=0) == pytest.approx((3, 3))


def test_a_statistic_of_one_sample_at_a_time_may_be_given():
    low, high = bootstrap([DRAWS[:40]], lambda x: float(np.median(x)), seed=0, vectorized=False)
    assert low < np.median(DRAWS[:40]) < high


def test_samples_of_different_length_are_refused():
    with pytest.raises(ValueError, match="length"):
        bootstrap([[1.0, 2.0, 3.0], [1.0, 2.0]], ratio_of_sums, seed=0)


def test_a_ratio_of_sums_weighs_rows_by_their_size():
    assert ratio_of_sums(np.array([1.0, 9.0]), np.array([10.0, 10.0])) == 0.5
    assert ratio_of_sums(np.array([[1.0, 1.0], [4.0, 2.0]]), np.array([[2.0, 2.0], [1.0, 1.0]])).tolist() == [0.5, 3.0]


def test_perplexity_is_the_number_of_equal_choices():
    tokens = np.array([5.0, 1.0, 14.0])
    assert perplexity_of(tokens * np.log(8), tokens) == pytest.approx(8)


def test_perplexity_belongs_to_tokens_not_to_conversations():
    assert perplexity_of(np.array([0.0, 3 * np.log(16)]), np.array([9.0, 3.0])) == pytest.approx(2)


def test_a_difference_of_perplexities_is_one_minus_the_other():
    tokens = np.array([3.0, 7.0])
    assert perplexity_difference(tokens * np.log(16), tokens, tokens * np.log(20), tokens) == pytest.approx(-4)
    assert bootstrap([tokens] * 4, perplexity_difference, seed=0) == (0, 0)


# ---------------------------------------------------------------- leaving out


def test_the_jackknife_of_a_mean_is_its_variance():
    left_out = (DRAWS.sum() - DRAWS) / (len(DRAWS) - 1)
    assert jackknife_variance(left_out) == pytest.approx(DRAWS.var(ddof=1) / len(DRAWS))


@pytest.mark.parametrize("value", [0.001, 0.3, 0.999])
def test_an_interval_stays_within_bounds_around_its_value(value):
    low, high = interval_within(value, 0.01, 50, 0.0, 1.0)
    assert 0 <= low < value < high <= 1
    small = interval_within(value, 1e-12, 50, 0.0, 1.0)
    assert small == pytest.approx((value - 1.96e-6, value + 1.96e-6), abs=1e-8)


def test_at_a_bound_the_interval_has_its_other_end():
    assert interval_within(1.0, 0.0, 60, 0.0, 1.0) == pytest.approx((0.95, 1.0))
    assert interval_within(0.0, 0.0, 60, 0.0, 100.0) == pytest.approx((0.0, 5.0))
    assert interval_around(1.0, 4.0) == pytest.approx((1 - 2 * 1.96, 1 + 2 * 1.96), rel=1e-4)


def test_what_the_profile_fixes_is_told():
    assert fixed_by_limit([3, 3, 3], 3)
    assert not fixed_by_limit([3, 2, 3], 3)
