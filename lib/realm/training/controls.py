"""Controls: the same model, data, budget and seed, trained on another side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from realm.conversations.conversation import Conversation
from realm.core.profile import UserSFT
from realm.dialogue.encoder import Encoder
from realm.training.base import add_adapter, load_base
from realm.training.rows import select_rows
from realm.training.trainer import train


def train_control(
    side: str, conversations: Sequence[Conversation], encoder: Encoder, config: UserSFT, folder: Path, seed: int
) -> PreTrainedModel:
    """A model trained on ``side`` (assistant or both), otherwise as ``config`` trains UserGPT: same data, same budget
    of tokens, same seed. Resumes from ``folder``/control_SIDE. Raises TrainingError."""
    chosen = select_rows(
        conversations, replace(encoder, supervise=side), config.max_train_tokens, seed, config.opening_share
    )
    model = add_adapter(load_base(config), config, seed)
    last = config.model_copy(update={"eval_steps": None})  # the last step: no validation rows are at hand
    train(model, encoder.tokenizer, chosen.rows, last, Path(folder) / f"control_{side}", seed)
    return model
