"""Controls: the same model, data, budget and seed, trained on something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from realm.conversations.conversation import Conversation
from realm.core.profile import UserSFT
from realm.dialogue.encoder import Encoder
from realm.dialogue.segments import without_context
from realm.training.base import add_adapter, load_base
from realm.training.rows import select_rows
from realm.training.trainer import train


def train_control(
    kind: str, conversations: Sequence[Conversation], encoder: Encoder, config: UserSFT, folder: Path, seed: int
) -> PreTrainedModel:
    """A model trained on another side (``assistant``, ``both``), or on the human turns of ``plain_segments``: as the
    authors cut them, without what came before, and as they come. Otherwise as ``config`` trains UserGPT: same data,
    same budget of tokens, same seed. Resumes from ``folder``/control_KIND. Raises TrainingError."""
    share = config.opening_share
    if kind == "plain_segments":
        plain = map(without_context, conversations)
        conversations, share = [c for c in plain if c.messages], None
    else:
        encoder = replace(encoder, supervise=kind)
    chosen = select_rows(conversations, encoder, config.max_train_tokens, seed, share)
    model = add_adapter(load_base(config), config, seed)
    last = config.model_copy(update={"eval_steps": None})  # the last step: no validation rows are at hand
    train(model, encoder.tokenizer, chosen.rows, last, Path(folder) / f"control_{kind}", seed)
    return model
