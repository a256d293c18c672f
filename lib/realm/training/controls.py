"""Controls: the same model, data, budget and seed, trained on something else."""

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
    control = replace(job, folder=job.folder / f"control_{kind}", valid=None, control=kind)
    encoder = control.encoder()
    rows = control.rows(encoder)
    model = add_adapter(load_base(control.config), control.config, control.seed)
    launch_or_train(model, encoder, rows, control)
    return model
