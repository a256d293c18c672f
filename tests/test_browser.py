"""Reading along, as a reader does: all six notebooks in JupyterLab by *Run All*, from fresh kernels, under ``smoke``.

A screenshot of each, and of the report, stays in pytest's temporary folder.
"""

import json
import os
import re
import shutil

import pytest
import reader

from realm.core.files import REPOSITORY
from realm.pipeline.commands import main
from realm.pipeline.pages import write_page
from realm.pipeline.stages import STAGES

pytestmark = pytest.mark.skipif(bool(reader.why_not()), reason=reader.why_not() or "")
BROKEN = {"argv": ["false"], "display_name": "another", "language": "python"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Copies of the notebooks, the profile of the first cell being ``smoke``."""
    place = tmp_path_factory.mktemp("reader")
    (place / "notebooks").mkdir()
    for stage in STAGES:
        text = stage.path.read_text(encoding="utf-8")
        assert text.count('PROFILE = \\"cpu\\"') == 1
        copy = place / "notebooks" / stage.path.name
        copy.write_text(text.replace('PROFILE = \\"cpu\\"', 'PROFILE = \\"smoke\\"'), encoding="utf-8")
    for name in ("python3", "realm-repro"):  # of another environment, that cannot start
        spec = place / "others" / "kernels" / name / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps(BROKEN))
    return place


@pytest.fixture(scope="module")
def chromium():
    with reader.browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def address(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(place / "others"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(REPOSITORY / "lib"), os.getenv("PYTHONPATH")])))
        with reader.jupyterlab(
            place / "notebooks", place, REALM_RUNS=str(place / "runs"), HF_HUB_OFFLINE="1"
        ) as address:
            yield address


@pytest.fixture
def opened(chromium, address, place):
    """name of a notebook -> the notebook, open."""
    held = []

    def open_it(name):
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        held.append(reader.OpenNotebook(page, address, place / "notebooks" / name))
        return held[-1]

    yield open_it
    for notebook in held:
        notebook.close()


def test_what_is_missing_is_one_sentence_that_names_the_notebook_to_run_first(opened, place):
    notebook = opened("04_realm_sft.ipynb")
    notebook.run_all()
    notebook.keep(place / "screenshots" / "missing.png")
    [error] = notebook.outputs("error")
    [said] = error["traceback"]
    assert re.fullmatch(r"ArtefactError: \S+realchat.jsonl: missing; run notebooks/03_simulation.ipynb first", said)
    shutil.rmtree(place / "runs")  # what was begun here would be told of as set aside when 04 has its turn


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.notebook)
def test_a_notebook_runs_by_run_all(stage, opened, place):
    notebook = opened(stage.path.name)
    notebook.run_all()
    notebook.keep(place / "screenshots" / f"{stage.notebook}.png")
    assert (notebook.outputs("error"), notebook.not_run()) == ([], [])
    assert [o["text"] for o in notebook.outputs("stream") if o["name"] == "stderr"] == []
    drawn = {p.stem for p in (place / "runs" / "smoke" / "figures").glob(f"{stage.number}_*.png")}
    shown = notebook.pictures()
    assert len(shown) == len(drawn) > 0
    assert all(picture["width"] > 300 and len(picture["alt"]) > 10 for picture in shown)
    assert notebook.page.locator("mjx-container").count() == 0  # no formula is there, whatever people type
    assert notebook.seen.complaints == []
    assert notebook.seen.strangers == []


@pytest.fixture(scope="module")
def run(place):
    """The same run as pages: its executed notebooks are those that the reader saved, and its report."""
    folder = place / "runs" / "smoke"
    if not (folder / "06_simulator_realism" / "done.json").exists():
        pytest.skip("the notebooks did not run to their end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REALM_RUNS", str(place / "runs"))
        assert main(["--profile", "smoke", "--report"]) == 0
    return folder


WIDTHS = pytest.mark.parametrize("width", [1300, 390], ids=["desk", "phone"])


@WIDTHS
def test_the_report_opens_without_a_network(chromium, run, place, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    seen = reader.Seen(page)
    page.goto((run / "report.html").as_uri())
    assert page.eval_on_selector_all("img", "found => found.every(i => i.alt && i.naturalWidth > 300)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=place / "screenshots" / f"report_{width}.png", full_page=True)
    page.close()
    assert (seen.complaints, seen.strangers) == ([], [])


@WIDTHS
def test_the_page_of_an_executed_notebook_opens_without_a_network(chromium, run, place, width):
    executed = place / "pages" / "03_simulation.ipynb"
    executed.parent.mkdir(exist_ok=True)
    executed.write_bytes((place / "notebooks" / executed.name).read_bytes())
    page = chromium.new_page(viewport={"width": width, "height": 900})
    seen = reader.Seen(page)
    page.goto(write_page(executed).as_uri())
    assert page.locator("script[src]").count() == 0
    assert page.locator(".jp-OutputArea-output img").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=place / "screenshots" / f"page_{width}.png", full_page=True)
    page.close()
    assert (seen.complaints, seen.strangers) == ([], [])
