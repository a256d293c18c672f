"""A small profile through a real Slurm, all six stages: a task cancelled, one asked to stop, the rest submitted again.

The endpoints are a stub server, so that what is said depends on nothing but what was said before.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from slurm_cluster import SlurmCluster, why_not
from stub_server import StubServer
from test_run_all import FITTING, run_all
from tiny_model import write_tiny_model

from realm.cluster import commands
from realm.cluster.record import latest, submissions
from realm.core.cluster import JOBS
from realm.core.files import REPOSITORY
from realm.core.profile import profile_path
from realm.simulation.run import STAGE_FOLDER

pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
SHARDS = 3
EXPORTS = ("realchat.jsonl", "realchat_sharegpt.json", "beside/humans/realchat.jsonl")
CONCURRENCY, TOKENS = 2, 17  # of each side; no other stage asks for as many


def small(server, model):
    """Profile smoke with less of everything: a tiny ``model``, and services in place of local ones."""
    values = yaml.safe_load(profile_path("smoke").read_text(encoding="utf-8"))
    service = server.endpoint(context_length=2048, concurrency=CONCURRENCY, max_retries=4).model_dump(mode="json")
    values["dialogue"]["max_length"] = 512  # its tokenizer needs more for as many words
    values["data_inspection"] |= {"max_conversations": 600, "seeds_share": 0.25, "topic_turns": 40}
    for block in ("usergpt_sft", "realm_sft"):
        values[block] |= {"base_model": str(model), "valid_conversations": 4, "test_conversations": 4}
    speaker = {**service, "max_new_tokens": TOKENS}
    values["simulation"] |= {"user": speaker, "responder": speaker, "free": 9, "seeded": 3, "max_rounds": 4}
    values["simulation"]["beside"] = {"humans": {**values["simulation"]["beside"]["humans"], "max_rounds": 2}}
    values["teaching"] = None
    values["mt_bench"] |= {"base": service, "realm": service}
    card = values["simulator_realism"]
    card |= dict.fromkeys(("usergpt", "base", "roleplay"), service)
    card |= {"conversations": 10, "sizes": [10], "permutations": 2}
    stages = {"03_shards": {"gpus": 1}}
    values["cluster"] = {"shards": SHARDS, "signal_seconds": 60, "time": "1:00:00", "stages": stages}
    return values


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cluster, a service, and where the run lies."""
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch, StubServer() as server, SlurmCluster() as cluster:
        server.seconds = 2.0
        (folder / "mine.yaml").write_text(yaml.safe_dump(small(server, write_tiny_model(folder / "tiny"))))
        for name, value in {**cluster.variables, "REALM_RUNS": str(folder / "runs")}.items():
            patch.setenv(name, value)
        # The library that is tested, wherever this environment has another.
        patch.setenv("PYTHONPATH", str(REPOSITORY / "lib"))
        yield cluster, server, folder


def mine(place, *options):
    return commands.main(["--profile", str(place[2] / "mine.yaml"), *options])


def log_of(run, name):
    return "".join(p.read_text() for p in sorted((run / "slurm").glob(f"{name}-*.log")))


@FITTING
def test_the_whole_profile_through_slurm(place, capsys):
    cluster, server, folder = place
    run = folder / "runs" / "mine"

    def status():
        assert mine(place, "--status") == 0
        return capsys.readouterr().out

    # Submitted by the entry that a user calls: a job a stage, an array in the middle.
    done = run_all("--profile", str(folder / "mine.yaml"), "--slurm", timeout=600)
    assert done.returncode == 0, done.stderr
    jobs = latest(run)
    assert list(jobs) == list(JOBS)
    assert jobs["03_shards"].tasks == (1, 2, 3)
    array = jobs["03_shards"].number
    assert mine(place, "--slurm") == 1
    assert f"{', '.join(j.number for j in jobs.values())} of this run are queued or at work" in capsys.readouterr().err
    assert re.search(r"06_simulator_realism +job \d+ +PENDING \(Dependency\) +not done", status())

    # In the middle of the array one task is cancelled; status says so, and what waited for it is gone.
    cluster.wait(lambda: len(server.completions) >= 12, 900)
    during = status()
    assert re.search(rf"03_shards +job {array} +3 RUNNING \(1-3\) +\d of 12 ended; [1-9]\d* turns", during)
    assert re.search(r"RealChat: \d of 12 ended; [1-9]\d* turns; [1-9]\d* requests, [\d,]+ tokens", during)
    assert re.search(r"01_data_inspection .*COMPLETED.* done in", during)
    cluster.ask("scancel", f"{array}_2")
    server.seconds = 0.1
    cluster.wait(lambda: not cluster.jobs(), 300)
    after = status()
    assert re.search(rf"03_shards +job {array} +2 COMPLETED \(1,3\); 1 CANCELLED \(2\)", after)
    assert re.search(r"03_simulation +job \d+ +CANCELLED .* not done", after)
    assert "no job is queued or at work" in after and "--slurm goes on with what is not done" in after

    # The rest is submitted again; its task is asked to stop, is queued again, and goes on.
    server.seconds = 2.0
    assert mine(place, "--slurm") == 0
    assert [job.name for job in submissions(run)[-1][1]] == list(jobs)[2:]
    assert latest(run)["03_shards"].tasks == (2,)
    task = f"{latest(run)['03_shards'].number}_2"
    before = len(server.completions)
    cluster.wait(lambda: len(server.completions) > before, 300)
    cluster.ask("scancel", "--batch", "--signal=USR1", task)
    cluster.wait(lambda: "queued again" in log_of(run, "03_shards"), 300)
    server.seconds = 0.02

    def all_are_done():
        # What is queued again waits for two minutes, unless it is told not to.
        cluster.ask("scontrol", "update", f"JobId={task}", "StartTime=now", check=False)
        return not cluster.jobs()

    cluster.wait(all_are_done, 900)
    log = log_of(run, "03_shards")
    assert "conversations are open" in log and log.count("begins on") == SHARDS + 2
    assert set(re.findall(r"GPUs: (\S+)", log)) == {"0", "1", "2"}
    assert status().splitlines()[-1] == "all stages are done", log_of(run, "0")[-3_000:]
    assert mine(place, "--slurm") == 0
    assert "nothing is left to do" in capsys.readouterr().out

    # As a run on one machine says it, and but for what was in flight when it was cancelled nothing was asked twice.
    seeds = [r.body["seed"] for r in server.completions if r.body["max_tokens"] == TOKENS]
    assert len(seeds) - len(set(seeds)) <= 2 * CONCURRENCY
    there = folder / "alone" / "mine"
    shutil.copytree(run / "01_data", there / "01_data")
    command = [sys.executable, "-m", "realm.simulation", "--profile", folder / "mine.yaml", "--beside"]
    subprocess.run(command, env={**os.environ, "REALM_RUNS": str(there.parent)}, check=True, capture_output=True)
    for name in EXPORTS:
        assert (run / STAGE_FOLDER / name).read_bytes() == (there / STAGE_FOLDER / name).read_bytes(), name
