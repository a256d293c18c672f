import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from realm.evaluation.card import GROUPS, SIMULATORS
from realm.reporting import card, regenerate
from realm.reporting.drawing import save


def table(positions, group=GROUPS[0]):
    return pd.DataFrame(
        [
            {
                "group": group,
                "measure": f"measure {i}",
                "who": SIMULATORS[who],
                "position": p,
                "position_low": p - 0.2,
                "position_high": p + 0.2,
                "n": 128,
            }
            for i, row in enumerate(positions)
            for who, p in row.items()
        ]
    )


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    plt.close("all")


def words(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text)]


def test_a_dot_a_simulator_and_the_medians_on_top():
    figure, _ = card.realism(table([{"usergpt": 0.2, "roleplay": 1.0}, {"usergpt": 0.4, "roleplay": 1.0}]))
    [axes] = figure.axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == [card.ALL, "measure 0", "measure 1"]
    shown = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o" and line.get_xdata()[0] < 1)
    assert shown == pytest.approx([0.2, 0.3, 0.4])
    assert "n = 128" in axes.get_xlabel() and "95 %" in axes.get_xlabel()
    assert GROUPS[0] in words(figure)


def test_who_lies_beyond_the_scale_is_drawn_at_its_edge():
    figure, _ = card.realism(table([{"usergpt": 7.0, "roleplay": 1.0}]))
    markers = {line.get_marker() for line in figure.axes[0].lines}
    assert ">" in markers and figure.axes[0].get_xlim()[1] == card.RIGHT


@pytest.mark.parametrize("given", [table([{"usergpt": 0.5}])[:0], table([{"usergpt": float("nan")}])])
def test_without_a_scale_the_figure_says_so(given):
    figure, _ = card.realism(given)
    assert any("No measure has a scale" in text for text in words(figure))


def test_the_figure_is_saved_with_all_its_numbers(tmp_path):
    given = table([{"usergpt": 0.2, "roleplay": 1.0}, {"usergpt": float("nan")}])
    path = save(*card.realism(given), tmp_path, "06_realism")
    assert path.read_bytes().startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), given)
    drawn_anew = regenerate.redraw(path.parent, "06_realism")
    regenerate.write_png(drawn_anew, tmp_path / "anew.png")
    assert (tmp_path / "anew.png").read_bytes() == path.read_bytes()
    again = save(*card.realism(given), tmp_path / "again", "06_realism")
    assert again.read_bytes() == path.read_bytes()
