import math

import pytest

from realm.evaluation.several import by_holm, holm


def test_holm_adjusts_from_the_smallest_p_value_up():
    # As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"), and statsmodels' multipletests.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.2}) == {"only": 0.2}
    assert holm({}) == {}


def test_differences_are_adjusted_for_their_number_and_without_an_interval_are_none():
    gaps = {"near": (1.0, 0.0, 2.0), "far": (-4.0, -6.0, -2.0), "none": (1.0, math.nan, math.nan)}
    assert by_holm(gaps) == pytest.approx({"near": 0.05, "far": 2 * 8.857e-05}, rel=1e-3)
    assert by_holm({"same": (0.0, 0.0, 0.0)}) == {"same": 1.0}
