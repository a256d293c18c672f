from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 15  # seconds; a slow machine is no failure
LIVES_ON = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LIVES_ON
WITH_A_WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"


def with_grace(seconds: float) -> tuple[str, str]:
    """Arguments that start a guard which waits ``seconds`` before it kills."""
    lines = (
        "import sys",
        "from realm.serving import child",
        f"child.GRACE_SECONDS = {seconds}",
        "child.main(sys.argv[1:])",
    )
    return "-c", "; ".join(lines)


def wait_until(is_so, patience: float = PATIENCE) -> bool:
    deadline = time.monotonic() + patience
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    # A dead child that nobody has collected yet counts as gone.
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


def pid_in(file: Path) -> int:
    assert wait_until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


@contextmanager
def guarded(*command: str, through: tuple[str, ...] = ("-m", "realm.serving.child"), log: Path | None = None):
    with Path(log or os.devnull).open("wb") as output:
        process = subprocess.Popen([sys.executable, *through, *command], stdin=subprocess.PIPE, stderr=output)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(PATIENCE)


@pytest.fixture
def file(tmp_path):
    """Where the child leaves its number; whatever a test finds, nothing lives on after it."""
    path = tmp_path / "pid"
    yield path
    if path.exists() and not is_gone(int(path.read_text())):
        os.kill(int(path.read_text()), signal.SIGKILL)


def test_the_child_runs_while_the_parent_holds_the_pipe(file):
    with guarded(sys.executable, "-c", LIVES_ON, str(file)) as process:
        child = pid_in(file)
        assert process.poll() is None
        assert not is_gone(child)


def test_the_child_ends_when_the_pipe_closes(file):
    with guarded(sys.executable, "-c", LIVES_ON, str(file)) as process:
        child = pid_in(file)
        process.stdin.close()
        assert wait_until(lambda: is_gone(child))
        process.wait(PATIENCE)


def test_a_child_deaf_to_the_polite_signal_is_killed(file):
    with guarded(sys.executable, "-c", DEAF, str(file), through=with_grace(0.3)) as process:
        child = pid_in(file)
        process.stdin.close()
        assert wait_until(lambda: is_gone(child))
        process.wait(PATIENCE)


def test_the_child_ends_when_the_parent_is_killed(file):
    parent = (
        "import subprocess, sys, time;"
        "subprocess.Popen([sys.executable, '-m', 'realm.serving.child', *sys.argv[1:]], stdin=subprocess.PIPE);"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, sys.executable, "-c", LIVES_ON, str(file)])
    child = pid_in(file)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: is_gone(child))


def test_the_child_ends_when_the_guard_is_told_to_end(file):
    with guarded(sys.executable, "-c", LIVES_ON, str(file), through=with_grace(0.3)) as process:
        child = pid_in(file)
        process.terminate()
        assert wait_until(lambda: is_gone(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_from_the_terminal_is_left_to_the_parent(file, number):
    with guarded(sys.executable, "-c", LIVES_ON, str(file)) as process:
        child = pid_in(file)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert not is_gone(child)


def test_a_child_that_ends_by_itself_passes_its_code_on_and_leaves_a_clean_log(tmp_path):
    log = tmp_path / "log"
    with guarded(sys.executable, "-c", "import sys; sys.exit('no such model')", log=log) as process:
        process.wait(PATIENCE)
    assert log.read_text() == "no such model\n"
    assert process.returncode == 1


def test_the_guard_follows_its_child_at_once(file):
    with guarded(sys.executable, "-c", LIVES_ON, str(file), through=with_grace(3)) as process:
        pid_in(file)
        process.terminate()
        process.wait(2)


def test_workers_of_the_child_end_with_it(file):
    with guarded(sys.executable, "-c", WITH_A_WORKER, str(file), LIVES_ON) as process:
        worker = pid_in(file)
        process.stdin.close()
        process.wait(PATIENCE)
        assert wait_until(lambda: is_gone(worker), patience=1)
