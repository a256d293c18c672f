import numpy as np
import pytest

from realm.evaluation.topics import topic_map, topic_terms

GARDEN = ["water the roses", "prune the roses in spring", "roses need water and sun", "when do roses bloom"]
PYTHON = ["sort a python list", "python list of strings", "reverse a list in python", "python string to list"]


def clouds(seed: int = 0) -> np.ndarray:
    """Two clouds of unit vectors, one a theme."""
    rng = np.random.default_rng(seed)
    points = np.repeat([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 4, axis=0) + rng.normal(0, 0.05, (8, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_clusters_are_found_and_named_by_their_own_terms():
    table = topic_map(GARDEN + PYTHON, clouds(), 2, seed=1)
    garden, python = table.topic[:4].unique(), table.topic[4:].unique()
    assert len(garden) == len(python) == 1 and garden[0] != python[0]
    assert "roses" in garden[0] and "roses" not in python[0]
    assert "python" in python[0] and "list" in python[0]


def test_the_map_is_the_same_for_the_same_seed():
    one, two = (topic_map(GARDEN + PYTHON, clouds(), 2, seed=3) for _ in range(2))
    assert one.equals(two)
    assert np.isfinite(one[["x", "y"]].to_numpy()).all()


def test_numbers_and_common_words_name_nothing():
    names = topic_terms(["the 42 of it is 42 zebra", "what is the zeta 7"], np.array([0, 1]))
    assert names == {0: "1 zebra", 1: "2 zeta"}


def test_fewer_texts_than_topics_is_told():
    with pytest.raises(ValueError, match="topic_turns"):
        topic_map(GARDEN, clouds()[:4], 5, seed=0)
