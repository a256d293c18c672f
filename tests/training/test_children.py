"""What a reader hears of a process that failed, from real launchers and from what they write."""

import sys

import pytest

from realm.training.base import TrainingError
from realm.training.children import last_words, run_child

# Two processes that wait for each other; the second ends as it is told.
DIES = """
import os, signal, sys, time, torch
if "early" in sys.argv and os.environ["RANK"] == "1":
    raise torch.OutOfMemoryError("no room on card 1")
torch.distributed.init_process_group("gloo")
if os.environ["RANK"] == "1":
    if "memory" in sys.argv:
        raise torch.OutOfMemoryError("CUDA out of memory. 20.00 MiB.\\nAnd more about it")
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "said" in sys.argv:
        sys.exit("error: the loss is nan on talk-03; lower learning_rate")
torch.distributed.all_reduce(torch.ones(1))
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (
            "memory",
            r"\(rank 1, exit code 1\): torch.OutOfMemoryError: CUDA out of memory. 20.00 MiB\.; lower batch_size",
        ),
        ("killed", r"\(rank 1, exit code -9, SIGKILL\): it left no message; systems short of memory do this: lower"),
        ("said", r"\(rank 1, exit code 1\): the loss is nan on talk-03; lower learning_rate$"),
        (
            "early",
            r"\(rank 1, exit code 1\): torch.OutOfMemoryError: no room on card 1; lower batch_size",
        ),
    ],
)
def test_the_process_that_failed_first_is_heard(tmp_path, monkeypatch, capfd, how, expected):
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *plain]
    with pytest.raises(TrainingError, match=expected) as failed:
        run_child([*launch, "--module", "dies", how])
    assert "\n" not in str(failed.value)


def test_a_launcher_that_starts_nothing_gives_its_own_reason():
    with pytest.raises(TrainingError, match=r"failed \(exit code 1\): .*no_such_module"):
        run_child([sys.executable, "-c", "import no_such_module"])
    with pytest.raises(TrainingError, match=r"failed \(exit code 3\): it left no message$"):
        run_child([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_launcher_that_is_killed_is_said_to_be():
    with pytest.raises(TrainingError, match=r"failed \(exit code \S+, SIGKILL\): it left no message; systems short"):
        run_child([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])


def test_a_key_in_last_words_is_not_passed_on(monkeypatch, capfd):
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    says = "import sys; sys.exit('error: refused for sk-very-secret')"
    with pytest.raises(TrainingError, match=r"refused for \[redacted\]"):
        run_child([sys.executable, "-c", says])
    assert "sk-very-secret" not in capfd.readouterr().err


def test_a_child_that_succeeds_raises_nothing(capfd):
    run_child([sys.executable, "-c", "import sys; print('a bar', file=sys.stderr)"])
    assert "a bar" in capfd.readouterr().err


def test_a_cause_that_other_errors_follow_is_told_apart():
    table = ["Root Cause (first observed failure):", "  rank      : 3 (local_rank: 3)", "  exitcode  : 1 (pid: 9)"]
    frames = ['  File "train.py", line 1, in <module>', "    step()"]
    first = ["Traceback (most recent call last):", *frames, "ValueError: the first"]
    second = [
        "",
        "During handling of the above:",
        "",
        "Traceback (most recent call last):",
        *frames,
        "KeyError: 'last'",
    ]
    lines = [f"[rank3]: {line}" for line in first + second]
    lines += [f"[rank0]: {line}" for line in ["Traceback (most recent call last):", *frames, "RuntimeError: peer gone"]]
    assert last_words([*lines, *table], 1).endswith("(rank 3, exit code 1): KeyError: 'last'")
    aborted = ["[rank3]: watchdog: a collective took too long", *lines[-4:], *table[:2], "  exitcode  : -6 (pid: 9)"]
    assert last_words(aborted, 1).endswith("(rank 3, exit code -6, SIGABRT): watchdog: a collective took too long")


def test_a_very_long_message_is_cut():
    said = last_words(["Traceback (most recent call last):", "ValueError: " + "x " * 5_000], 1)
    assert len(said) < 700 and said.endswith("…")
