"""benchmarks/gpu.py without a GPU: its checks between processes of the CPU on a tiny model, and its table."""

import shutil
from dataclasses import replace

import pytest
import torch
from benchmarks import gpu
from benchmarks.gpu import ALONE, FAILED, FAILS, HOLDS, NO_CARD, UNTESTED, Bench, CheckFailed, Row, Trained
from tiny_model import conversations, write_tiny_model

from realm.core.files import REPOSITORY
from realm.models.architecture import PUBLISHED

NAMES = [name for names in gpu.CHECKS.values() for name in names]
WITHOUT_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run python -m benchmarks.gpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def bench(model, tmp_path):
    return Bench(tmp_path, model, conversations(100), 0)


@pytest.fixture
def few(bench):
    return replace(bench, talks=bench.talks[:24])


@pytest.fixture
def here(monkeypatch):
    """One process alone trains right here, which is quicker; launchers start their processes as ever."""
    launched = gpu.run

    def run(job, launcher=ALONE, **values):
        if launcher is not ALONE:
            return launched(job, launcher, **values)
        folder = job.folder.with_suffix(".says")
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(gpu.REPORT, str(folder))
        assert gpu.train(job.command()) == 0
        return gpu.said_by(job, folder)

    monkeypatch.setattr(gpu, "run", run)


# ---------------------------------------------------------------- the checks, where a CPU stands for the card


@WITHOUT_CARD
def test_the_checks_of_one_process_hold_on_a_cpu(few, here):
    [alike] = gpu.nf4(few)
    assert (alike.verdict, alike.measured) == (HOLDS, "0 nats at most, 12 steps")
    fast, slow = gpu.speed_and_memory(few)
    assert fast.verdict == "measured" and fast.measured.endswith(" tokens/s")
    assert (slow.verdict, slow.measured) == (UNTESTED, NO_CARD) and "GiB of tensors" in slow.expected
    [resumed] = gpu.resume(few)
    assert resumed.verdict == HOLDS and resumed.measured.startswith("0 nats at most, from step 7 on")


@WITHOUT_CARD
@pytest.mark.parametrize("check", [gpu.two_processes, gpu.fsdp])
def test_two_processes_share_one_device(bench, here, check):
    [row] = check(bench)
    assert row.verdict == HOLDS, row


@WITHOUT_CARD
def test_a_run_that_starts_anew_is_no_resumed_one(few, here, monkeypatch):
    run = gpu.run

    def forgetful(job, *arguments, **values):
        if (job.folder / "checkpoints").exists():
            shutil.rmtree(job.folder / "checkpoints")
        return run(job, *arguments, **values)

    monkeypatch.setattr(gpu, "run", forgetful)
    with pytest.raises(CheckFailed, match="started anew"):
        list(gpu.resume(few))


def test_a_process_that_fails_is_a_row_with_its_last_words(bench, monkeypatch):
    broken = Bench(bench.folder, "/nowhere/at/all", bench.talks, 0)
    monkeypatch.setattr(gpu, "CHECKS", {gpu.nf4: ("first",), gpu.resume: ("second",)})
    with pytest.raises(CheckFailed, match="/nowhere/at/all"):
        gpu.run(broken.job("broken", 4))
    monkeypatch.setattr(gpu, "run", lambda *a, **v: (_ for _ in ()).throw(CheckFailed("no memory")))
    rows = gpu.measure(broken)
    assert [(r.check, r.verdict, r.measured) for r in rows] == [(n, FAILED, "no memory") for n in ("first", "second")]
    assert all(r.device for r in rows)


def test_losses_are_held_against_each_other_step_by_step():
    one = Trained({1: 2.0, 2: 1.5, 3: 1.0}, 1.0, None)
    other = Trained({1: 2.0, 2: 1.6, 3: 9.0}, 1.0, None)  # the last, a short one, does not count
    assert gpu.apart(one, other) == pytest.approx(0.1)
    assert gpu.equal("check", gpu.apart(one, other), 0.02).verdict == FAILS
    assert gpu.equal("check", gpu.apart(one, one), 0.02).verdict == HOLDS
    with pytest.raises(CheckFailed, match="nothing to compare"):
        gpu.apart(one, Trained({1: 2.0}, 1.0, None))


def test_speed_and_memory_are_held_against_the_estimate(few, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    card = gpu.known_card()
    assert card.gib == 80
    operations = 1e9
    middle = card.flops * 0.3 / operations
    assert [gpu._speed("", s, operations).verdict for s in (middle, middle / 3, middle * 3)] == [HOLDS, FAILS, FAILS]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another card")
    assert gpu.known_card() is None and gpu._speed("", 7.0, operations).verdict == "measured"
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "architecture", lambda name: PUBLISHED["huggyllama/llama-7b"])
    peaks = iter([None, 1.0, 2.0])
    monkeypatch.setattr(gpu, "run", lambda job: Trained({1: 1.0}, 1.0, (p := next(peaks)) and int(p * expected)))
    _, unknown = gpu.speed_and_memory(few)
    expected = float(unknown.expected.split()[0]) * 2**30
    assert [list(gpu.speed_and_memory(few))[1].verdict for _ in range(2)] == [HOLDS, FAILS]


# ---------------------------------------------------------------- the table


@WITHOUT_CARD
def test_without_a_card_it_runs_to_the_end_and_all_is_untested(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results" / "gpu.csv")
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert all(f"| {NO_CARD} | {UNTESTED} |" in line for line in lines[2:])
    assert [row.check for row in gpu.read_rows(gpu.RESULTS)] == NAMES


def test_what_was_run_on_a_card_stays_until_it_is_run_again():
    run = Row(NAMES[1], "", "1,000 tokens/s", HOLDS, "Some card", "0123")
    found = gpu.merged([run, Row("a check of old", "", "", HOLDS)], gpu.untested())
    assert [row.check for row in found] == NAMES and found[1] == run
    again = Row(NAMES[1], "", "900 tokens/s", FAILS, "Another card", "4567")
    assert gpu.merged([run], [again]) == [again]


def test_the_committed_table_has_every_check_and_says_who_ran_it():
    rows = gpu.read_rows(gpu.RESULTS)
    assert [row.check for row in rows] == NAMES
    assert all(bool(row.device and row.commit) == (row.verdict != UNTESTED) for row in rows)
    assert "](benchmarks/results/gpu.csv)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
