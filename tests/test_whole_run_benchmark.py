"""benchmarks/whole_run.py: looks at a run set against the cells of its notebooks."""

import json
import os
from datetime import UTC, datetime

import pytest
from benchmarks import whole_run
from benchmarks.whole_run import GIB, Look

from realm.pipeline.stages import STAGES

BEGAN = 1_750_000_000.0


def cell(kind, source, begin=None, end=None):
    moments = {"start_time": begin, "end_time": end} if begin is not None else {}
    told = {k: datetime.fromtimestamp(BEGAN + v, UTC).isoformat() for k, v in moments.items()}
    return {"cell_type": kind, "source": [source], "metadata": {"papermill": told} if told else {}}


@pytest.fixture
def runs(tmp_path):
    """Six notebooks of two cells, 20 s each one after the other; the second cell of each takes 15 s."""
    (tmp_path / "notebooks").mkdir()
    for i, stage in enumerate(STAGES):
        at = 10 + 20 * i
        book = [
            cell("markdown", "# Title"),
            cell("code", "a", at, at + 5),
            cell("markdown", "## Train"),
            cell("code", "b", at + 5, at + 20),
            cell("code", "never ran"),
        ]
        (tmp_path / "notebooks" / f"{stage.notebook}.ipynb").write_text(json.dumps({"cells": book}))
    return tmp_path


def test_each_cell_has_its_seconds_memory_and_idle_cores(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(whole_run.psutil, "cpu_count", lambda: 2)
    # 3 GiB once, in the second cell of stage 02, which begins at 35; of two cores one is idle all the time
    looks = [Look(BEGAN + t, 3 * GIB if t == 40 else GIB, idle=float(t)) for t in range(131)]
    table = whole_run.table_of(runs, BEGAN, BEGAN + 130, looks).set_index(["stage", "cell"])
    assert table.loc[("all", 0), ["seconds", "peak_gib", "idle"]].tolist() == [130, 3, 0.5]
    assert table.loc[("00", 0), "seconds"] == 10
    assert table.loc[("02", 2), ["what", "seconds", "peak_gib", "idle"]].tolist() == ["Train", 15, 3, 0.5]
    assert table.loc[("02", 1), "peak_gib"] == table.loc[("03", 0), "peak_gib"] == 1
    assert len(table) == 2 + 3 * len(STAGES)


def test_the_table_shows_stages_and_long_cells_alone(runs, tmp_path):
    looks = [Look(BEGAN + t, GIB, float(t)) for t in range(131)]
    path = tmp_path / "results.csv"
    whole_run.table_of(runs, BEGAN, BEGAN + 130, looks).to_csv(path, index=False)
    lines = whole_run.block(path).splitlines()
    assert len(lines) == 2 + 2 + 2 * len(STAGES)
    assert "| 02 | Train (cell 2) | 15 | 1.00 |" in "\n".join(lines) and "(cell 1)" not in "\n".join(lines)


def test_without_results_the_table_names_the_command(tmp_path):
    assert "python -m benchmarks.whole_run" in whole_run.block(tmp_path / "none.csv")


def test_a_look_sees_the_largest_process_of_a_family():
    assert whole_run.look(os.getpid()).largest > 10_000_000 and whole_run.look(2**22 - 1).largest == 0
