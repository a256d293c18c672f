"""The log of a notebook at work, and what the executed notebook keeps of its bars."""

import io
import sys

import nbformat
import papermill
import pytest

from realm.pipeline import log
from realm.pipeline.surroundings import own_kernel

WORKING = """import time
from realm.core import progress
from realm.core.progress import Bar
progress.BEAT, progress.BRIEF = 0.2, 0.1
with Bar(total=3, desc="long work", unit="steps") as bar:
    for _ in range(3):
        time.sleep(0.6)
        bar.update()
        bar.note("<b>0.5</b>")"""
BRIEF = """progress.BRIEF = 1.0
with Bar(total=1, desc="short work", unit="steps") as bar:
    bar.update()"""


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """A notebook of two sections, the first with a bar, and the lines of its log."""
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(log, "EVERY", 1.0)
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        text("# One\nWords."),
        code(WORKING),
        text("Words alone."),
        code(BRIEF),
        text("## Two"),
        code("import time; time.sleep(2.3)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        kernel_name="python3",
        engine_name=log.ENGINE,
        progress_bar=False,
        stderr_file=log.RedactedErrors(),
        kernel_manager_class=own_kernel(),
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    monkeypatch.undo()
    return nbformat.read(tmp_path / "out.ipynb", 4), told.getvalue()


KERNEL = {"name": "realm-repro", "display_name": "ReaLM-repro", "language": "python"}


def test_headings_long_bars_and_long_silence_are_told_by_line(executed):
    _, told = executed
    lines = told.splitlines()
    two = lines.index("[6 of 6] Two")
    assert lines[0] == "[2 of 6] One"
    bars, silent = lines[1:two], lines[two + 1 :]
    assert 1 <= len(silent) <= 2 and all(line.startswith("   cell 6 is at work, 00:0") for line in silent)
    assert 1 <= len(bars) <= 3 and all(line.startswith("   long work: ") for line in bars)
    assert bars[-1].startswith("   long work: 3 of 3 steps")
    assert "\r" not in told


def test_a_bar_that_is_over_at_once_is_not_shown(executed):
    notebook, told = executed
    assert notebook.cells[3].outputs == [] and "short work" not in told


def test_an_executed_notebook_keeps_a_bar_as_it_ended(executed):
    notebook, _ = executed
    [shown] = notebook.cells[1].outputs
    assert shown.data["text/plain"].startswith("long work: 3 of 3 steps, 00:0")
    assert "&lt;b&gt;0.5&lt;/b&gt;" in shown.data["text/html"] and "<b>" not in shown.data["text/html"]
