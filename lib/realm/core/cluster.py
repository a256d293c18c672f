"""The part of a profile that says what each job asks of Slurm. No number of a run depends on it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from realm.core.block import Block
from realm.core.secrets import require_plain_lines

SHARDS = "03_shards"  # the job array of the simulation; the notebook after it joins what its tasks said
JOBS = (
    "01_data_inspection",
    "02_usergpt_sft",
    SHARDS,
    "03_simulation",
    "04_realm_sft",
    "05_mt_bench",
    "06_simulator_realism",
)
TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|infinite", re.IGNORECASE)
OURS = ("array", "dependency", "job-name", "output", "open-mode", "requeue", "signal", "kill-on-invalid-dep")


class Resources(Block):
    """What a job asks for; null leaves it to what all jobs ask for, and there to the cluster's own default.

    ``gpus``: on the one node that a job has, ``gpu_type`` as the cluster calls them. ``cpus``: cores. ``memory``: of
    the node, as ``64G``. ``time``: as ``8:00:00`` or ``2-00:00:00``, in quotes. ``options``: further options of
    ``sbatch`` as they stand, ``--constraint=a100`` say.
    """

    partition: str | None = Field(default=None, pattern=r"^\S+$")
    account: str | None = Field(default=None, pattern=r"^\S+$")
    qos: str | None = Field(default=None, pattern=r"^\S+$")
    gpus: int | None = Field(default=None, ge=0)
    gpu_type: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    cpus: int | None = Field(default=None, ge=1)
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    time: str | None = None
    options: list[Annotated[str, Field(pattern=r"^--[^\n]*$")]] | None = None

    @field_validator("time", mode="before")
    @classmethod
    def _a_time_of_slurm(cls, time: Any) -> Any:
        if time is not None and not (isinstance(time, str) and TIME.fullmatch(time)):
            raise ValueError(f"{time!r} is no time of Slurm's; write hours:minutes:seconds in quotes, '8:00:00' say")
        return time

    @field_validator("options")
    @classmethod
    def _what_is_ours(cls, options: list[str] | None) -> list[str] | None:
        for option in options or ():
            if (name := re.split("[= ]", option.lstrip("-"))[0]) in OURS:
                raise ValueError(f"--{name} is set for each job by ourselves; take it out of options")
        return options


class Cluster(Resources):
    """Jobs of ``./run_all.sh --slurm``: what all of them ask for, and under ``stages`` what some ask for instead, by
    the names of notebooks; the job array that holds notebook 03's conversations is called ``03_shards``.

    ``setup``: lines of bash before each job's command, ``module load cuda`` say. ``shards``: into so many tasks the
    conversations are divided, ``at_once`` of which may run at the same time (null: all). ``signal_seconds`` before a
    job's time is up it is asked to stop: training writes a checkpoint, conversations close their turns, and the job is
    queued again, ``requeues`` times at most.
    """

    setup: list[str] = Field(default_factory=list)
    shards: int = Field(default=1, ge=1, le=1000)
    at_once: int | None = Field(default=None, ge=1)
    signal_seconds: int = Field(default=180, ge=1)
    requeues: int = Field(default=20, ge=0)
    stages: dict[str, Resources] = Field(default_factory=dict)

    @field_validator("setup")
    @classmethod
    def _no_secrets(cls, lines: list[str]) -> list[str]:
        return require_plain_lines(lines)

    @model_validator(mode="after")
    def _stages_that_there_are(self) -> Cluster:
        for name in self.stages:
            if name not in JOBS:
                raise ValueError(f"stages: {name} is no job; there are {', '.join(JOBS)}")
        return self

    def of(self, job: str) -> Resources:
        """What one of ``JOBS`` asks for."""
        own = self.stages.get(job, Resources())
        whose = {name: self if value is None else own for name, value in own}
        return Resources(**{name: getattr(block, name) for name, block in whose.items()})
