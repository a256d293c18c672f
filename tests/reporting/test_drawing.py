import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from realm.reporting import drawing
from realm.reporting.drawing import Drawn, as_saved, read_table, redrawable, save, text_columns

ODD = ["NA", "null", "", "007", "1e3", "two\nlines", 'a "quoted", word', "é"]


@redrawable
def points(table: pd.DataFrame, title: str, dashed: bool = False) -> Drawn:
    figure, axes = plt.subplots()
    axes.plot(table.x, table.y, "--" if dashed else "-")
    axes.set_title(title)
    axes.set_xlabel("x  of\nit")
    return figure, table


TABLE = pd.DataFrame({"x": [0.1 + 0.2, 2 / 3, 1e-17], "y": [1, 2, 3]})


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    plt.close("all")


def test_a_table_comes_back_word_by_word_and_digit_by_digit():
    table = pd.DataFrame({"word": ODD, "real": np.geomspace(1e-9, 1e9, len(ODD)) / 3, "whole": range(len(ODD))})
    table.loc[2, "real"] = np.nan
    back = read_table(table.to_csv(index=False), ["word"])
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_dtype=False)
    assert text_columns(back) == text_columns(table) == ["word"]


def test_a_figure_is_drawn_from_what_its_file_will_hold():
    """A float32 has other digits as a file's float64; the picture has those of the file."""
    figure, table = points(TABLE.astype({"x": "float32"}).set_index(pd.Index([7, 8, 9])), "t")
    [line] = figure.axes[0].lines
    assert line.get_xdata().tolist() == table.x.tolist() == as_saved(table).x.tolist()
    assert table.index.tolist() == [0, 1, 2]


def test_the_note_tells_function_arguments_and_words(tmp_path):
    path = save(*points(TABLE, "A title", dashed=True), tmp_path, "00_points")
    assert json.loads(path.with_suffix(".json").read_text()) == {
        "drawn_by": f"{__name__}.points",
        "arguments": {"title": "A title", "dashed": True},
        "text": [],
        "alt": "A title; x of it",
    }


def test_an_argument_that_no_note_can_hold_is_refused():
    with pytest.raises(TypeError, match="points: title: a figure is drawn from a table and plain values alone"):
        points(TABLE, TABLE)


def test_a_figure_of_no_figure_function_is_saved_without_a_note(tmp_path):
    """And does not inherit that of the figure whose name it takes."""
    path = save(*points(TABLE, "t"), tmp_path, "00_same")
    figure, _ = plt.subplots()
    save(figure, TABLE, tmp_path, "00_same")
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".csv", ".png"]


def test_settings_around_do_not_reach_a_figure(tmp_path):
    plain = save(*points(TABLE, "t"), tmp_path, "00_plain").read_bytes()
    with plt.rc_context({"font.size": 20, "lines.linewidth": 5, "savefig.bbox": "tight", "figure.facecolor": "red"}):
        assert save(*points(TABLE, "t"), tmp_path, "00_other").read_bytes() == plain
    assert drawing.STYLE["font.size"] == 11
