"""benchmarks/scale.py: what it fits, what it asks of a run, and its table."""

import json
import sys
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from benchmarks import scale
from benchmarks.growth import grown

from realm.core.metrics import Metric, Metrics
from realm.core.profile import load_profile
from realm.models.full_scale import plan
from realm.pipeline.stages import STAGES
from realm.reporting import reference
from realm.reporting.full_scale import inputs

REFERENCE = pytest.mark.skipif(not reference.REFERENCE_METRICS.exists(), reason="no reference run is published yet")
SIZES, TARGET = np.repeat([6e3, 18e3, 54e3], 2), 1e6


def cost(size, exponent, fixed=20.0):
    return fixed + 160 * (np.asarray(size) / 54e3) ** exponent


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_intervals_hold_the_exponent_and_the_cost_that_data_were_made_with(exponent):
    rng, count = np.random.default_rng(1), 80
    held = [0, 0]
    for _ in range(count):
        fit = grown(SIZES, cost(SIZES, exponent) * np.exp(rng.normal(0, 0.04, len(SIZES))), TARGET)
        for i, (interval, true) in enumerate(
            ((fit.exponent_interval, exponent), (fit.target_interval, cost(TARGET, exponent)))
        ):
            held[i] += interval[0] <= true <= interval[1]
    assert min(held) >= 0.9 * count


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.7])
def test_data_without_noise_give_their_exponent_back(exponent):
    fit = grown(SIZES, cost(SIZES, exponent), TARGET)
    assert fit.exponent == pytest.approx(exponent, abs=0.02)
    assert fit.target == pytest.approx(cost(TARGET, exponent), rel=0.05)


def test_a_fixed_part_is_not_taken_for_a_small_exponent():
    costs = cost(SIZES, 1.0, fixed=300.0)
    slope = np.polyfit(np.log(SIZES), np.log(costs), 1)[0]
    assert slope < 0.25  # what a straight line through logarithms makes of it
    noisy = costs * np.exp(np.random.default_rng(3).normal(0, 0.01, len(SIZES)))
    fit = grown(SIZES, noisy, TARGET)
    assert fit.exponent_interval[0] <= 1 <= fit.exponent_interval[1]
    assert fit.linear_interval[0] <= cost(TARGET, 1.0, 300.0) <= fit.linear_interval[1]


def test_noise_and_distance_widen_an_interval():
    def width(noise, target):
        costs = cost(SIZES, 1.0) * np.exp(np.random.default_rng(5).normal(0, noise, len(SIZES)))
        low, high = grown(SIZES, costs, target).target_interval
        return high / low

    assert width(0.01, TARGET) < width(0.05, TARGET) < width(0.05, 100 * TARGET)


def test_what_does_not_grow_has_its_cost_everywhere():
    fit = grown(SIZES, np.full(len(SIZES), 2.0) + np.linspace(-0.01, 0.01, len(SIZES)), TARGET)
    assert fit.target_interval[0] <= 2.02 and fit.target_interval[1] >= 1.98


@pytest.mark.parametrize(
    ("sizes", "costs"), [([1, 1, 2, 2], [1, 1, 2, 2]), ([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [1, 2, 3, 0]), ([1], [])]
)
def test_too_little_to_fit_is_refused(sizes, costs):
    with pytest.raises(ValueError, match=r"a fit takes|must be above 0"):
        grown(sizes, costs, 10)


# ---------------------------------------------------------------- the runs


def test_three_profiles_differ_in_all_that_is_scaled(tmp_path):
    made = [load_profile(size.profile(tmp_path)) for size in scale.SIZES]
    for small, large in zip(scale.SIZES, scale.SIZES[1:], strict=False):
        assert all(a < b for a, b in zip(astuple(small)[1:], astuple(large)[1:], strict=True))
    for profile, size in zip(made, scale.SIZES, strict=True):
        assert profile.usergpt_sft.max_train_tokens == size.tokens and profile.simulation.free == size.talks
        assert profile.teaching is None and not profile.corpora()
        one = profile.model_copy(update={"data_inspection": made[0].data_inspection})
        assert one.dialogue == load_profile("cpu").dialogue


@REFERENCE
def test_every_stage_says_what_it_worked_through_and_the_plan_what_the_paper_would():
    joined = json.loads(reference.REFERENCE_METRICS.read_text(encoding="utf-8"))
    profile, paper = load_profile("cpu"), load_profile("paper")
    figures = {(f.stage, f.what): f for f in plan(inputs(paper))}
    for stage in STAGES:
        metrics = Metrics([Metric(**record) for record in joined[stage.folder]["metrics"]])
        work = scale.WORK[stage.number]
        assert 0 < work.done(profile, metrics) <= work.paper(paper, figures)
    assert scale.WORK["02"].paper(paper, figures) > 1e7 and scale.WORK["05"].paper(paper, figures) == 3 * 160


def test_the_memory_of_a_process_and_its_children_is_seen(monkeypatch):
    monkeypatch.setattr(scale, "SAMPLED", 0.05)
    hold = "import sys, time; kept = b'x' * 2**27; time.sleep(1.0)"
    nested = (
        f"import subprocess, sys; kept = b'x' * 2**27; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    )
    seconds, peak = scale.watched([sys.executable, "-c", nested], {})
    assert seconds >= 1.0 and 2**28 <= peak < 2**29


def test_a_stage_that_fails_says_its_last_words():
    with pytest.raises(SystemExit, match="no such thing"):
        scale.watched([sys.executable, "-c", "raise RuntimeError('no such thing')"], {})


# ---------------------------------------------------------------- the table


def results(path):
    rows = [
        {
            "size": size,
            "repetition": r,
            "stage": s.number,
            "work": work,
            "seconds": cost(work, 1.0) + r,
            "peak_gib": 1.0,
        }
        for r in range(2)
        for size, work in (("small", 6e3), ("middle", 18e3), ("large", 54e3))
        for s in STAGES
    ]
    table = pd.DataFrame(rows).assign(peak_gib=1.0, paper_work=TARGET, plan="9 h GPU hours")
    table.to_csv(path, index=False)


def test_the_table_has_a_line_a_stage(tmp_path):
    results(tmp_path / "scale.csv")
    lines = [line for line in scale.block(tmp_path / "scale.csv").splitlines() if line.startswith("| 0")]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [s.number for s in STAGES]
    assert all("| 1.00 [" in line and "9 h GPU hours" in line and "1 GiB [" in line for line in lines)
    assert scale.block(tmp_path / "missing.csv") == scale.NOT_YET


@REFERENCE
def test_what_is_measured_is_set_beside_the_plan():
    found = [{"size": "small", "repetition": 0, "stage": s.number, "work": 1.0} for s in STAGES]
    table = scale.with_paper(found).set_index("stage")
    assert table.plan["02"].endswith("GPU hours") and table.plan["05"] == ""
    assert table.paper_work["06"] == load_profile("paper").simulator_realism.conversations


def test_the_table_in_the_readme_is_current():
    text = scale.README.read_text(encoding="utf-8")
    assert text.count(scale.BEGIN) == text.count(scale.END) == 1
    shown = text.split(scale.BEGIN)[1].split(scale.END)[0]
    assert shown.strip() == scale.block().strip(), "run python -m benchmarks.scale --render"
