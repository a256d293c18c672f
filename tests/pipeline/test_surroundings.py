"""A machine's environment that belongs to others: kernels, launchers, folders that cannot be written."""

import json
import os
import sys

import nbformat
import pytest

from realm.core.profile import load_profile
from realm.pipeline import runner
from realm.pipeline.stages import open_run, stage_by_number
from realm.simulation import run as simulation
from realm.training import launch

GROUP = {"WORLD_SIZE": "4", "RANK": "0"}


def test_a_notebook_runs_by_this_interpreter_whatever_python3_is_elsewhere(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    words = ["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "theirs", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell("import sys; print(sys.executable)")]
    nbformat.write(nbformat.v4.new_notebook(metadata={"kernelspec": kernel}, cells=cells), tmp_path / "in.ipynb")
    runner._execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {}, stage_by_number("01"))
    assert sys.executable in (tmp_path / "out.ipynb").read_text()


def test_a_notebook_is_no_process_of_a_job_whose_variables_leaked(tmp_path, monkeypatch, capsys):
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    open_run("02", "smoke", str(tmp_path))
    assert not GROUP.keys() & os.environ.keys()
    assert "WORLD_SIZE, RANK in the environment belongs to another job" in capsys.readouterr().out


def test_training_by_hand_names_a_variable_that_leaked(tmp_path, monkeypatch, capsys):
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    words = ["--profile", "smoke", "--block", "usergpt_sft", "--train", "x", "--out", str(tmp_path)]
    assert launch.main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: the environment variable WORLD_SIZE is 4, and LOCAL_RANK, MASTER_ADDR")
    assert told.count("\n") == 1 and "unset it" in told


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_results_that_cannot_be_written_name_the_variable(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / place))
    assert simulation.main(["--profile", "smoke"]) == 1
    told = capsys.readouterr().err
    assert "cannot write here" in told and "REALM_RUNS" in told and told.count("\n") == 1
    assert load_profile("smoke")
