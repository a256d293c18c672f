import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from realm.reporting import regenerate
from realm.reporting.drawing import save
from realm.reporting.judged import judged

NONE = float("nan")


def scores(model, **groups):
    columns = ("score", "ci_low", "ci_high", "n")
    return pd.DataFrame(
        [
            {"group": g, **dict(zip(columns, row, strict=True)), "model": model, "judge": "j"}
            for g, row in groups.items()
        ]
    )


@pytest.fixture
def table():
    base = scores("base", overall=(2.0, 1.5, 2.6, 16), math=(1.0, NONE, NONE, 1))
    yield pd.concat([base, scores("realm", overall=(3.0, 2.2, 3.9, 15))], ignore_index=True)
    plt.close("all")


def test_each_model_stands_at_its_scores_and_the_judge_is_named(table):
    figure, _ = judged(table)
    [axes] = figure.axes
    points = {c.get_label(): list(c.lines[0].get_xdata()) for c in axes.containers}
    assert points == {"base": [2.0, 1.0], "realm": [3.0]}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["overall (n = 16 and 15)", "math (n = 1)"]
    assert "judge j" in axes.get_title() and "nothing else" in axes.get_title()


def test_one_question_has_no_interval(table):
    figure, _ = judged(table)
    base, _ = figure.axes[0].containers
    [bars] = base.lines[2]
    reach = [float(segment[:, 0].max() - segment[:, 0].min()) for segment in bars.get_segments()]
    assert reach == pytest.approx([1.1, 0.0])


def test_it_is_drawn_anew_from_its_numbers(table, tmp_path):
    figure, drawn = judged(table)
    path = save(figure, drawn, tmp_path, "05_mt_bench_judged")
    before = path.read_bytes()
    path.unlink()
    again = regenerate.redraw(path.parent, "05_mt_bench_judged")
    save(again, drawn, tmp_path, "again")
    assert (path.parent / "again.png").read_bytes() == before
