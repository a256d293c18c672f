import csv
import importlib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from realm import reporting
from realm.evaluation import mt_bench_scores, published
from realm.reporting import card, drawing, figures, judged, regenerate, teaching

FUNNEL_OURS = pd.DataFrame({"step": ["read", "markup converted, product names dropped"], "sessions": [1000, 900]})
INTERVALS = pd.DataFrame(
    {
        "label": ["base model", "UserGPT"],
        "value": [22.3, 19.4],
        "ci_low": [20.0, 17.5],
        "ci_high": [25.0, 21.0],
        "n": [40, 40],
    }
)
CARD = pd.DataFrame(
    [
        {
            "group": "what is asked",
            "measure": m,
            "who": w,
            "position": v,
            "position_low": v - 0.1,
            "position_high": v,
            "n": 24,
        }
        for m in ("told apart", "length")
        for w, v in (("UserGPT", 0.3), ("base told to play a user", 1.0))
    ]
)
CONTROLS = pd.DataFrame(
    [
        {"model": m, "turns": k, "perplexity": v, "ci_low": v - 1, "ci_high": v + 2, "n": 40}
        for k in ("all", "first", "later")
        for m, v in (("(a) base model", 30.0), ("(b) told to play a user", 50.0), ("(e) UserGPT", 20.0))
    ]
)
TOPICS = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 1.0], "topic": ["1 rain, sky", "1 rain, sky", "2 code"]})
SECONDS = pd.DataFrame({"step": ["joined", "split"], "seconds": [0.5, 2_000.0]})
SCORES = pd.DataFrame({"model": ["a", "b", "ReaLM-7B"], "score": [8.0, 5.5, 6.3], "spread": [0.2, 0.1, 0.3]})

TEACHING = pd.DataFrame(
    [
        {
            "one": one,
            "other": other,
            "way": way,
            "conversations": n,
            "difference": v,
            "ci_low": v - 0.1,
            "ci_high": v + 0.2,
            "n": 40,
        }
        for one, other, way, n, v in (
            ("realchat", "base", "", 40, -0.4),
            ("roleplay", "base", "", 40, -0.2),
            ("realchat", "base", "equal_tokens", 30, -0.35),
            ("realchat", "base", "quarter", 10, -0.1),
            ("realchat", "roleplay", "", 40, -0.2),
        )
    ]
)


def by_category():
    return mt_bench_scores.scores_table(published.mt_bench_scores(), seed=1)


JUDGED = pd.DataFrame(
    [
        {"group": g, "score": s, "ci_low": s - 1, "ci_high": s + 1, "n": 8, "model": m, "judge": "j"}
        for g in ("overall", "math")
        for m, s in (("base", 2.5), ("realm", 3.25))
    ]
)
DRAWN = {
    "funnel": lambda: figures.funnel(figures.funnel_beside(FUNNEL_OURS, published.funnel())),
    "bars": lambda: figures.bars(SECONDS, "step", "seconds", "seconds", "Time"),
    "topics": lambda: figures.topics(TOPICS, "Topics"),
    "controls": lambda: figures.controls(CONTROLS, "Held-out human turns"),
    "distributions": lambda: figures.distributions(
        {"rounds": {"ours": [1, 2, 2, 5]}, "tokens": {"ours": [3, 50], "humans": [1, 7, 900]}}, "Turns"
    ),
    "distributions_linear": lambda: figures.distributions({"rounds": {"ours": [1, 2, 2, 5]}}, "Turns", log=False),
    "loss_curve": lambda: figures.loss_curve(
        [{"step": i, "loss": 3 / i, "learning_rate": 1e-3, "grad_norm": 1.0} for i in range(1, 8)], "Loss"
    ),
    "before_after": lambda: figures.before_after(INTERVALS, "perplexity", "Does it help?"),
    "published_scores": lambda: figures.published_scores(SCORES, "score", "ReaLM-7B", "score", "Title", "a source"),
    "published_scores_with_error": lambda: figures.published_scores(
        SCORES, "score", "ReaLM-7B", "score", "Title", "a source", "spread"
    ),
    "mt_bench_by_category": lambda: figures.mt_bench_by_category(by_category(), "Title", "a source"),
    "card.realism": lambda: card.realism(CARD),
    "judged.judged": lambda: judged.judged(JUDGED),
    "teaching.teaching": lambda: teaching.teaching(TEACHING, "Whose questions teach?"),
}


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    plt.close("all")


def rooms():
    """Rooms of the wing that hold figure functions."""
    folder = Path(reporting.__file__).parent
    return [importlib.import_module(f"realm.reporting.{p.stem}") for p in folder.glob("*.py") if p.stem != "__init__"]


def figure_functions():
    """By name; with its room before it, where that is another than ``figures``."""
    return {
        name if room is figures else f"{room.__name__.removeprefix('realm.reporting.')}.{name}": f
        for room in rooms()
        for name, f in vars(room).items()
        if getattr(f, "__module__", "") == room.__name__ and getattr(f, "__annotations__", {}).get("return") == "Drawn"
    }


def test_every_figure_function_can_be_drawn_anew_and_is_drawn_here():
    found = figure_functions()
    assert {"funnel", "distributions", "card.realism"} <= set(found)
    assert [name for name, f in found.items() if not getattr(f, "redrawable", False)] == []
    assert set(found) <= set(DRAWN)


def test_what_returns_a_figure_says_so():
    """``Drawn`` is how the test above knows a figure function."""
    telling = [f for room in rooms() for f in vars(room).values() if getattr(f, "redrawable", False)]
    assert telling and all(f.__annotations__["return"] == "Drawn" for f in telling)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_anew_from_its_files_alone(name, tmp_path):
    path = figures.save(*DRAWN[name](), tmp_path, f"00_{name}")
    before = path.read_bytes()
    with plt.rc_context({"font.size": 17, "axes.grid": False, "savefig.dpi": 50}):  # somebody else's settings
        drawing.write_png(regenerate.redraw(path.parent, path.stem), tmp_path / "anew.png")
    assert (tmp_path / "anew.png").read_bytes() == before


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_saved_with_its_numbers(name, tmp_path):
    figure, table = DRAWN[name]()
    path = figures.save(figure, table, tmp_path, f"00_{name}")
    assert path == tmp_path / "figures" / f"00_{name}.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".csv", ".json", ".png"]
    pd.testing.assert_frame_equal(
        drawing.read_table(path.with_suffix(".csv").read_text(), drawing.text_columns(table)),
        table.reset_index(drop=True),
        check_dtype=False,
    )
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_give_the_same_bytes(name, tmp_path):
    paths = [figures.save(*DRAWN[name](), tmp_path / run, "00_same") for run in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].with_suffix(".csv").read_bytes() == paths[1].with_suffix(".csv").read_bytes()


def test_every_figure_has_a_title_and_labelled_axes():
    for name, draw in DRAWN.items():
        figure, _ = draw()
        texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
        assert any(t.strip() for t in texts), name
        for axis in figure.axes:
            assert name == "topics" or axis.get_xlabel() or figure.get_supxlabel(), name  # a plane without units


def test_intervals_and_n_are_written_on_the_figure():
    figure, _ = figures.before_after(INTERVALS, "perplexity", "Title")
    assert "95 %" in figure.axes[0].get_xlabel() and "n = 40" in figure.axes[0].get_xlabel()
    figure, _ = card.realism(CARD)
    assert "95 %" in figure.axes[0].get_xlabel() and "n = 24" in figure.axes[0].get_xlabel()


def test_bars_show_the_numbers_of_the_table():
    figure, table = figures.published_scores(SCORES, "score", "ReaLM-7B", "score", "Title", "a source")
    assert [bar.get_width() for bar in figure.axes[0].patches] == table.score.tolist() == [8.0, 6.3, 5.5]
    figure, table = figures.before_after(INTERVALS, "perplexity", "Title")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [22.3, 19.4]


def test_published_figures_name_their_source_and_nothing_of_ours():
    figure, _ = figures.published_scores(SCORES, "score", "ReaLM-7B", "score", "Title", "a source")
    assert "published; source: a source" in figure.axes[0].get_xlabel()
    colors = {matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches}
    assert figures.OURS not in colors
    assert len(colors) == 2


def test_shares_of_a_distribution_add_up():
    values = [1, 1, 2, 3, 40, 100]
    for log in (True, False):
        _, table = figures.distributions({"tokens": {"ours": values}}, "Turns", log=log)
        assert table.share.sum() == pytest.approx(1.0)


def test_the_funnel_compares_steps_of_the_same_rule():
    table = figures.funnel_beside(FUNNEL_OURS, published.funnel())
    assert table.sessions_ours.tolist() == [1000, 900]
    assert table.share_ours.tolist() == [1.0, 0.9]
    assert table.share_published.iloc[1] == pytest.approx(76_964 / 90_664)


def test_the_csv_is_plain(tmp_path):
    path = figures.save(*figures.before_after(INTERVALS, "perplexity", "Title"), tmp_path, "00_plain")
    with path.with_suffix(".csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[1] == {"label": "UserGPT", "value": "19.4", "ci_low": "17.5", "ci_high": "21.0", "n": "40"}
