import numpy as np
import pytest

from realm.core.metrics import Metrics
from realm.evaluation import card, levels
from realm.evaluation.card import Row
from realm.evaluation.measure import Measure


def measure(value, reach=0.1, n=64):
    return Measure(value, value - reach, value + reach, n)


def row(floor=0.5, **gaps):
    found = {who: measure(v) for who, v in gaps.items()}
    return Row(card.GROUPS[0], "two_sample_auc", "told apart", "AUC", found, found, floor)


def normal(n, mean, seed):
    return np.random.default_rng(seed).normal(mean, 1, n)


def test_a_position_is_between_the_floor_and_role_play():
    places = row(usergpt=0.7, base=0.9, roleplay=0.9).positions
    assert places["usergpt"].value == pytest.approx(0.5) and places["roleplay"].value == pytest.approx(1.0)
    assert (places["usergpt"].ci_low, places["usergpt"].ci_high) == pytest.approx((0.25, 0.75))


def test_a_measure_where_less_is_further_turns_the_scale_round():
    places = row(floor=0.9, usergpt=0.7, roleplay=0.5).positions  # coverage: humans cover humans best
    assert places["usergpt"].value == pytest.approx(0.5)
    assert places["usergpt"].ci_low < 0.5 < places["usergpt"].ci_high


def test_without_a_role_play_told_from_humans_there_is_no_scale():
    assert row(usergpt=0.9, roleplay=0.55).positions == {}
    assert row(usergpt=0.9).positions == {}
    rows = [row(usergpt=0.9, roleplay=0.55), row(usergpt=0.7, roleplay=0.9)]
    line = card.without_scale(rows)
    # That a simulator is worse than role-play is not hidden with the scale.
    assert "UserGPT is told from humans by 1 of them: told apart." in line
    assert card.without_scale(rows[1:]) == ""


def test_humans_against_humans_are_at_the_floor():
    found = {"humans": levels.mean_level(normal(256, 0, 1), 1), "roleplay": levels.mean_level(normal(128, 2, 2), 1)}
    places = [
        card.level_row("g", "k", "w", "u", {**found, "usergpt": levels.mean_level(normal(128, 0, s), 1)}).positions
        for s in range(3, 13)
    ]
    values = [p["usergpt"].value for p in places]
    assert np.mean(values) == pytest.approx(0, abs=0.05) and max(map(abs, values)) < 0.2
    assert sum(p["usergpt"].ci_low <= 0 for p in places) >= 9


def test_duplicating_turns_within_conversations_changes_no_interval():
    """A turn said twice counts no more than once, and n stays the number of conversations."""
    from realm.evaluation import groups

    same = [[f"{w} what", f"Please {w}."] for w in "abcdefghijklmnopqrstuvwxyz"]
    talks = {"usergpt": same, "humans": same}
    twice = {who: [[t for t in talk for _ in (0, 1)] for talk in some] for who, some in talks.items()}
    one, other = (
        {r.key: r.values["usergpt"] for r in groups.said(some, seed=1) if "mean over" in r.unit}
        for some in (talks, twice)
    )
    assert len(one) >= 6 and one == other
    assert {m.n for m in one.values()} <= {26}


def test_few_conversations_are_left_out_and_named():
    few = {"humans": levels.mean_level(normal(60, 0, 1), 1), "usergpt": levels.mean_level(normal(9, 0, 2), 1)}
    assert card.level_row("g", "k", "w", "u", few) is None
    assert card.left_out({"usergpt": 9, "base": 10, "humans": 3}, "conversations") == (
        "Cannot be told, fewer than 10 conversations: UserGPT (9)."
    )
    assert card.left_out({"usergpt": 10}, "conversations") == ""
    samples = {"humans": normal(60, 0, 1), "usergpt": normal(9, 0, 2)}
    assert card.distance_row("g", "k", "w", "u", samples, lambda a, b: 0.0, 1) is None


def test_words_too_few_to_pool_are_no_number():
    """Twenty conversations of one word: less than HD-D draws, in all of them or in a half of the humans."""
    from realm.evaluation import groups

    said = {who: [[f"word{i}"] for i in range(n)] for who, n in (("humans", 60), ("usergpt", 45), ("base", 20))}
    rows = {r.key: r for r in groups.said(said, seed=1)}
    assert set(rows["hdd"].values) == {"humans", "usergpt"}
    metrics = Metrics()
    card.add_metrics(metrics, rows.values())
    assert "hdd_usergpt" in metrics and "hdd_base" not in metrics and "hdd_human_floor" not in metrics


def test_a_distance_is_taken_at_equal_n():
    sizes = []

    def distance(a, b):
        sizes.append((len(a), len(b)))
        return abs(a.mean() - b.mean())

    samples = {"humans": normal(100, 0, 1), "usergpt": normal(40, 1, 2), "roleplay": normal(30, 2, 3)}
    found = card.distance_row("g", "k", "w", "u", samples, distance, 1)
    assert {m.n for m in found.gaps.values()} == {30} and max(sizes) == (30, 30)
    assert all(m.ci_low <= m.value <= m.ci_high for m in found.gaps.values())
    assert found.floor < found.gaps["usergpt"].value < found.gaps["roleplay"].value


def test_metrics_have_the_names_of_the_card():
    metrics = Metrics()
    metrics.add("two_sample_auc_human_floor", 0.51, ci=(0.4, 0.6), n=128)
    card.add_metrics(metrics, [row(usergpt=0.7, roleplay=0.9)])
    names = {"two_sample_auc_usergpt", "two_sample_auc_roleplay", "card_two_sample_auc_usergpt"}
    assert names <= {m.name for m in metrics}
    assert metrics["two_sample_auc_human_floor"].ci_low == 0.4  # what is known better stays
    assert metrics["card_two_sample_auc_usergpt"].n == 64
    assert all(m.ci_low is not None for m in metrics)


def test_the_table_and_the_page_hold_every_value():
    rows = [row(usergpt=0.7, roleplay=0.9), row(usergpt=0.7, roleplay=0.5)]
    table = card.table(rows)
    assert table.value.tolist() == [0.7, 0.9, 0.7, 0.5]
    assert table.position.isna().tolist() == [False, False, True, True]
    assert card.wide(rows)["UserGPT"].tolist() == ["0.7 [0.6, 0.8]"] * 2
    assert not table["floor"].isna().any()
