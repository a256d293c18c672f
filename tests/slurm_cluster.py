"""A Slurm of one machine in a temporary folder: munge, the controller and one node, started and ended here. As root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
ReturnToService=2
KillWait=3
MessageTimeout=60
MinJobAge=36000
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:3 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# No GPU is behind these: Slurm hands out numbers, and that a job sees its own is all that is looked at.
GRES = "".join(f"NodeName={{host}} Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full"))


def why_not() -> str | None:
    """Why no Slurm can be started here, for a skipped test."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
    if missing:
        return f"Slurm is not installed here ({missing[0]} is missing; Debian's packages slurm-wlm and munge have all)"
    return None if os.geteuid() == 0 else "starting a Slurm of one's own needs root"


class SlurmCluster:
    """``variables``: what its commands need to find it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
        self.variables = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> SlurmCluster:
        host = socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        with socket.socket() as one, socket.socket() as other:
            for probe in (one, other):
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in (one, other)]
        (self.folder / "slurm.conf").write_text(CONF.format(host=host, ports=ports, folder=self.folder))
        (self.folder / "gres.conf").write_text(GRES.format(host=host))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        self.ask("munged", "--force", *(f"--{name}={self.folder / file}" for name, file in files.items()))
        self.ask("slurmctld", "-c")
        self.ask("slurmd")
        self.wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), 30)
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "--quiet", "--user=root", check=False)
        for daemon in ("slurmd", "slurmctld", "munged"):
            pid = self.folder / f"{daemon}.pid"
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)
        time.sleep(1)
        shutil.rmtree(self.folder, ignore_errors=True)

    def jobs(self) -> list[str]:
        """Numbers of all that is queued or at work."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i").split()

    def ask(self, program: str, *words: str, check: bool = True) -> str:
        """What a command of Slurm's prints."""
        command = [shutil.which(program, path=PLACES), *words]
        if program in ("munged", "slurmctld", "slurmd"):  # they stay, and would keep a pipe open
            subprocess.run(command, env={**os.environ, **self.variables}, check=True, stdout=subprocess.DEVNULL)
            return ""
        done = subprocess.run(command, env={**os.environ, **self.variables}, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{program}: {done.stderr}"
        return done.stdout

    def wait(self, until, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            logs = {p.name: p.read_text(errors="replace")[-1_500:] for p in self.folder.glob("slurm*.log")}
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
