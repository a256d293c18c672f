import json
import re
import shutil

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from realm.core.files import REPOSITORY
from realm.reporting import figures, regenerate

SECONDS = pd.DataFrame({"step": ["joined", "split"], "seconds": [0.5, 2_000.0]})
COMMITTED = list(regenerate.figures_in(REPOSITORY / "figures"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of two figures, and below it one without its PNG."""
    place = tmp_path_factory.mktemp("drawn")
    for name in ("01_one", "02_two"):
        figures.save(*figures.bars(SECONDS, "step", "seconds", "seconds", name), place, name)
    (place / "figures" / "deep").mkdir()
    for suffix in (".csv", ".json"):
        shutil.copy(place / "figures" / f"02_two{suffix}", place / "figures" / "deep")
    return place / "figures"


@pytest.fixture
def folder(drawn, tmp_path):
    yield shutil.copytree(drawn, tmp_path / "figures")
    plt.close("all")


def test_every_figure_of_a_folder_is_drawn_anew(folder, capsys):
    before = {p: p.read_bytes() for p in folder.rglob("*.png")}
    for path in before:
        path.write_bytes(b"")
    assert regenerate.main([str(folder)]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert (folder / "deep" / "02_two.png").read_bytes() == before[folder / "02_two.png"]
    assert "3 of 3 figures drawn anew" in capsys.readouterr().out


def test_other_numbers_give_another_picture(folder):
    before = (folder / "01_one.png").read_bytes()
    SECONDS.assign(seconds=[3.0, 4.0]).to_csv(folder / "01_one.csv", index=False)
    regenerate.main([str(folder)])
    assert (folder / "01_one.png").read_bytes() != before


def note(folder, **changes):
    path = folder / "01_one.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN = {
    "no note": (lambda f: (f / "01_one.json").unlink(), r"01_one\.json: missing"),
    "no numbers": (lambda f: (f / "01_one.csv").unlink(), r"01_one\.csv: missing"),
    "empty numbers": (lambda f: (f / "01_one.csv").write_text(""), r"01_one\.csv: figures\.bars cannot draw it"),
    "another table": (lambda f: (f / "01_one.csv").write_text("a,b\n1,2\n"), r"01_one\.csv: .*(step|seconds)"),
    "binary numbers": (lambda f: (f / "01_one.csv").write_bytes(b"\xff\xfe\x00"), r"01_one\.csv: .*cannot draw it"),
    "no JSON": (lambda f: (f / "01_one.json").write_text("{"), r"01_one\.json: not valid JSON"),
    "a list": (
        lambda f: (f / "01_one.json").write_text("[]"),
        r"01_one\.json: a figure's note has the fields alt",
    ),
    "an unknown field": (lambda f: note(f, size=3), r"01_one\.json: a figure's note has the fields"),
    "no such function": (lambda f: note(f, drawn_by="figures.pie"), r"there is no figure function 'figures\.pie'"),
    "no such room": (lambda f: note(f, drawn_by="attic.bars"), r"there is no figure function 'attic\.bars'"),
    "no figure function": (lambda f: note(f, drawn_by="figures.save"), r"there is no figure function 'figures\.save'"),
    "out of the wing": (lambda f: note(f, drawn_by="..os.system"), r"there is no figure function"),
    "a number": (lambda f: note(f, drawn_by=3), r"there is no figure function 3"),
    "other arguments": (lambda f: note(f, arguments={"colour": "red"}), r"figures\.bars cannot draw it .*colour"),
    "nested arguments": (lambda f: note(f, arguments={"title": []}), r"arguments: plain values"),
    "text by number": (lambda f: note(f, text=[0]), r"text: a list of columns"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_figure_that_cannot_be_drawn_is_named_and_left(folder, kind, capsys):
    broken, message = BROKEN[kind]
    broken(folder)
    (folder / "01_one.png").write_bytes(b"as it was")
    (folder / "02_two.png").write_bytes(b"")
    assert regenerate.main([str(folder)]) == 1
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert (folder / "01_one.png").read_bytes() == b"as it was"
    assert (folder / "02_two.png").read_bytes().startswith(b"\x89PNG")
    assert "2 of 3 figures drawn anew" in out


def test_a_folder_without_figures_is_an_error(tmp_path, capsys):
    assert regenerate.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: no figures are there\n"


@pytest.mark.parametrize(("folder", "name"), COMMITTED, ids=lambda part: getattr(part, "name", part))
def test_every_committed_figure_shows_its_numbers(folder, name, tmp_path):
    """Not byte by byte: another machine's libraries may round a pixel."""
    regenerate.write_png(regenerate.redraw(folder, name), tmp_path / "anew.png")
    there, anew = plt.imread(folder / f"{name}.png"), plt.imread(tmp_path / "anew.png")
    assert there.shape == anew.shape
    assert np.abs(there - anew).mean() < 0.002
