"""The model card beside a fine-tuned model: what it is, what it was trained on, how good, how to serve it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from realm.core.cards import CARD, PAPER, public_name, write_card
from realm.core.metrics import Metric
from realm.core.profile import SFT, Dialogue
from realm.core.secrets import redacted

TEMPLATE = Path(__file__).parent / "model_card.md.j2"


def write_model_card(
    folder: str | Path,
    *,
    config: SFT,
    dialogue: Dialogue,
    template: str,
    flipped: bool,
    metrics: Iterable[Metric],
    data: Mapping[str, str],
    seed: int,
    licence: str | None = None,
    commit: str = "",
    answers_by: str = "",
) -> Path:
    """Write ``README.md`` with a Hub front matter into ``folder``, a saved adapter or a saved model; returns its path.

    ``template``: the chat template as the tokenizer carries it; ``flipped``: whether it makes the model the user;
    ``data``: input -> SHA-256; ``licence``: the base model's, None where it is not known;
    ``answers_by``: the model that wrote what was trained on, where one did. Names of local folders are
    cut to their last part and keys are redacted, so that the card may be published. Raises ArtefactError if the folder
    cannot be written.
    """
    # peft writes this file beside its weights; a merged or fully trained model has none.
    library = "peft" if (Path(folder) / "adapter_config.json").exists() else "transformers"
    name, base_model = "UserGPT" if flipped else "ReaLM", public_name(config.base_model)
    settings = {**config.model_dump(), "base_model": base_model, "max_length": dialogue.max_length}
    return write_card(
        TEMPLATE,
        Path(folder) / CARD,
        front_matter=_front_matter(base_model, config, library, licence, flipped),
        name=f"{name}, from {base_model}",
        base_model=base_model,
        flipped=flipped,
        library=library,
        licence=licence,
        commit=commit,
        answers_by=answers_by,
        seed=seed,
        config=config,
        dialogue=dialogue,
        settings=settings,
        data={public_name(key): digest for key, digest in data.items()},
        metrics=list(metrics),
        template=template,
    )


def _front_matter(base_model: str, config: SFT, library: str, licence: str | None, flipped: bool) -> str:
    values: dict[str, Any] = {
        # The Hub's licence names are lower case.
        **({"license": licence.lower()} if licence else {}),
        "base_model": base_model,
        "base_model_relation": "adapter" if library == "peft" else "finetune",
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": [
            "user-simulation" if flipped else "conversational",
            *(["lora"] if config.method != "full" else []),
            PAPER,
        ],
    }
    return yaml.safe_dump(redacted(values), sort_keys=False, allow_unicode=True)
