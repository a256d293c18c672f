"""The rules of verdicts, and what is refused in claims.yaml."""

import json

import pytest
import yaml

from realm.core.files import REPOSITORY
from realm.core.metrics import Metric
from realm.evaluation import claims as module
from realm.evaluation import published
from realm.evaluation.claims import Claim, ClaimsError, Verdict, claims_by_holm, judge, judge_all, load_claims
from realm.evaluation.names import metric_names

GAP = "user_turn_perplexity_difference"
SHARE = "share_of_human_gain_realchat"
MT_BENCH = "mt_bench_published_overall"


def metric(name, value, low=None, high=None, n=40):
    return Metric(name, value, low, high, n)


def verdict(rule, *metrics):
    claim = Claim.model_validate({"claim": "c", "where": "w", "rules": rule if isinstance(rule, list) else [rule]})
    return judge("it", claim, {m.name: m for m in metrics}).verdict


SHOWN, UNTESTED, OPEN, SHORT, AGAINST = (
    Verdict.SHOWN,
    Verdict.UNTESTED,
    Verdict.CANNOT_BE_TOLD,
    Verdict.NOT_SHOWN,
    Verdict.CONTRADICTED,
)


@pytest.mark.parametrize(
    ("low", "high", "below", "above"),
    [
        (-3.0, -1.0, SHOWN, AGAINST),
        (1.0, 3.0, AGAINST, SHOWN),
        (-1.0, 1.0, OPEN, OPEN),
        (-1.0, 0.0, OPEN, OPEN),  # touching is no distance
        (0.0, 1.0, OPEN, OPEN),
        (None, None, OPEN, OPEN),
    ],
)
def test_a_difference_by_its_interval_alone(low, high, below, above):
    value = -7.0 if low is None else (low + high) / 2
    assert verdict({"metric": GAP, "below": 0}, metric(GAP, value, low, high)) == below
    assert verdict({"metric": GAP, "above": 0}, metric(GAP, value, low, high)) == above


@pytest.mark.parametrize(("n", "expected"), [(5, OPEN), (19, OPEN), (20, SHOWN), (None, SHOWN)])
def test_a_handful_of_conversations_decides_nothing(n, expected):
    assert verdict({"metric": GAP, "below": 0}, metric(GAP, -2.0, -3.0, -1.0, n)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.86, 1.1, SHOWN),
        (0.80, 0.90, OPEN),
        (0.50, 0.80, SHORT),  # the right direction, not as far
        (-0.2, 0.80, SHORT),
        (-0.5, -0.1, AGAINST),
        (-0.5, 1.2, OPEN),
    ],
)
def test_a_threshold_other_than_no_effect(low, high, expected):
    rule = {"metric": SHARE, "above": 0.85, "nothing": 0}
    assert verdict(rule, metric(SHARE, (low + high) / 2, low, high)) == expected
    mirrored = {"metric": GAP, "below": -0.85, "nothing": 0}
    assert verdict(mirrored, metric(GAP, -(low + high) / 2, -high, -low)) == expected


def test_a_metric_that_is_not_there_is_untested():
    assert verdict({"metric": GAP, "below": 0}) == UNTESTED
    rule = {"metric": GAP, "below": {"metric": SHARE}}
    assert verdict(rule, metric(GAP, 0.0, -1.0, 1.0)) == UNTESTED


@pytest.mark.parametrize(("other", "expected"), [((2.0, 3.0), SHOWN), ((0.5, 3.0), OPEN), ((-3.0, -2.0), AGAINST)])
def test_two_metrics_are_told_apart_where_their_intervals_are(other, expected):
    rule = {"metric": GAP, "below": {"metric": SHARE}}
    assert verdict(rule, metric(GAP, 0.0, -1.0, 1.0), metric(SHARE, sum(other) / 2, *other)) == expected


def test_a_margin_widens_the_bound_on_both_sides():
    rule = {"metric": GAP, "above": 1, "margin": 0.5}
    for low, high, expected in ((1.6, 2, SHOWN), (1.4, 2, OPEN), (0.1, 0.6, OPEN), (0.1, 0.4, AGAINST)):
        assert verdict(rule, metric(GAP, (low + high) / 2, float(low), high)) == expected


def test_a_published_number_is_a_bound():
    rule = {"metric": MT_BENCH, "above": {"published": "mt_bench/peers/llama-2-7b-chat"}}
    assert verdict(rule, metric(MT_BENCH, 6.5, 6.28, 6.8)) == SHOWN
    assert verdict(rule, metric(MT_BENCH, 6.5, 6.26, 6.8)) == OPEN
    assert verdict(rule, metric(MT_BENCH, 6.0, 5.8, 6.26)) == AGAINST


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (105, None, None, SHOWN),
        (111, None, None, SHORT),
        (89, None, None, SHORT),
        (100, 95.0, 105.0, SHOWN),
        (108, 101.0, 115.0, OPEN),
        (130, 120.0, 140.0, SHORT),
    ],
)
def test_near_is_within_a_share(value, low, high, expected):
    assert verdict({"metric": GAP, "near": 100, "within": 0.1}, metric(GAP, value, low, high)) == expected


def test_a_claim_of_several_rules_has_the_worst_verdict():
    rules = [{"metric": GAP, "below": 0}, {"metric": SHARE, "above": 0.85, "nothing": 0}]
    good, bad, open_ = metric(GAP, -2.0, -3.0, -1.0), metric(GAP, 2.0, 1.0, 3.0), metric(GAP, 0.0, -1.0, 1.0)
    most, some = metric(SHARE, 0.9, 0.88, 0.92), metric(SHARE, 0.5, 0.4, 0.6)
    assert verdict(rules, good, most) == SHOWN
    assert verdict(rules, good) == UNTESTED
    assert verdict(rules, open_, most) == OPEN
    assert verdict(rules, open_, some) == SHORT
    assert verdict(rules, bad, most) == AGAINST


def test_all_five_verdicts_are_reached():
    assert set(Verdict) == {SHOWN, UNTESTED, OPEN, SHORT, AGAINST}


def test_the_chance_is_that_of_a_normal_with_this_interval():
    rule = {"metric": GAP, "below": 0}

    def chance(found):
        return judge("it", Claim.model_validate({**GOOD, "rules": [rule]}), {GAP: found}).p

    assert chance(metric(GAP, -1.0, -2.0, 0.0)) == pytest.approx(0.05, abs=1e-6)  # it touches
    assert chance(metric(GAP, 0.0, -2.0, 2.0)) == pytest.approx(1.0)
    # A crooked interval counts by the half that faces the bound.
    assert chance(metric(GAP, -1.0, -9.0, -0.5)) == chance(metric(GAP, -1.0, -1.5, -0.5)) < 0.001
    assert chance(metric(GAP, -1.0)) is None


def test_several_claims_at_once_are_adjusted_together():
    claims = {
        name: Claim.model_validate({"claim": "c", "where": "w", "rules": [{"metric": name, "below": 0}]})
        for name in (GAP, SHARE, MT_BENCH)
    }
    found = judge_all(claims, {GAP: metric(GAP, -2.0, -3.0, -1.0), SHARE: metric(SHARE, -1.0, -1.95, -0.05)})
    adjusted = claims_by_holm(found)
    assert list(adjusted) == [GAP, SHARE]  # what is untested is no comparison
    assert adjusted[GAP] == pytest.approx(2 * found[0].p) and adjusted[SHARE] == pytest.approx(found[1].p)


# ---------------------------------------------------------------- the file

GOOD = {"claim": "c", "where": "w", "rules": [{"metric": GAP, "below": 0}]}


def rules(**values):
    return {**GOOD, "rules": [{"metric": GAP, **values}]}


REFUSED = {
    "unknown metric": (
        {**GOOD, "rules": [{"metric": "user_turn_parallax", "below": 0}]},
        r"rules\.0: .*no metric 'user_turn_parallax'",
    ),
    "unknown metric as a bound": (rules(below={"metric": "parallax"}), r"rules\.0\.below: .*no metric 'parallax'"),
    "unknown place": (rules(below={"published": "mt_bench/peers/llama"}), r"below: 'mt_bench/peers/llama' is no place"),
    "unknown published metric": ({**GOOD, "published": {"x": {"metric": "parallax"}}}, r"published\.x: .*no metric"),
    "neither": (rules(below={}), r"below: a reference has a metric or a published place"),
    "both": (rules(below={"metric": GAP, "published": "mt_bench/judge_noise"}), r"below: a reference has"),
    "no bound": (rules(), r"rules\.0: a rule has one of below, above, near"),
    "two bounds": (rules(below=0, above=1), r"rules\.0: a rule has one of below, above, near"),
    "near without within": (rules(near=3), r"rules\.0: near and within go together"),
    "within without near": (rules(below=3, within=0.1), r"rules\.0: near and within go together"),
    "within 1": (rules(near=3, within=1), r"rules\.0\.within: input should be less than 1"),
    "text as a bound": (rules(below="zero"), r"rules\.0\.below: "),
    "nan": (rules(below=float("nan")), r"rules\.0\.below: input should be a finite number"),
    "true": (rules(below=True), r"rules\.0\.below: "),
    "unknown key": ({**GOOD, "verdict": "shown here"}, r"it\.verdict: unknown key"),
    "unknown key of a rule": (rules(below=0, than=3), r"rules\.0\.than: unknown key"),
    "no rules": ({**GOOD, "rules": []}, r"it\.rules: list should have at least 1 item"),
    "rules missing": ({"claim": "c", "where": "w"}, r"it\.rules: field required"),
    "where missing": ({"claim": "c", "rules": GOOD["rules"]}, r"it\.where: field required"),
    "a list": ([GOOD], r"claims\.it: "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_said_in_one_line(kind, tmp_path):
    claim, message = REFUSED[kind]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": {"it": claim}}))
    with pytest.raises(ClaimsError, match=message) as caught:
        load_claims(path)
    assert str(caught.value).startswith(f"{path}: claims.it") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: "),
        ("- a", "file: "),
        ("{", "not valid YAML"),
        ("claims: {it: {claim: c, where: w, rules: [], rules: []}}", "key 'rules' stands twice"),
        ("claims: {? [a] : b}", "not valid YAML"),
        ("claims: {1: {claim: c}}", "claims"),
        (None, "missing"),
    ],
)
def test_a_file_that_is_none_is_said_in_one_line(text, message, tmp_path):
    path = tmp_path / "claims.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ClaimsError, match=message) as caught:
        load_claims(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_one_name_twice_is_refused(tmp_path):
    """YAML would keep the second and drop the first without a word."""
    path = tmp_path / "claims.yaml"
    one = "  it: {claim: c, where: w, rules: [{metric: user_turn_perplexity_difference, below: 0}]}\n"
    path.write_text(f"claims:\n{one}{one}")
    with pytest.raises(ClaimsError, match=r"claims\.yaml: .*key 'it' stands twice"):
        load_claims(path)


# ---------------------------------------------------------------- our own

CLAIMS = load_claims()
COMMITTED = sorted((REPOSITORY / "figures").rglob("reference_metrics.json"))


def test_our_claims_cover_what_the_paper_says():
    assert list(CLAIMS)[:5] == [
        f"flip_{c}" for c in ("base", "roleplay", "assistant_side", "both_sides", "plain_segments")
    ]
    assert {
        "learned_ending",
        "human_like_openings",
        "human_like_later_turns",
        "teaches_roleplay",
        "teaches_humans",
    } <= set(CLAIMS)
    assert {"scaling", "corpus_statistics", "cleaning_funnel", "mt_bench_lead", "alpaca_eval_lead"} <= set(CLAIMS)


def test_our_claims_type_no_number_that_is_published():
    published_numbers = {v for v in published.values().values() if v not in (0, 1)}
    typed = {
        bound for c in CLAIMS.values() for r in c.rules for bound in (r.below, r.above, r.near, r.nothing, r.margin)
    }
    assert {t for t in typed if isinstance(t, int | float)} & published_numbers == set()


def test_every_metric_of_our_claims_may_exist():
    names = {r.metric for c in CLAIMS.values() for r in c.rules}
    assert {n for n in names if metric_names().readable(n) is None} == set()


def test_the_paper_s_lead_on_mt_bench_cannot_be_told():
    """0.06 points, beside an interval of 160 scores from 5.59 to 7.06 and a judge that moves by 0.2."""
    table = published.mt_bench_table(seed=20230823).set_index("group").loc["overall"]
    lead = CLAIMS["mt_bench_lead"]
    found = judge("it", lead, {MT_BENCH: metric(MT_BENCH, table.score, table.ci_low, table.ci_high, 160)})
    assert found.verdict == OPEN
    sure = metric(MT_BENCH, table.score, table.score - 0.01, table.score + 0.01, 160)
    assert judge("it", lead, {MT_BENCH: sure}).verdict == OPEN  # the judge's noise alone


def test_the_paper_s_lead_on_alpaca_eval_is_shown_once_it_has_an_interval():
    name = "alpaca_eval_published_win_rate"
    lead = CLAIMS["alpaca_eval_lead"]
    assert judge("it", lead, {name: metric(name, 81.94, 79.3, 84.6, 805)}).verdict == SHOWN
    assert judge("it", lead, {name: metric(name, 81.94, None, None, 805)}).verdict == OPEN


def test_the_file_has_a_place_of_its_own():
    assert module.FILE == REPOSITORY / "claims.yaml"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "figures").rglob("reference_metrics.json")), ids=lambda p: p.parent.name
)
def test_verdicts_of_committed_runs_follow_from_their_intervals(path):
    """By another route than the library's: each difference against zero, read off the file."""
    metrics = {m["name"]: m for s in json.loads(path.read_text()).values() for m in s["metrics"]}
    judged = judge_all(CLAIMS, {n: Metric(**m) for n, m in metrics.items()})
    simple = [j for j in judged if len(j.claim.rules) == 1 and 0 in (j.claim.rules[0].below, j.claim.rules[0].above)]
    assert len(simple) > 5
    for j in simple:
        m, sign = metrics.get(j.claim.rules[0].metric), -1 if j.claim.rules[0].below == 0 else 1
        if m is None:
            assert j.verdict == UNTESTED
            continue
        sides = {sign * m["ci_low"] > 0, sign * m["ci_high"] > 0}
        expected = OPEN if len(sides) == 2 or m["n"] < 20 else SHOWN if sides == {True} else AGAINST
        assert j.verdict == expected, j.name
