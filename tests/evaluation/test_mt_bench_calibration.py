"""The judge as an instrument: stub judges with one known fault each come out with that fault."""

import pytest
from mt_bench_stage import at_the_bench, config, hashed, is_pair, longer, made_up, shown
from stub_server import Fault, StubServer

from realm.core.metrics import Metrics
from realm.evaluation import mt_bench
from realm.evaluation.mt_bench import NEEDS_REFERENCE, WRONG_REFERENCES
from realm.evaluation.mt_bench_calibration import add_calibration
from realm.evaluation.mt_bench_scores import add_scores, add_wins, reasons_table
from realm.evaluation.mt_bench_sitting import sit

FLAGGED = Fault(403, "This input was flagged by moderation: violence")


@pytest.fixture(scope="module")
def questions():
    return mt_bench.load_questions()


@pytest.fixture(scope="module")
def references():
    return {turns[0] for turns in mt_bench.load_references().values()}


def sitting(questions, folder, judge, *, words=None, **values):
    """What the judge, a function of a request's body, comes to: metrics, and its sitting. ReaLM's answers are longer
    than the base's unless ``words`` says otherwise."""
    kinds = {"base": "short", "realm": "rather longer"}
    answers = {m: made_up(questions, m, words or (lambda q, t, m=m: f"{kinds[m]} {t} to {q.id}")) for m in kinds}
    metrics = Metrics()
    wanted = config(**{"pairwise": True, **values})
    with StubServer(judge) as server:
        held = at_the_bench(server, folder, lambda bench: sit(bench, questions, answers, wanted), concurrency=8)
    if held.calibration:
        add_calibration(metrics, held.calibration)
    for grades in held.grades.values():
        add_scores(metrics, grades, questions, held.judge, seed=1)
    add_wins(metrics, held.pairs, held.pairs_missing, held.judge, seed=1)
    return metrics, held


def values_of(metrics, *names):
    return [round(metrics[name].value, 6) for name in names]


CALIBRATED = ("judge_reference_preferred", "judge_ties_on_equals", "judge_keeps_on_swap", "judge_repeats_itself")
WINS = tuple(f"mt_bench_{name}_realm_base" for name in ("win_rate", "tie_rate", "loss_rate", "win_rate_adjusted"))


def test_a_perfect_judge_passes_every_test(questions, references, tmp_path):
    def judge(body):
        if not is_pair(body):
            return "[[6]]"
        texts = shown(body)
        by_reference = [who for who in "AB" if texts[who] in references]
        return f"[[{by_reference[0] if by_reference else 'C'}]]"

    metrics, held = sitting(questions, tmp_path, judge, pairwise=False)
    assert values_of(metrics, *CALIBRATED) == [1, 1, 1, 1]
    assert [metrics[name].n for name in CALIBRATED] == [30, 80, 30, 80]
    preferred = metrics["judge_reference_preferred"]
    assert (round(preferred.ci_low, 3), preferred.ci_high) == (0.886, 1.0)  # Wilson, 30 of 30
    assert metrics["judge_prefers_first"].value == 0.5
    assert "stub" in preferred.unit
    assert len(held.calibration.against) == 30


def test_references_that_were_reported_wrong_are_told_apart(questions, tmp_path):
    assert len(set(WRONG_REFERENCES)) == 13
    assert {q.category for q in questions if q.id in WRONG_REFERENCES} <= set(NEEDS_REFERENCE)
    metrics, _ = sitting(questions, tmp_path, lambda body: "[[A]]" if is_pair(body) else "[[6]]", pairwise=False)
    assert metrics["judge_reference_preferred_right"].n == 17
    assert metrics["judge_reference_preferred_wrong"].n == 13


def test_comparisons_of_the_calibration_are_blind(questions, tmp_path):
    asked = []
    sitting(questions, tmp_path, lambda body: asked.append(body) or ("[[C]]" if is_pair(body) else "[[6]]"))
    plain = [b for b in asked if is_pair(b) and "eference answer" not in b["messages"][0]["content"]]
    with_reference = [b for b in asked if is_pair(b) and "eference answer" in b["messages"][0]["content"]]
    first_turns = {q.turns[0] for q in questions if q.category in NEEDS_REFERENCE}
    blind = [b for b in plain if any(t in b["messages"][1]["content"] for t in first_turns)]
    assert len(blind) >= 30 * 3  # two orders and the equal answers
    assert len(with_reference) == 30 * 2 * 2  # ReaLM against the base: turns, orders


def test_always_seven(questions, tmp_path):
    metrics, held = sitting(questions, tmp_path, lambda body: "Rating: [[7]]", judge_repeats=3)
    overall = metrics["mt_bench_overall_realm"]
    assert (overall.value, overall.ci_low, overall.ci_high, overall.n) == (7.0, 7.0, 7.0, 160)
    assert values_of(metrics, "mt_bench_lowest_realm", "mt_bench_highest_realm", "judge_repeats_itself") == [7, 7, 1]
    noise = metrics["mt_bench_judge_noise_realm"]
    assert (noise.value, noise.ci_low, noise.ci_high, noise.n) == (0.0, 0.0, 0.0, 160)
    # A rating is no verdict: nothing is won, nothing is a tie, and all of it is counted.
    assert values_of(metrics, *CALIBRATED[:3]) == [0, 0, 0]
    assert metrics["mt_bench_unread_pairs_realm_base"].value == 160
    assert not any(name in metrics for name in WINS)
    assert {(r["g1_winner"], r["g2_winner"]) for r in held.pairs} == {("error", "error")}


def test_always_the_first_shown(questions, tmp_path):
    metrics, _ = sitting(questions, tmp_path, lambda body: "[[A]]" if is_pair(body) else "[[6]]")
    assert values_of(metrics, *CALIBRATED) == [0, 0, 0, 1]
    assert values_of(metrics, "judge_prefers_first") == [1]
    assert values_of(metrics, *WINS) == [0, 1, 0, 0.5]  # no order agrees with the other: all are ties
    assert metrics[WINS[0]].n == 160


def test_the_longer_one(questions, tmp_path):
    metrics, held = sitting(
        questions, tmp_path, lambda body: f"[[{longer(shown(body))}]]" if is_pair(body) else "[[6]]"
    )
    assert values_of(metrics, *CALIBRATED[1:]) == [1, 1, 1]
    base, said = "base: short 1 to 100", mt_bench.load_references()
    expected = sum(len(said[i][0]) > len(base) for i in said) / 30
    assert 0 < expected == metrics["judge_reference_preferred"].value  # it knows nothing of right and wrong
    assert values_of(metrics, *WINS) == [1, 0, 0, 1]
    assert {(r["g1_winner"], r["g2_winner"]) for r in held.pairs} == {("model_1", "model_1")}


def test_it_quotes_another_verdict_first(questions, tmp_path):
    def judge(body):
        if not is_pair(body):
            return "Others gave it [[2]], and [[10]] is the best there is. Rating: [[6]]"
        verdict = longer(shown(body))
        return f"A hasty reader would say [[{'B' if verdict == 'A' else 'A'}]]. My verdict: [[{verdict}]]"

    metrics, _ = sitting(questions, tmp_path, judge)
    assert values_of(metrics, "mt_bench_overall_realm", "mt_bench_overall_base", *WINS) == [6, 6, 1, 0, 0, 1]
    assert values_of(metrics, "judge_ties_on_equals", "judge_keeps_on_swap") == [1, 1]


def test_a_tenth_is_garbage(questions, tmp_path):
    def judge(body):
        if hashed(body) < 0.1:
            return "I cannot say."
        return f"[[{longer(shown(body))}]]" if is_pair(body) else f"[[{4 + round(4 * hashed(body, 'rating'))}]]"

    metrics, held = sitting(questions, tmp_path, judge)
    for model in ("base", "realm"):
        first = held.grades[model].rounds[0]
        read = [r["score"] for r in first if r["score"] is not None]
        unread, overall = metrics[f"mt_bench_unread_ratings_{model}"], metrics[f"mt_bench_overall_{model}"]
        assert 3 <= unread.value == 160 - len(read) <= 35 and unread.n == 160
        assert (overall.value, overall.n) == (pytest.approx(sum(read) / len(read)), len(read))
        assert overall.ci_low < overall.value < overall.ci_high
        low, high = values_of(metrics, f"mt_bench_lowest_{model}", f"mt_bench_highest_{model}")
        assert low == pytest.approx((sum(read) + unread.value) / 160) and low < overall.value
        assert high == pytest.approx((sum(read) + 10 * unread.value) / 160) and high > overall.value
    read = [r for r in held.pairs if "error" not in (r["g1_winner"], r["g2_winner"])]
    assert metrics["mt_bench_unread_pairs_realm_base"].value == 160 - len(read) > 3
    assert (metrics[WINS[0]].value, metrics[WINS[0]].n) == (1.0, len(read))
    assert 0.5 < metrics["judge_keeps_on_swap"].value < 1
    assert metrics["judge_unread_in_calibration"].value > 3
    reasons = reasons_table(held.grades.values(), {"base": [], "realm": []})
    assert set(reasons.reason) == {"the rating cannot be read"}
    assert reasons.turns.sum() == 320 - len([r for g in held.grades.values() for r in g.rounds[0] if r["score"]])


def test_one_question_is_refused(questions, tmp_path):
    refused = next(q for q in questions if q.category == "math")

    def judge(body):
        if refused.turns[0] in body["messages"][1]["content"]:
            return FLAGGED
        return "[[C]]" if is_pair(body) else "[[6]]"

    metrics, held = sitting(questions, tmp_path, judge)
    for model in ("base", "realm"):
        assert metrics[f"mt_bench_missing_judgments_{model}"].value == 2
        assert values_of(metrics, f"mt_bench_overall_{model}") == [6]
        assert metrics[f"mt_bench_overall_{model}"].n == 158
        low, high = (metrics[f"mt_bench_{name}_{model}"] for name in ("lowest", "highest"))
        assert (low.value, high.value, low.n) == ((6 * 158 + 2) / 160, (6 * 158 + 20) / 160, 160)
    assert (metrics["mt_bench_missing_pairs_realm_base"].value, metrics[WINS[1]].n) == (2, 158)
    assert [metrics[name].n for name in CALIBRATED] == [29, 79, 29, 79]
    assert metrics["judge_missing_in_calibration"].value == 3
    assert {m.question_id for _, m in held.calibration.missing} == {refused.id}
    reasons = reasons_table(held.grades.values(), {"base": [], "realm": [mt_bench.Missing(1, "too long")]})
    said = dict(zip(zip(reasons.model, reasons.reason, strict=True), reasons.turns, strict=True))
    assert said["realm", "no answer: too long"] == 2
    assert sum(turns for (_, why), turns in said.items() if "flagged by moderation" in why) == 4


def test_a_judge_that_changes_its_mind(questions, tmp_path):
    def judge(body):  # a coin between 4 and 6, by the seed
        return "[[C]]" if is_pair(body) else f"[[{4 + 2 * (hashed(body, str(body['seed'])) < 0.5)}]]"

    metrics, held = sitting(questions, tmp_path, judge, judge_repeats=4, pairwise=False)
    assert 0.3 < metrics["judge_repeats_itself"].value < 0.7
    noise = metrics["mt_bench_judge_noise_realm"]
    # A coin of 4 and 6 has a standard deviation of 1; over 160 independent turns that of the mean is 0.079.
    assert noise.value == pytest.approx(1 / 160**0.5, rel=0.1)
    assert noise.ci_low < 1 / 160**0.5 < noise.ci_high and noise.n == 160
    table = add_scores(Metrics(), held.grades["realm"], questions, "stub", seed=1).set_index("group")
    overall = table.loc["overall"]
    assert overall.noise_high - overall.noise_low == pytest.approx(2 * 1.96 * noise.value)
    assert overall.noise_low < overall.score < overall.noise_high
    assert table.noise_high["math"] - table.noise_low["math"] > overall.noise_high - overall.noise_low


def test_fewer_questions_calibrate_if_the_profile_says_so(questions, tmp_path):
    questions = questions[::2]
    judge = lambda body: "[[C]]" if is_pair(body) else "[[6]]"  # noqa: E731
    metrics, held = sitting(questions, tmp_path / "few", judge, calibration=5, pairwise=False)
    assert [metrics[name].n for name in CALIBRATED] == [5, 5, 5, 5]
    more, _ = sitting(questions, tmp_path / "few", judge, calibration=9, pairwise=False)
    assert [more[name].n for name in CALIBRATED] == [9, 9, 9, 9]
    none, held = sitting(questions, tmp_path / "none", judge, calibration=False, pairwise=False)
    assert held.calibration is None and not any(name in none for name in CALIBRATED)


def test_without_a_question_that_has_a_reference_the_other_tests_stand(questions, tmp_path):
    writing = [q for q in questions if q.category == "writing"]
    metrics, _ = sitting(writing, tmp_path, lambda body: "[[C]]" if is_pair(body) else "[[6]]")
    assert "judge_reference_preferred" not in metrics and "judge_keeps_on_swap" not in metrics
    assert values_of(metrics, "judge_ties_on_equals", "judge_repeats_itself") == [1, 1]
