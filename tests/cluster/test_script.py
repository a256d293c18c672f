"""Jobs and their scripts, read as Slurm and bash would."""

import re
import shlex
import subprocess

import pytest
import yaml

from realm.cluster.commands import main
from realm.cluster.jobs import jobs_of, left_to_do, ranges
from realm.cluster.script import script_of
from realm.core.profile import PROFILE_FOLDER, load_profile
from realm.pipeline.stages import STAGES

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "my runs"))
    values = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
    stages = {"02_usergpt_sft": {"gpus": 4, "gpu_type": "a100", "time": "2-00:00:00"}, "03_shards": {"gpus": 2}}
    cluster = {"partition": "main", "account": "me", "cpus": 8, "memory": "64G", "time": "8:00:00", "gpus": 0}
    values["cluster"] = {**cluster, "setup": ["module load cuda"], "shards": 8, "at_once": 4, "stages": stages}
    values["cluster"]["options"] = ["--constraint=nvlink"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return load_profile(tmp_path / "mine.yaml"), str(tmp_path / "mine.yaml"), tmp_path / "my runs" / "mine"


def heads(text):
    return [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_job_a_stage_and_an_array_before_notebook_03(profile):
    values, name, folder = profile
    jobs = jobs_of(left_to_do(STAGES, values, folder), values, name, folder)
    names = [stage.notebook for stage in STAGES]
    assert [job.name for job in jobs] == [*names[:2], "03_shards", *names[2:]]
    assert [job.tasks for job in jobs if job.tasks] == [(1, 2, 3, 4, 5, 6, 7, 8)]


def test_a_script_asks_for_what_the_profile_says(profile):
    values, name, folder = profile
    texts = {j.name: script_of(j, values.cluster, folder) for j in jobs_of(list(STAGES), values, name, folder)}
    common = {"--nodes=1", "--ntasks=1", "--partition=main", "--account=me", "--cpus-per-task=8", "--mem=64G"}
    common |= {"--requeue", "--kill-on-invalid-dep=yes", "--signal=B:USR1@180", "--constraint=nvlink"}
    assert all(common <= set(heads(text)) for text in texts.values())
    training, shards, card = (heads(texts[n]) for n in ("02_usergpt_sft", "03_shards", "06_simulator_realism"))
    assert {"--gres=gpu:a100:4", "--time=2-00:00:00"} <= set(training)
    assert {"--gres=gpu:2", "--time=8:00:00", "--array=1-8%4"} <= set(shards)
    assert not [option for option in card if option.startswith(("--gres", "--array"))]
    assert f"--output={folder}/slurm/03_shards-%A_%a.log" in shards


def test_bash_takes_a_script_and_runs_its_command_where_the_setup_was_done(profile, tmp_path):
    values, name, folder = profile
    [shards] = [j for j in jobs_of(list(STAGES), values, name, folder) if j.tasks]
    text = script_of(shards, values.cluster, folder)
    text = text.replace("exec cluster/job.sh", 'printf \'%s\\n\' "$REALM_RUNS" "$HF_HUB_OFFLINE"')
    script = tmp_path / "job.sh"
    script.write_text(f'module() {{ echo "module $*"; }}\nSLURM_ARRAY_TASK_ID=3\n{text}')
    said = subprocess.run(["bash", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:3] == ["module load cuda", str(folder.parent), "1"]
    assert said[3:5] == ["180", "20"] and said[6:] == ["-m", "realm.simulation", "--profile", name, *said[10:]]
    assert said[10:] == ["--beside", "--shard", "3/8"]


def test_a_dry_run_prints_every_script_and_touches_nothing(profile, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(["--profile", profile[1], "--slurm", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("#!/usr/bin/env bash") == out.count("# sbatch --parsable") == len(STAGES) + 1
    assert len(re.findall(r"--dependency=afterok:<job of \w+>", out)) == len(STAGES)
    assert KEY not in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.yaml"]


def test_a_part_of_the_stages(profile, capsys):
    assert main(["--profile", profile[1], "--slurm", "--dry-run", "--stage", "5"]) == 0
    assert capsys.readouterr().out.count("#!/usr/bin/env bash") == 1
    assert main(["--profile", profile[1], "--slurm", "--dry-run", "--from", "03"]) == 0
    assert capsys.readouterr().out.count("#!/usr/bin/env bash") == 5


def test_without_slurm_it_is_one_line(profile, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    (profile[2] / "slurm").mkdir(parents=True)
    (profile[2] / "slurm" / "jobs.json").write_text(
        '[{"at": "then", "jobs": [{"name": "x", "job": "7", "tasks": []}]}]'
    )
    assert main(["--profile", profile[1], "--slurm"]) == 1
    assert capsys.readouterr().err == (
        "error: squeue: not found; --slurm is for a machine from which Slurm takes jobs\n"
    )


def test_numbers_are_written_as_slurm_does():
    assert [ranges(numbers) for numbers in ((4,), (1, 2, 3), (5, 1, 2, 7, 8))] == ["4", "1-3", "1-2,5,7-8"]
