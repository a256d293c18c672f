"""``cluster/job.sh`` around a command, with a ``scontrol`` that only notes what it was told."""

import os
import signal
import subprocess
import time

import pytest

from realm.core.files import REPOSITORY

WORKS = 'touch begun; while [ ! -e "$REALM_STOP_FILE" ]; do sleep 0.05; done; touch closed; exit 1'


@pytest.fixture
def job(tmp_path):
    """Starts it around a command of bash; 3 s lie between signal and end, one requeue is allowed."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    # Slurm ends a job that is queued again.
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\nkill -9 "$(cat {tmp_path}/pid)"\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"

    def start(command, **variables):
        words = ["bash", REPOSITORY / "cluster" / "job.sh", "3", "1", "bash", "-c", command]
        given = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", **variables}
        process = subprocess.Popen(words, cwd=tmp_path, env=given, stdout=subprocess.PIPE, text=True)
        (tmp_path / "pid").write_text(str(process.pid))
        return process

    return start


def asked_to_stop(process, folder):
    while not (folder / "begun").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    return process.communicate(timeout=30)[0]


@pytest.mark.parametrize("code", [0, 3])
def test_the_code_of_the_command_is_that_of_the_job(job, tmp_path, code):
    process = job(f"exit {code}")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code and f"job 7: ended with code {code}" in said
    assert not (tmp_path / "told").exists()


def test_a_job_that_is_asked_to_stop_closes_and_is_queued_again(job, tmp_path):
    said = asked_to_stop(job(WORKS), tmp_path)
    assert (tmp_path / "closed").exists()
    assert (tmp_path / "told").read_text() == "requeue 7\n"
    assert said.index("asked to stop") < said.index("ended with code 1") < said.index("queued again")


def test_what_does_not_stop_is_queued_again_before_its_time_is_up(job, tmp_path):
    began = time.monotonic()
    said = asked_to_stop(job("touch begun; exec sleep 8"), tmp_path)
    assert (tmp_path / "told").read_text() == "requeue 7\n" and "ended with code" not in said
    assert time.monotonic() - began < 15


def test_a_job_that_ends_well_all_the_same_is_done(job, tmp_path):
    process = job('touch begun; while [ ! -e "$REALM_STOP_FILE" ]; do sleep 0.05; done')
    asked_to_stop(process, tmp_path)
    assert process.returncode == 0 and not (tmp_path / "told").exists()


def test_it_is_not_queued_again_for_ever(job, tmp_path):
    process = job(WORKS, SLURM_RESTART_COUNT="1")
    said = asked_to_stop(process, tmp_path)
    assert process.returncode == 1 and not (tmp_path / "told").exists()
    assert "was queued again 1 times (cluster.requeues) and is not any more" in said
