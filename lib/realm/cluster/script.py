"""One job as a script for ``sbatch``: what it asks for, where it runs, and its command within ``cluster/job.sh``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from realm.cluster.jobs import Job, ranges
from realm.core.cluster import Cluster, Resources
from realm.core.files import REPOSITORY
from realm.core.profile import RUNS_VARIABLE
from realm.models.assets import cache_folder
from realm.models.fetching import CACHE_VARIABLE

FOLDER = "slurm"  # in a run's: scripts, logs, and what was submitted
WRAPPER = "cluster/job.sh"


def script_of(job: Job, cluster: Cluster, folder: Path) -> str:
    """The whole text. It holds no secret: keys come from the environment in which it is submitted."""
    options = [*_asked(job.asks), *_ours(job, cluster, folder)]
    heads = [f"#SBATCH {shlex.quote(option)}" for option in options]
    heads += [f"#SBATCH {option}" for option in job.asks.options or ()]
    places = {RUNS_VARIABLE: folder.parent, CACHE_VARIABLE: cache_folder().absolute()}
    exports = [f"export {name}={shlex.quote(str(place))}" for name, place in places.items()]
    words = [shlex.quote(word) for word in (sys.executable, *job.words)]
    words += [f'"$SLURM_ARRAY_TASK_ID/{cluster.shards}"'] if job.tasks else []
    lines = [
        "#!/usr/bin/env bash",
        *heads,
        "set -eo pipefail",
        f"cd {shlex.quote(str(REPOSITORY))}",
        *exports,
        "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1  # a node needs no network: --fetch brought all in",
        *cluster.setup,
        f"exec {WRAPPER} {cluster.signal_seconds} {cluster.requeues} {' '.join(words)}",
    ]
    return "\n".join(lines) + "\n"


def _asked(asks: Resources) -> list[str]:
    kind = f"{asks.gpu_type}:" if asks.gpu_type else ""
    values = {
        "partition": asks.partition,
        "account": asks.account,
        "qos": asks.qos,
        "gres": f"gpu:{kind}{asks.gpus}" if asks.gpus else None,
        "cpus-per-task": asks.cpus,
        "mem": asks.memory,
        "time": asks.time,
    }
    return ["--nodes=1", "--ntasks=1", *(f"--{name}={value}" for name, value in values.items() if value is not None)]


def _ours(job: Job, cluster: Cluster, folder: Path) -> list[str]:
    tasks = ranges(job.tasks) + (f"%{cluster.at_once}" if cluster.at_once else "")
    number = "%A_%a" if job.tasks else "%j"
    return [
        f"--job-name=realm-{folder.name}-{job.name}",
        f"--output={folder / FOLDER / f'{job.name}-{number}.log'}",
        "--open-mode=append",  # a job that is queued again goes on in the same log
        f"--signal=B:USR1@{cluster.signal_seconds}",
        "--requeue" if cluster.requeues else "--no-requeue",
        "--kill-on-invalid-dep=yes",  # after a failure nothing waits for ever
        *([f"--array={tasks}"] if job.tasks else []),
    ]
