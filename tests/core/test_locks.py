import errno
import fcntl
import os
import subprocess
import sys

import pytest

from realm.core import locks
from realm.core.locks import Busy, Lock


@pytest.fixture
def lockless(monkeypatch):
    """A file system without flock; with ``record``, without record locks either."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def make(record=True):
        monkeypatch.setattr(fcntl, "flock", refuse)
        if not record:
            monkeypatch.setattr(fcntl, "lockf", refuse)

    return make


HOLD = "import sys, time; from pathlib import Path; from realm.core.locks import Lock; LOCK = Lock(Path(sys.argv[1]));"
LOCKLESS = "import errno, fcntl\ndef no(*a): raise OSError(errno.ENOSYS, 'no')\nfcntl.flock = NAMES = no\n"


def holder(path, names="fcntl.flock"):
    """Another process that has the lock, until its input is closed."""
    code = LOCKLESS.replace("fcntl.flock = NAMES", names) + HOLD + "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EWOULDBLOCK])
def test_what_another_has_is_busy(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, "busy")))
    with pytest.raises(Busy):
        Lock(tmp_path / "lock")


def test_a_lock_is_given_once_and_again_when_it_is_free(tmp_path):
    first = Lock(tmp_path / "lock")
    assert first.kind == "flock"
    with pytest.raises(Busy):
        Lock(tmp_path / "lock")
    first.close()
    Lock(tmp_path / "lock").close()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_flock_is_no_other_run(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, "no flock")))
    lock = Lock(tmp_path / "lock")
    assert lock.kind == "record"
    lock.close()


@pytest.mark.parametrize("record", [True, False])
def test_without_flock_another_process_is_still_kept_away(tmp_path, lockless, record, capsys):
    lockless(record)
    other = holder(tmp_path / "lock", "fcntl.flock" if record else "fcntl.flock = fcntl.lockf")
    with pytest.raises(Busy):
        Lock(tmp_path / "lock")
    other.kill()
    other.wait()
    lock = Lock(tmp_path / "lock")  # it was killed, and is no more
    assert lock.kind == ("record" if record else "owner")
    assert ("this file system takes no locks" in capsys.readouterr().err) != record
    lock.close()
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_an_owner_on_another_machine_is_believed_and_named(tmp_path, lockless):
    lockless(record=False)
    (tmp_path / "lock.owner").write_text(f"elsewhere {os.getpid()} 1")
    with pytest.raises(Busy, match=r"its owner is named in .*lock\.owner; remove that file if the process is gone"):
        Lock(tmp_path / "lock")


def test_patience_waits_for_who_is_about_to_go(tmp_path, monkeypatch):
    first, waits = Lock(tmp_path / "lock"), []
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: waits.append(seconds) or first.close())
    Lock(tmp_path / "lock", patience=5).close()
    assert len(waits) == 1
