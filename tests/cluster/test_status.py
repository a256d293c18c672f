"""How a run stands, told from a Slurm that says what a test writes down."""

import json
import os

import pytest
import yaml

from realm.cluster.commands import main
from realm.core.profile import PROFILE_FOLDER

JOBS = [("02_usergpt_sft", "12", []), ("03_shards", "13", [1, 2, 4]), ("03_simulation", "14", [])]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of which jobs were submitted; the file ``squeue`` in its folder holds what Slurm says."""
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    values = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    folder = tmp_path / "mine"
    sent = [{"name": name, "job": job, "tasks": tasks} for name, job, tasks in JOBS]
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm" / "jobs.json").write_text(json.dumps([{"at": "2026-01-01 00:00:00", "jobs": sent}]))
    (tmp_path / "bin").mkdir()
    for program in ("squeue", "sacct"):
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\nexec cat {tmp_path}/{program}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def told(run, tmp_path, capsys):
    """What ``--status`` prints when Slurm says this; name of a job -> its line."""

    def tell(queue, accounting=None):
        (tmp_path / "squeue").write_text(queue)
        if accounting is not None:
            (tmp_path / "sacct").write_text(accounting)
        assert main(["--profile", str(tmp_path / "mine.yaml"), "--status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: " ".join(line.split()) for line in lines[1:-1]}, lines

    return tell


def test_jobs_that_run_and_wait(told):
    queue = "12|RUNNING|None|3:11|n1\n13_1|PENDING|Dependency|0:00|\n13_2|PENDING|Dependency|0:00|\n"
    queue += "13_4|PENDING|Dependency|0:00|\n14|PENDING|Dependency|0:00|\n99|RUNNING|None|1:00|n2\n"
    jobs, lines = told(queue)
    assert lines[0].endswith("mine: submitted 2026-01-01 00:00:00")
    assert jobs["01_data_inspection"] == "01_data_inspection not done"
    assert jobs["02_usergpt_sft"] == "02_usergpt_sft job 12 RUNNING 3:11 on n1 not done"
    assert jobs["03_shards"] == "03_shards job 13 3 PENDING (1-2,4)"
    assert jobs["03_simulation"] == "03_simulation job 14 PENDING (Dependency) not done"
    assert lines[-1] == "5 jobs and tasks are queued or at work"


def test_a_training_that_is_at_work(told, run):
    checkpoints = run / "02_usergpt_sft" / "checkpoints" / "checkpoint-10"
    checkpoints.mkdir(parents=True)
    (checkpoints / "trainer_state.json").write_text("{}")
    (checkpoints.parent / "checkpoint-12").mkdir()  # begun, and not whole
    (run / "02_usergpt_sft" / "train_log.jsonl").write_text('{"step": 11, "loss": 1.0}\n{"step": 12, "loss": 1.0}\n')
    jobs, _ = told("12|RUNNING|None|3:11|n1\n")
    assert jobs["02_usergpt_sft"].endswith("not done; training at step 12, checkpoint at 10")


def test_after_a_failure_it_says_so_and_what_goes_on(told):
    queue = "12|FAILED|NonZeroExitCode|0:40|n1\n13_1|CANCELLED|DependencyNeverSatisfied|0:00|\n"
    jobs, lines = told(queue, "13_2|CANCELLED by 0|None|00:00:00|None assigned\n14|TIMEOUT|TimeLimit|08:00:01|n1\n")
    assert "FAILED 0:40 not done" in jobs["02_usergpt_sft"]
    assert jobs["03_shards"] == "03_shards job 13 2 CANCELLED (1-2); 1 not known to Slurm any more (4)"
    assert "TIMEOUT 08:00:01 not done" in jobs["03_simulation"]
    assert lines[-1].startswith("no job is queued or at work (logs in slurm/ of that folder); ./run_all.sh --profile ")
    assert lines[-1].endswith("--slurm goes on with what is not done")


def test_a_job_that_slurm_forgot_is_not_said_to_run(told):
    jobs, lines = told("", "")
    assert "not known to Slurm any more not done" in jobs["02_usergpt_sft"]
    assert lines[-1].startswith("no job is queued or at work")


def test_a_slurm_that_does_not_answer(told, tmp_path):
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    _, lines = told("")
    assert lines[-1] == "Slurm does not answer: squeue: slurm_load_jobs error: Unable to contact"
