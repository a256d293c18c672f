"""Bars: what they say, and that a log gets lines and no carriage returns."""

import io
import sys
import time

from realm.core import progress
from realm.core.progress import Bar


def test_a_log_gets_one_line_of_a_bar_that_is_soon_over(capsys):
    with Bar(total=1_200, desc="encoding", unit="turns") as bar:
        for _ in range(1_200):
            bar.update()
    assert capsys.readouterr().err == "encoding: 1,200 of 1,200 turns, 00:00\n"


def test_a_log_gets_a_line_now_and_then_also_where_nothing_is_counted(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 1.0)
    with Bar(total=4, desc="training", unit="steps") as bar:
        bar.update()
        bar.note("loss=3.20")
        time.sleep(3.5)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith("training: 1 of 4 steps, 00:0") and lines[0].endswith(" left; loss=3.20")
    assert "\r" not in said


def test_items_are_counted_as_they_come(capsys):
    assert list(Bar([3, 1, 2], desc="three", unit="things")) == [3, 1, 2]
    assert capsys.readouterr().err.startswith("three: 3 of 3 things")


def test_large_counts_are_short(capsys):
    with Bar(total=125_509_632, desc="file", unit="bytes", unit_scale=True) as bar:
        bar.update(125_509_632)
    assert capsys.readouterr().err.startswith("file: 126M of 126M bytes")


def test_what_counts_nothing_tells_its_time_alone(capsys):
    with Bar(desc="starting", unit=""):
        pass
    assert capsys.readouterr().err == "starting: 00:00\n"


def test_a_bar_that_is_switched_off_says_nothing(capsys):
    with Bar(total=3, desc="rows", disable=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_bar_that_an_error_left_open_falls_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.5)
    bar = Bar(total=3, desc="rows", unit="rows")
    del bar
    capsys.readouterr()
    time.sleep(2.5)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_moves(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(Bar(range(3), desc="three", ncols=80)) == [0, 1, 2]
    assert "three: 100%" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()
