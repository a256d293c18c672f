"""The shell entry: what it says and how it ends. Nothing is installed and no stage is run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from realm import pins
from realm.core.files import REPOSITORY
from realm.pipeline.stages import STAGES
from realm.reporting import report

# Without a fitting environment the script would build one, which is no matter for a test.
FITTING = pytest.mark.skipif(
    bool(pins.differences(pins.read_lock(REPOSITORY / "requirements.lock"))),
    reason="this environment does not satisfy requirements.lock",
)


def run_all(*arguments, cwd=REPOSITORY, script=REPOSITORY / "run_all.sh", timeout=120, **variables):
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{scripts}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_option(option):
    done = run_all(option)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./run_all.sh")
    for name in (
        "--profile",
        "--from",
        "--only",
        "--force",
        "--dry-run",
        "--slurm",
        "--status",
        "--fetch",
        "--gpus",
        "--serving-env",
        "--publish",
        "--tidy",
        "--yes",
        "--figures",
        "--lab",
        "--test",
    ):
        assert name in done.stdout
    assert "REALM_CACHE" in done.stdout and "REALM_RUNS" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prfile", "cpu"], "error: --prfile: unknown option; see ./run_all.sh --help"),
        (["cpu"], "error: cpu: unknown option; see ./run_all.sh --help"),
        (
            ["--slurm", "--force"],
            "error: --force goes with a run on this machine: a job that is queued again would begin anew",
        ),
        (["--only", "7"], "error: 7: no such stage; allowed: 01 to 06"),
        (["--from", "00"], "error: 00: no such stage; allowed: 01 to 06"),
        (["--only", "two"], "error: two: no such stage; allowed: 01 to 06"),
        (["--from", "1-6"], "error: 1-6: no such stage; allowed: 01 to 06"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, message):
    done = run_all(*arguments)
    assert done.returncode == 2
    assert done.stderr == message + "\n"
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["--profile", "--from", "--only"])
def test_an_option_without_its_value(option):
    done = run_all(option)
    assert done.returncode != 0
    assert f"{option} needs a value" in done.stderr


@FITTING
def test_an_unknown_profile_is_one_line_with_those_there_are(tmp_path):
    done = run_all("--profile", "laptop", REALM_RUNS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: laptop: no such profile; there are cpu, cpu-long, gpu, paper, smoke")
    assert done.stderr.count("\n") == 1


@FITTING
@pytest.mark.parametrize("profile", ["smoke", "cpu", "cpu-long", "gpu", "paper"])
def test_a_dry_run_prints_the_six_stages_and_writes_nothing(profile, tmp_path):
    done = run_all("--dry-run", "--profile", profile, REALM_RUNS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert heads == [f"{s.number} {s.notebook}: would run" for s in STAGES]
    assert "setting up" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@FITTING
def test_the_default_profile_is_cpu(tmp_path):
    default, named = run_all("--dry-run", REALM_RUNS=str(tmp_path)), run_all("--dry-run", "--profile", "cpu")
    assert "max_train_tokens" in default.stdout
    assert default.stdout.count("values") == named.stdout.count("values") == 6
    values = lambda text: [line for line in text.splitlines() if "values" in line]  # noqa: E731
    assert values(default.stdout) == values(named.stdout)


@FITTING
def test_a_dry_run_of_one_stage(tmp_path):
    done = run_all("--dry-run", "--profile", "smoke", "--only", "3", REALM_RUNS=str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.startswith("03 03_simulation: would run")
    assert done.stdout.count("would run") == 1


@FITTING
def test_a_dry_run_from_a_stage_on(tmp_path):
    done = run_all("--dry-run", "--profile", "smoke", "--from", "04", REALM_RUNS=str(tmp_path))
    assert done.stdout.startswith("04 04_realm_sft")


@FITTING
def test_a_dry_run_estimates_for_the_gpus_asked_for(tmp_path):
    done = run_all("--dry-run", "--profile", "paper", "--only", "2", "--gpus", "8", REALM_RUNS=str(tmp_path))
    assert "full, 8" in done.stdout


@FITTING
def test_what_would_stop_a_run_stops_it_before_anything_is_fetched(tmp_path):
    text = (REPOSITORY / "profiles" / "smoke.yaml").read_text()
    short = tmp_path / "short.yaml"
    short.write_text(
        text.replace("max_new_tokens: 32, context_length: 1024", "max_new_tokens: 1024, context_length: 1024")
    )
    places = {"REALM_RUNS": str(tmp_path / "runs"), "REALM_CACHE": str(tmp_path / "cache")}
    line = (
        "simulation.user: max_new_tokens 1024 leaves no room for a question in context_length 1024; "
        "lower max_new_tokens or raise context_length\n"
    )
    for options in ((), ("--dry-run",)):
        done = run_all(*options, "--profile", str(short), **places)
        assert (done.returncode, done.stderr) == (1, f"error: {short}: {line}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["short.yaml"]


def copy_of_the_entry(folder):
    """The shell entry in a folder of its own, with a lock file that any environment satisfies."""
    for name in ("run_all.sh", "lib/realm/pins.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "cluster").mkdir()
    (folder / "cluster" / "serving.txt").write_text("# nothing\n")
    return folder / "run_all.sh"


def test_the_serving_environment_is_made_once_and_told_apart_from_this_one(tmp_path):
    entry = copy_of_the_entry(tmp_path / "copy")
    first, again = (subprocess.run([entry, "--serving-env"], capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert "setting up .venv-serving" in first.stdout and "setting up" not in again.stdout
    assert again.stdout.startswith(".venv-serving holds what cluster/serving.txt names")
    assert (tmp_path / "copy" / ".venv-serving" / "bin" / "python").exists()
    assert not (tmp_path / "copy" / ".venv").exists()


def test_a_serving_environment_that_does_not_match_is_one_line(tmp_path):
    entry = copy_of_the_entry(tmp_path / "copy")
    (tmp_path / "copy" / "cluster" / "serving.txt").write_text("no-such-package-at-all==1.0\n")
    pip = tmp_path / "copy" / ".venv-serving" / "bin" / "python"
    done = subprocess.run(
        [entry, "--serving-env"], capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"}
    )
    assert done.returncode != 0 and "no-such-package-at-all" in done.stderr
    assert pip.exists()


@FITTING
def test_it_may_be_called_from_anywhere(tmp_path):
    done = run_all("--dry-run", "--profile", "smoke", cwd=tmp_path, REALM_RUNS=str(tmp_path))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


@FITTING
def test_a_broken_profile_stops_before_anything_is_fetched(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((REPOSITORY / "profiles" / "smoke.yaml").read_text().replace("max_length: 256", "max_length: 1"))
    done = run_all("--profile", str(broken), REALM_RUNS=str(tmp_path / "runs"), REALM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "dialogue.max_length" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.yaml"]


@FITTING
def test_tidy_says_that_there_is_nothing(tmp_path):
    done = run_all("--tidy", "--profile", "smoke", REALM_RUNS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'smoke'}: nothing was set aside\n"


@FITTING
def test_figures_are_drawn_from_numbers_alone(tmp_path):
    """In a copy without runs, data, models or network: PNGs and both READMEs' blocks come back as they were."""
    for name in ("run_all.sh", "README.md", "claims.yaml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("lib", "figures", "cluster", "profiles"):
        left = shutil.ignore_patterns("__pycache__", "*.egg-info", "01_*", "04_*", "06_*")  # a few are enough
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=left)
    readme, pictures = tmp_path / "README.md", sorted((tmp_path / "figures").rglob("*.png"))
    before, plan = readme.read_text(), (tmp_path / "cluster" / "README.md").read_text()
    head, rest = before.split(report.README_BEGIN)
    readme.write_text(f"{head}{report.README_BEGIN}\nold\n{report.README_END}{rest.split(report.README_END)[1]}")
    for picture in pictures:
        picture.unlink()
    closed = {f"{p}_PROXY": "http://127.0.0.1:9" for p in ("HTTP", "HTTPS", "ALL")}
    places = {"REALM_CACHE": str(tmp_path / "cache"), "REALM_RUNS": str(tmp_path / "runs")}
    done = run_all("--figures", script=tmp_path / "run_all.sh", PYTHONPATH=str(tmp_path / "lib"), **closed, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(pictures)} of {len(pictures)} figures drawn anew" in done.stdout
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert readme.read_text() == before and (tmp_path / "cluster" / "README.md").read_text() == plan
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()
    pictures[0].with_suffix(".json").unlink()
    failed = run_all("--figures", script=tmp_path / "run_all.sh", PYTHONPATH=str(tmp_path / "lib"), **closed, **places)
    assert failed.returncode == 1 and f"{pictures[0].stem}.json: missing" in failed.stderr
