"""Controls and students: the same model, settings and seed, trained on something else."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from realm.training.base import add_adapter, load_base
from realm.training.launch import Job, launch_or_train


def train_control(kind: str, job: Job) -> PreTrainedModel:
    """A model trained on another side (``assistant``, ``both``), or on the human turns of ``plain_segments``: as the
    authors cut them, without what came before, and as they come. Otherwise as ``job`` trains UserGPT, by the same way:
    same data, same budget of tokens, same seed, as many processes. Resumes from its folder's control_KIND.
    Raises TrainingError."""
    return trained_by(replace(job, folder=job.folder / f"control_{kind}", valid=None, control=kind))


def trained_by(job: Job) -> PreTrainedModel:
    """The base model of a job trained as it says, in its folder, from where it goes on. Raises TrainingError."""
    encoder = job.encoder()
    rows = job.rows(encoder)
    model = add_adapter(load_base(job.config), job.config, job.seed)
    launch_or_train(model, encoder, rows, job)
    return model
