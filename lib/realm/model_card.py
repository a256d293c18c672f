"""The model card beside a fine-tuned model: what it is, what it was trained on, how good, how to serve it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from realm.profile import SFT, Dialogue
from realm.provenance import Metric, atomic_path, redact, redacted

CARD = "README.md"  # where the Hub looks for it
PAPER = "arxiv:2308.11534"

_ENVIRONMENT = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
# A bar or a line break would end a table's cell.
_ENVIRONMENT.filters["cell"] = lambda text: " ".join(str(text).replace("|", "\\|").split())


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
) -> Path:
    """Write ``README.md`` with a Hub front matter into ``folder``, a saved adapter or a saved model; returns its path.

    ``template``: the chat template as the tokenizer carries it; ``flipped``: whether it makes the model the user;
    ``data``: input -> SHA-256; ``licence``: the base model's, None where it is not known. Names of local folders are
    cut to their last part and keys are redacted, so that the card may be published. Raises ArtefactError if the folder
    cannot be written.
    """
    # peft writes this file beside its weights; a merged or fully trained model has none.
    library = "peft" if (Path(folder) / "adapter_config.json").exists() else "transformers"
    name, base_model = "UserGPT" if flipped else "ReaLM", public_name(config.base_model)
    settings = {**config.model_dump(), "base_model": base_model, "max_length": dialogue.max_length}
    text = _ENVIRONMENT.from_string((Path(__file__).parent / "model_card.md.j2").read_text(encoding="utf-8")).render(
        front_matter=_front_matter(base_model, config, library, licence, flipped),
        name=f"{name}, from {base_model}",
        base_model=base_model,
        flipped=flipped,
        library=library,
        licence=licence,
        commit=commit,
        seed=seed,
        config=config,
        dialogue=dialogue,
        settings=settings,
        data={public_name(key): digest for key, digest in data.items()},
        metrics=list(metrics),
        template=template,
    )
    with atomic_path(Path(folder) / CARD) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")
    return Path(folder) / CARD


def public_name(name: str) -> str:
    """A name as a stranger may read it: of a path that leads somewhere on this machine, the last part alone."""
    local = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
    return Path(name).name if local else name


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
