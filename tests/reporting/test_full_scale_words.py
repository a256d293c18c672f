"""The plan in words: formulas that come out as they say, and a README that is current."""

import math
import re

import pytest

from realm.core.files import ArtefactError
from realm.core.profile import load_profile
from realm.models.full_scale import plan
from realm.pipeline.commands import main
from realm.reporting import full_scale, reference

pytestmark = pytest.mark.skipif(not reference.REFERENCE_METRICS.exists(), reason="no reference run is published yet")
ORDERS = {"": 1.0, " T": 1e12, " G": 1e9, " M": 1e6}
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?"
TERM = re.compile(rf"({NUMBER})( [TGM](?=\s|$))?(?: to ({NUMBER})( [TGM](?=\s|$))?)?")


def ends(text):
    """The number, or range of numbers, that a text begins with."""
    low, order, high, other = TERM.match(text).groups()
    number = lambda digits, order: float(digits.replace(",", "")) * ORDERS[order or ""]  # noqa: E731
    first = number(low, order)
    return first, first if high is None else number(high, other)


def comes_to(formula):
    """What a formula says, worked out from its text alone."""
    words = re.split(r" ([×÷+]) ", formula)
    low, high = ends(words[0])
    for sign, term in zip(words[1::2], words[2::2], strict=True):
        least, most = ends(term)
        low, high = {
            "×": (low * least, high * most),
            "÷": (low / most, high / least),
            "+": (low + least, high + most),
        }[sign]
    return low, high


@pytest.fixture(scope="module")
def figures():
    return plan(full_scale.inputs(load_profile("paper")))


def test_every_formula_comes_out_as_its_figure(figures):
    assert len(figures) > 30
    for figure in figures:
        assert comes_to(full_scale.formula(figure)) == pytest.approx(figure.ends, rel=2e-3), figure.what
        assert ends(full_scale.figure_words(figure)) == pytest.approx(figure.ends, rel=1e-3), figure.what


def test_a_formula_that_is_wrong_does_not_come_out():
    assert comes_to("2 to 3 M a × 4 b ÷ 2 to 8 c") == (1.0, 6e6)
    assert comes_to("1,000 a + 0.5 b") == (1_000.5, 1_000.5)


def test_the_plan_in_the_readme_is_current():
    text = full_scale.README.read_text(encoding="utf-8")
    assert text.count(full_scale.BEGIN) == text.count(full_scale.END) == 1
    shown = text.split(full_scale.BEGIN)[1].split(full_scale.END)[0]
    assert shown.strip() == full_scale.block().strip(), "run python -m realm.reporting.full_scale"


def test_only_what_is_between_the_markers_is_written_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(full_scale, "README", tmp_path / "README.md")
    full_scale.README.write_text(f"before\n{full_scale.BEGIN}\nold\n{full_scale.END}\nafter\n")
    full_scale.write_plan()
    text = full_scale.README.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    full_scale.README.write_text("no markers\n")
    with pytest.raises(ArtefactError, match="markers"):
        full_scale.write_plan()


def test_every_ratio_has_a_source_that_is_there():
    known = set(reference.reference_metrics())
    for ratio in full_scale.ratios(load_profile("paper")).values():
        assert math.isfinite(ratio.value) and ratio.value > 0
        kind, _, place = ratio.source.partition(": ")
        if kind.startswith("measured"):
            assert set(re.findall(r"[a-z]+_\w+", place)) <= known


def test_the_dry_run_of_profile_paper_prints_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    assert main(["--profile", "paper", "--dry-run", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert full_scale.HEADING in shown and "memory on each of 8 GPUs" in shown
    assert "as listed in March 2025; look it up again" in shown
    assert main(["--profile", "paper", "--dry-run", "--stage", "2"]) == 0
    assert main(["--profile", "gpu", "--dry-run"]) == 0
    assert full_scale.HEADING not in capsys.readouterr().out


def test_without_a_reference_run_the_dry_run_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "REFERENCE_METRICS", tmp_path / "reference_metrics.json")
    [line] = full_scale.dry_run(load_profile("paper"), None).splitlines()
    assert line.startswith(f"{full_scale.HEADING}: cannot be computed: ") and "missing" in line
