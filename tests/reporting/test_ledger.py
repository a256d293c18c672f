"""The ledger as a reader sees it, and that no verdict of README was typed."""

import pytest

from realm.core.files import REPOSITORY
from realm.core.metrics import PUBLISHED, Metric
from realm.evaluation.claims import Claim, judge_all, load_claims
from realm.reporting import ledger, reference, report

GAP, AFTER, BEFORE = (f"user_turn_perplexity_{n}" for n in ("difference", "after", "before"))
MT_BENCH = "mt_bench_published_overall"
PROFILES = [p for p in ("cpu", "cpu-long") if reference.reference_metrics_path(p).exists()]


def claims(**rules):
    return {
        name: Claim.model_validate(
            {
                "claim": f"<{name}> | it",
                "where": "abstract",
                "published": {"a peer": {"published": "mt_bench/peers/gpt-4"}, "this": {"metric": MT_BENCH}},
                "rules": [rule],
            }
        )
        for name, rule in rules.items()
    }


METRICS = {
    m.name: m
    for m in (
        Metric(GAP, -2.0, -3.0, -1.0, 40),
        Metric(AFTER, 20.0, 18.0, 21.0, 40),
        Metric(BEFORE, 30.0, 28.0, 32.0, 40),
        Metric(MT_BENCH, 6.328125, 5.5875, 7.0626, 160, "score", PUBLISHED),
    )
}


def test_a_line_has_claim_published_ours_and_verdict():
    [line] = ledger.lines(judge_all(claims(gap={"metric": GAP, "below": 0}), METRICS), METRICS)
    assert line.published == "a peer: 8.99; this: 6.328 [5.588 to 7.063], n = 160"
    assert line.ours == "-2 [-3 to -1], n = 40"
    assert line.measured == "perplexity of held-out human turns, UserGPT minus the base model"
    assert (line.verdict, line.css) == ("shown here", "shown")


def test_a_bound_that_is_a_metric_stands_beside_ours():
    judged = judge_all(claims(pair={"metric": AFTER, "below": {"metric": BEFORE}}), METRICS)
    [line] = ledger.lines(judged, METRICS)
    assert line.ours == "20 [18 to 21], n = 40 against 30 [28 to 32], n = 40"
    assert line.measured.count("perplexity of held-out human turns") == 2


def test_what_others_published_is_not_called_ours():
    judged = judge_all(claims(lead={"metric": MT_BENCH, "above": 6.27}), METRICS)
    [line] = ledger.lines(judged, METRICS)
    assert line.ours == "read from the published numbers" and "6.328" in line.published


def test_what_is_missing_is_left_blank():
    [line] = ledger.lines(judge_all(claims(gap={"metric": GAP, "below": 0}), {}), {})
    assert (line.ours, line.published, line.verdict) == ("", "a peer: 8.99", "untested")


def test_a_verdict_that_only_holds_by_itself_is_marked():
    """p = 0.04 in one of 20 comparisons is what chance gives."""
    name = lambda i: f"mt_bench_answers_{i}"  # noqa: E731
    metrics = {name(i): Metric(name(i), 0.0, -1.0, 1.0, 40) for i in range(20)}
    metrics[name(0)] = Metric(name(0), 1.05, 0.05, 2.05, 40)
    many = claims(**{f"c{i}": {"metric": name(i), "above": 0} for i in range(20)})
    judged = judge_all(many, metrics)
    verdicts = [line.verdict for line in ledger.lines(judged, metrics)]
    assert verdicts[0] == "shown here†" and set(verdicts[1:]) == {"cannot be told at this size"}
    assert "over the 20 claims" in ledger.footnote(judged) and "0 of 1 decided ones hold" in ledger.footnote(judged)
    metrics[name(0)] = Metric(name(0), 9.0, 8.0, 10.0, 40)
    judged = judge_all(many, metrics)
    assert ledger.lines(judged, metrics)[0].verdict == "shown here"
    assert ledger.footnote(judged).endswith("1 of 1 decided ones hold.")


def test_runs_stand_side_by_side_and_cells_stay_cells():
    two = claims(gap={"metric": GAP, "below": 0})
    lines = ledger.markdown({"cpu": (judge_all(two, {}), {}), "cpu-long": (judge_all(two, METRICS), METRICS)})
    assert lines[0] == "| claim | published | ours, profile `cpu` | verdict | ours, profile `cpu-long` | verdict |"
    assert lines[1].count("---") == 6
    assert lines[2].startswith("| &lt;gap> \\| it<br><sub>abstract. Measured:")
    assert lines[2].endswith("|  | untested | -2 [-3 to -1], n = 40 | shown here |")
    assert "this: 6.328" in lines[2]  # of the run that has it


# ---------------------------------------------------------------- of the committed runs


@pytest.mark.skipif(not PROFILES, reason="no reference run is published yet")
def test_every_verdict_in_the_readme_is_computed_from_committed_metrics():
    block = (REPOSITORY / "README.md").read_text().split(report.README_BEGIN)[1].split(report.README_END)[0]
    rows = [r.strip("| ").split(" | ") for r in block.splitlines() if "<br><sub>" in r]
    told = report.reference_verdicts()
    assert len(rows) == len(load_claims()) and told
    for i, row in enumerate(rows):
        shown = [cell.strip().rstrip(ledger.ALONE) for cell in row[3::2]]
        assert shown == [str(judged[i].verdict) for judged in told.values()], row[0]
    assert block.index("<br><sub>") < block.index("perplexity of held-out human turns, base model |")  # it leads
