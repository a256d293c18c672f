"""benchmarks/openings.py: every variant is a profile that loads, and its table is of paired differences."""

import numpy as np
import pytest
from benchmarks import openings
from benchmarks.openings import AS_IT_IS, SIZES, VARIANTS

from realm.core.profile import load_profile
from realm.evaluation.two_sample import two_sample


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_profile_with_its_values(name, tmp_path):
    variant, plain = VARIANTS[name], load_profile("cpu")
    profile = load_profile(openings.changed(variant, tmp_path))
    assert profile.usergpt_sft == plain.usergpt_sft.model_copy(update=variant.training)
    assert profile.model_copy(update={"usergpt_sft": plain.usergpt_sft}) == plain
    assert variant.model is None or not VARIANTS[variant.model].training
    plain.simulator_realism.usergpt.model_validate(plain.simulator_realism.usergpt.model_dump() | variant.asking)


def test_differences_are_from_the_profile_as_it_stands_against_the_same_humans(monkeypatch):
    rng = np.random.default_rng(0)
    humans, far, near = (rng.normal(shift, 1, size=(SIZES[-1], 4)) for shift in (0, 1.5, 0.2))
    monkeypatch.setattr(openings, "VARIANTS", {AS_IT_IS: VARIANTS[AS_IT_IS], "near": VARIANTS[AS_IT_IS]})
    options = {"repeats": 2, "permutations": 0, "seed": 1}
    found = {
        (name, n): two_sample(humans[:n], texts[:n], **options)
        for name, texts in ((AS_IT_IS, far), ("near", near))
        for n in SIZES
    }
    table = openings.rows_of(found).set_index(["variant", "a_side"])
    assert table.loc[AS_IT_IS, "difference"].isna().all()
    for n in SIZES:
        row = table.loc[("near", n)]
        assert row.difference == pytest.approx(row.auc - table.loc[(AS_IT_IS, n), "auc"], abs=1e-3)
        assert row.difference_low < row.difference < row.difference_high < 0
