import numpy as np
import pytest

from realm.evaluation.embedding_distance import density_coverage, embedding_distance, embedding_floor


def unit(n, shift, seed, width=16):
    vectors = np.random.default_rng(seed).normal(size=(n, width))
    vectors[:, 0] += shift
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def holds(measure):
    return measure.ci_low < measure.value < measure.ci_high


# ---------------------------------------------------------------- energy distance


def test_the_energy_distance_is_what_its_formula_says():
    one, other = np.array([[0.0], [1.0], [3.0]]), np.array([[2.0], [6.0], [7.0]])
    # Across: 2 6 7, 1 5 6, 1 3 4, mean 35/9; within: 1 3 2, mean 2; and 4 5 1, mean 10/3.
    assert embedding_distance(one, other).value == pytest.approx(2 * 35 / 9 - 2 - 10 / 3)


def test_one_distribution_lies_at_nothing_and_another_does_not():
    found = [embedding_distance(unit(60, 0, 2 * s), unit(60, 0, 2 * s + 1)) for s in range(40)]
    values = [m.value for m in found]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(40)
    assert min(values) < 0  # no value is cut at none
    assert all(map(holds, found))
    assert sum(m.ci_low <= 0 <= m.ci_high for m in found) >= 34
    far = embedding_distance(unit(60, 2, 1), unit(60, 0, 2))
    assert far.ci_low > 0 and far.n == 120


def test_humans_against_humans_lie_at_nothing():
    floor, sd = embedding_floor(unit(120, 0, 1), 50, seed=3)
    assert floor.ci_low < 0 < floor.ci_high
    assert sd > 0 and floor.n == 100
    assert embedding_floor(unit(120, 0, 1), 50, seed=3) == (floor, sd)


# ---------------------------------------------------------------- density and coverage


def slow(real, simulated, k):
    """By the definitions in arXiv 2002.09797."""
    radius = [sorted(np.linalg.norm(real - x, axis=1))[k] for x in real]
    inside = np.array([[np.linalg.norm(x - y) <= r for y in simulated] for x, r in zip(real, radius, strict=True)])
    return inside.sum() / (k * len(simulated)), inside.any(axis=1).mean()


def test_density_and_coverage_are_what_their_definitions_say():
    real, simulated = unit(30, 0, 1), unit(25, 1, 2)
    density, coverage = density_coverage(real, simulated, k=3)
    assert (density.value, coverage.value) == pytest.approx(slow(real, simulated, 3))
    assert holds(density) and holds(coverage) and density.n == coverage.n == 55


def test_their_intervals_leave_out_real_and_simulated_rows():
    real, simulated = unit(20, 0, 1), unit(14, 0.5, 2)
    without = [slow(np.delete(real, i, 0), simulated, 3) for i in range(20)]
    without_simulated = [slow(real, np.delete(simulated, i, 0), 3) for i in range(14)]
    variance = sum((len(x) - 1) / len(x) * np.sum((x - np.mean(x, 0)) ** 2, 0) for x in (without, without_simulated))
    density, coverage = density_coverage(real, simulated, k=3)
    assert density.ci_high - density.value == pytest.approx(1.95996 * np.sqrt(variance[0]), rel=1e-4)
    odds = np.log(coverage.ci_high / (1 - coverage.ci_high)) - np.log(coverage.value / (1 - coverage.value))
    assert odds == pytest.approx(1.95996 * np.sqrt(variance[1]) / (coverage.value * (1 - coverage.value)), rel=1e-4)


def test_one_distribution_is_covered_as_theory_says():
    found = [density_coverage(unit(100, 0, 2 * s), unit(100, 0, 2 * s + 1)) for s in range(10)]
    assert np.mean([d.value for d, _ in found]) == pytest.approx(1, abs=0.1)
    assert np.mean([c.value for _, c in found]) == pytest.approx(1 - 2**-5, abs=0.03)


def test_one_sentence_repeated_covers_next_to_nothing():
    real = unit(60, 0, 1)
    _, coverage = density_coverage(real, np.tile(real[:1], (60, 1)))
    assert coverage.value < 0.3
    nowhere = np.zeros((60, 16))
    nowhere[:, 3] = 50
    density, coverage = density_coverage(real, nowhere)
    assert (density.value, coverage.value, coverage.ci_low) == (0, 0, 0)
    assert coverage.ci_high == pytest.approx(3 / 60)
