"""The page of an executed notebook."""

import re

import nbformat
import pytest

from realm.pipeline.pages import write_page


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret-1234")
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1")]
    cells[1].outputs = [
        nbformat.v4.new_output("display_data", {"text/html": "<p class='mathjax_ignore'>$5 and $6</p>"}),
        nbformat.v4.new_output("stream", text="sk-very-secret-1234"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    return write_page(tmp_path / "a.ipynb").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(page):
    assert not re.search(r"<script[^>]*\ssrc=|<link[^>]*\shref=|@import|\bimport\b[^;\n]*['\"]https?:", page)
    assert not re.search(r"url\(['\"]?https?:", page)
    assert "cdnjs" not in page


def test_what_the_notebook_shows_is_there_without_keys(page):
    assert "Title" in page and "$5 and $6" in page
    assert "sk-very-secret-1234" not in page
