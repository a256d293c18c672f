import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from realm.core.errors import TooFewError
from realm.evaluation import leaving_out
from realm.evaluation.leaving_out import FOLDS, ONE, OTHER, PENALTY, Rows, fold_values, spread_of, wins
from realm.evaluation.two_sample import difference, folding, human_floor, two_sample


def normal(n, shift, seed, width=12):
    return np.random.default_rng(seed).normal(size=(n, width)) + shift


def told(one, other, repeats=3, permutations=0, seed=1, **more):
    return two_sample(one, other, repeats=repeats, permutations=permutations, seed=seed, **more)


# ---------------------------------------------------------------- what comes out


def test_one_distribution_cannot_be_told_from_itself():
    found = [told(normal(80, 0, 2 * s), normal(80, 0, 2 * s + 1)).auc.value for s in range(20)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


def test_a_planted_difference_is_found():
    test = told(normal(60, 0, 1), normal(60, 0.5, 2), permutations=99)
    assert 0.7 < test.auc.value < 1
    assert test.p_value == pytest.approx(1 / 100)
    assert test.null_high < test.auc.ci_low
    assert test.auc.n == 120


def test_shuffled_labels_give_one_half():
    apart = np.vstack([normal(50, 0, 1), normal(50, 3, 2)])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        mixed = rng.permutation(apart)
        found.append(told(mixed[:50], mixed[50:]).auc.value)
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)


def test_humans_against_humans_come_out_at_the_floor():
    floor, sd = human_floor(normal(160, 0, 1), 64, halvings=30, repeats=3, seed=1)
    assert floor.value == pytest.approx(0.5, abs=0.04)
    assert floor.ci_low < 0.5 < floor.ci_high
    assert 0.02 < sd < 0.1
    test = told(normal(64, 0, 1), normal(64, 0, 2), permutations=99)
    assert abs(test.auc.value - floor.value) < 3 * sd and test.p_value > 0.05
    assert test.null_mean == pytest.approx(0.5, abs=0.03)


def test_sides_wholly_apart_still_have_an_interval():
    test = told(normal(40, 0, 1), normal(40, 5, 2))
    assert (test.auc.value, test.auc.ci_high) == (1.0, 1.0)
    assert test.auc.ci_low == pytest.approx(1 - 3 / 40)


@pytest.mark.parametrize("shift", [0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("seed", range(10))
def test_the_interval_is_of_the_value(seed, shift):
    auc = told(normal(24, 0, 2 * seed), normal(30, shift, 2 * seed + 1), repeats=2).auc
    assert 0 <= auc.ci_low < auc.value < auc.ci_high <= 1
    odds = [np.log(p / (1 - p)) for p in (auc.ci_low, auc.value, auc.ci_high)]
    assert odds[1] - odds[0] == pytest.approx(odds[2] - odds[1])


def test_the_interval_is_as_wide_as_the_value_varies():
    found = [told(normal(40, 0, 2 * s, 100), normal(40, 0.1, 2 * s + 1, 100)) for s in range(60)]
    spread = np.std([t.auc.value for t in found])
    told_spread = np.sqrt(np.mean([t.spread.variance for t in found]))
    assert 0.85 < told_spread / spread < 1.5


def test_the_same_seed_gives_the_same_numbers():
    def run(seed):
        test = told(normal(30, 0, 1), normal(30, 0.3, 2), permutations=5, seed=seed)
        return test.auc, test.null_mean, test.null_high, test.p_value

    assert run(5) == run(5) != run(6)


def test_too_few_conversations_are_refused_in_one_line():
    with pytest.raises(TooFewError, match=r"usergpt: 9 and 12 conversations, at least 10 .*simulator_realism"):
        told(normal(9, 0, 1), normal(12, 0, 2), desc="usergpt")
    with pytest.raises(TooFewError, match="human floor: 30 conversations, two groups of 16"):
        human_floor(normal(30, 0, 1), 16, repeats=1, seed=1)


# ---------------------------------------------------------------- the procedure


def test_scores_out_of_fold_are_those_of_a_classifier_fitted_without_them():
    one, other = normal(23, 0, 1), normal(31, 0.5, 2)
    features = np.vstack([one, other])
    columns = (features - features.mean(axis=0)) / features.std(axis=0)
    label = np.repeat([ONE, OTHER], [23, 31])
    folds = folding(label, np.random.default_rng(0))
    expected = []
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        model = Ridge(alpha=PENALTY * 12).fit(columns[train], label[train])
        expected.append(roc_auc_score(label[test], model.predict(columns[test])))
    assert fold_values(Rows.of(features, np.arange(54)), label, folds) == pytest.approx(expected)


def test_columns_that_never_change_are_no_trouble():
    one, other = normal(20, 0, 1), normal(20, 1, 2)
    still = np.ones((20, 1))
    assert told(np.hstack([one, still]), np.hstack([other, still])).auc == told(one, other).auc


@pytest.fixture
def talks():
    """Conversations of two to four turns, whose turns share a subject; no side differs from the other."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 5, 40)
    subject = rng.normal(size=(40, 60))
    turns = np.repeat(subject, sizes, axis=0) + 0.1 * rng.normal(size=(sizes.sum(), 60))
    names = np.repeat(np.arange(40), sizes)
    first = names < 20
    return turns[first], turns[~first], (names[first], names[~first] - 20)  # the same names on both sides


def test_no_conversation_is_in_train_and_test(talks):
    one, other, groups = talks
    grouped = told(one, other, repeats=10, permutations=19, groups=groups)
    assert grouped.auc.value == pytest.approx(0.5, abs=0.2)
    assert grouped.auc.ci_low < 0.5 < grouped.auc.ci_high
    assert grouped.auc.n == 40
    # Turns folded by themselves are told by the subject that they share with a turn of the training folds.
    assert told(one, other, repeats=10).auc.ci_low > 0.7
    assert human_floor(np.vstack([one, other]), 20, repeats=5, seed=1, groups=np.r_[groups[0], groups[1] + 20])[
        0
    ].value == pytest.approx(0.5, abs=0.1)


def test_every_fold_holds_whole_conversations_of_both_sides(monkeypatch, talks):
    one, other, groups = talks
    tested = []
    seen = leaving_out._scores_left_out

    def watched(rows, y, residuals, rows_tested, outside):
        tested.append(rows_tested)
        return seen(rows, y, residuals, rows_tested, outside)

    monkeypatch.setattr(leaving_out, "_scores_left_out", watched)
    told(one, other, repeats=2, groups=groups)
    names = np.concatenate([groups[0], groups[1] + 100])
    assert len(tested) == 2 * FOLDS
    for rows in tested:
        inside, outside = names[rows], np.delete(names, rows)
        assert not set(inside) & set(outside)
        assert len({n for n in inside if n < 100}) == len({n for n in inside if n >= 100}) == 4


def test_permuted_labels_keep_conversations_whole(monkeypatch, talks):
    one, other, groups = talks
    labels = []
    seen = fold_values
    monkeypatch.setattr(
        "realm.evaluation.two_sample.fold_values",
        lambda rows, label, folds: labels.append(label) or seen(rows, label, folds),
    )
    test = told(one, other, repeats=2, permutations=7, groups=groups)
    assert len(labels) == 2 * 7
    assert all(len(label) == 40 and label.sum() == 20 for label in labels)
    assert len({tuple(label) for label in labels}) == 7
    assert 1 / 8 <= test.p_value <= 1


def test_the_p_value_counts_permutations_that_reach_the_value(monkeypatch):
    values = iter([0.4, 0.9, 0.7, 0.6])
    monkeypatch.setattr("realm.evaluation.two_sample.fold_values", lambda *_: next(values))
    monkeypatch.setattr("realm.evaluation.two_sample.spread_of", lambda *_: flat_spread(0.7))
    test = told(normal(10, 0, 1), normal(10, 0, 2), repeats=1, permutations=4)
    assert test.p_value == (1 + 2) / 5  # 0.9 and 0.7
    assert test.null_mean == pytest.approx(0.65)


def flat_spread(value):
    zeros = np.zeros((1, 20))
    return leaving_out.Spread(np.array([value]), np.repeat([ONE, OTHER], 10), zeros, zeros, 0.0)


def test_wins_count_ties_half():
    scores, side = np.array([2.0, 1.0, 1.0, 0.0]), np.array([OTHER, OTHER, ONE, ONE])
    assert wins(scores, side).tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert wins(scores, side).mean() == roc_auc_score(side, scores)


# ---------------------------------------------------------------- leaving conversations out


@pytest.fixture
def planted():
    """Conversations of one to three rows: columns, the conversation of each row, sides, a folding, rows to refit."""
    names = np.repeat(np.arange(30), [1, 2, 3] * 10)
    label = np.repeat([ONE, OTHER], 15)
    features = normal(len(names), 0, 4, 6) + 0.5 * label[names][:, None]
    columns = (features - features.mean(axis=0)) / features.std(axis=0)
    return columns, names, label, folding(label, np.random.default_rng(0)), Rows.of(features, names)


def refitted(columns, names, label, folds, fold, left_out):
    """AUC of a fold, its classifier fitted anew, without some conversations on either side of it."""
    kept = ~np.isin(names, left_out)
    test, train = kept & (folds[names] == fold), kept & (folds[names] != fold)
    centred = columns[train] - columns[train].mean(axis=0)
    gram = centred.T @ centred + PENALTY * columns.shape[1] * np.eye(columns.shape[1])
    weights = np.linalg.solve(gram, centred.T @ label[names[train]])
    return wins(columns[test] @ weights, label[names[test]]).mean()


def test_moves_are_those_of_fits_without_the_conversation(planted):
    columns, names, label, folds, rows = planted
    spread = spread_of(rows, label, [folds])
    value = lambda *out: np.mean([refitted(columns, names, label, folds, f, out) for f in range(FOLDS)])  # noqa: E731
    assert spread.values == pytest.approx([value()])
    assert spread.moves[0] == pytest.approx([value(g) - value() for g in range(30)], abs=1e-5)


def test_what_pairs_move_is_that_of_fits_without_both(planted):
    columns, names, label, folds, rows = planted
    y = rows.targets(label)
    tested, groups = rows.of_groups(np.flatnonzero(folds == 2))
    outside = np.flatnonzero(folds != 2)
    scores = leaving_out._scores_left_out(rows, y, rows.residual @ y, tested, outside)
    pairs = np.zeros((30, 30))
    leaving_out._moved(*scores, label, groups, outside, *np.zeros((2, 30)), pairs)

    value = lambda *out: refitted(columns, names, label, folds, 2, out)  # noqa: E731
    for g in np.flatnonzero(folds == 2):
        for h in range(30):
            if folds[h] != 2 or label[h] != label[g]:
                assert (
                    pairs[g, h] == pairs[h, g] == pytest.approx(value() - value(g) - value(h) + value(g, h), abs=1e-5)
                )


# ---------------------------------------------------------------- several tests


def test_the_difference_of_two_tests_is_paired():
    humans, near, far = normal(50, 0, 1), normal(50, 0.1, 2), normal(50, 0.6, 3)
    one, other = told(humans, far), told(humans, near)
    gap = difference(one, other)
    assert gap.value == pytest.approx(one.auc.value - other.auc.value)
    assert gap.ci_low < gap.value < gap.ci_high and gap.ci_low > 0
    assert gap.n == 150
    same = difference(one, one)
    # Its own rival has the same humans, but other texts as far as can be known.
    assert same.value == 0 and same.ci_low < 0 < same.ci_high


def test_a_difference_is_told_better_by_pairs():
    humans = normal(60, 0, 1, 30)
    tests = [told(humans, normal(60, 0.3, seed, 30)) for seed in (2, 3)]
    paired = difference(*tests)
    apart = 1.96 * np.sqrt(sum(t.spread.variance for t in tests))
    assert (paired.ci_high - paired.ci_low) / 2 < apart


def test_other_humans_or_foldings_are_refused():
    humans = normal(40, 0, 1)
    one = told(humans, normal(40, 0, 2))
    for other in (told(humans[:30], normal(40, 0, 2)), told(humans, normal(40, 0, 2), repeats=2)):
        with pytest.raises(ValueError, match="not the same humans or foldings"):
            difference(one, other)


def test_the_same_humans_are_folded_alike_whoever_they_meet():
    folds = [folding(np.repeat([ONE, OTHER], [30, m]), np.random.default_rng([7, 0])) for m in (30, 44)]
    assert folds[0][:30].tolist() == folds[1][:30].tolist()
    assert len(set(np.bincount(folds[0][:30]))) == 1
