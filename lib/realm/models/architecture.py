"""The shape of a model, known before its weights are: from published facts, a local folder or the Hub's cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from realm.core.errors import OneLineError


class UnknownArchitecture(OneLineError, ValueError):
    """A model whose shape is not known here; the message says what would make it known."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a LLaMA: its linear layers carry no biases, its heads divide the hidden width among them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps: query, key, value, output, gate, up, down."""
        h, i, kv = self.hidden, self.intermediate, self.hidden * self.kv_heads // self.heads
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    @property
    def linear(self) -> int:
        """Weights of all layers' linear maps; the output head is not among them."""
        return self.layers * sum(a * b for a, b in self.matrices)

    @property
    def parameters(self) -> int:
        """All of them: linear maps, norms, embedding, and the head where it is not the embedding."""
        return self.linear + (2 * self.layers + 1) * self.hidden + self.head * (1 if self.tied else 2)

    @property
    def head(self) -> int:
        """Weights of the output head, and as many of the embedding."""
        return self.vocab * self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on all linear maps: rank * (in + out) each (arXiv 2106.09685)."""
        return self.layers * rank * sum(a + b for a, b in self.matrices)


# config.json of the repository or asset so named. LLaMA: arXiv 2302.13971, table 2; Llama 2: arXiv 2307.09288.
PUBLISHED = {
    "huggyllama/llama-7b": Architecture(32, 4096, 11008, 32, 32, 32000, tied=False),
    "meta-llama/Llama-2-7b-hf": Architecture(32, 4096, 11008, 32, 32, 32000, tied=False),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Architecture(24, 2048, 8192, 32, 32, 49152, tied=True),
    "smollm2-135m": Architecture(30, 576, 1536, 9, 3, 49152, tied=True),
}
# Of the same files: max_position_embeddings.
PUBLISHED_POSITIONS = {
    "huggyllama/llama-7b": 2048,
    "meta-llama/Llama-2-7b-hf": 4096,
    "meta-llama/Llama-2-7b-chat-hf": 4096,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 8192,
    "smollm2-135m": 8192,
}


def architecture(name: str) -> Architecture:
    """The shape of a model by name: known here, a local folder, or a Hub repository fetched before.

    Raises UnknownArchitecture for a model that is none of these or is no LLaMA.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = _config_of(name)
    if path is None:
        raise UnknownArchitecture(f"{name}: its shape is not known before it is fetched")
    try:
        return _from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UnknownArchitecture(f"{name}: config.json does not describe a LLaMA ({error})") from None


def positions(name: str) -> int | None:
    """How many tokens a model can hold, from where ``architecture`` looks; None where that is not known."""
    if name in PUBLISHED_POSITIONS:
        return PUBLISHED_POSITIONS[name]
    path = _config_of(name)
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings") if path else None
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def _config_of(name: str) -> Path | None:
    path = Path(name) / "config.json"
    return path if path.is_file() else _in_hub_cache(name)


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, not a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _from_config(values: dict) -> Architecture:
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    plain = values.get("head_dim") in (None, hidden // heads)
    if values["model_type"] != "llama" or not plain or values.get("attention_bias") or values.get("mlp_bias"):
        raise ValueError(f"model_type {values['model_type']}, or heads or biases of another kind")
    kv_heads = values.get("num_key_value_heads") or heads
    tied = bool(values.get("tie_word_embeddings", False))
    shape = (values["num_hidden_layers"], hidden, values["intermediate_size"], heads, kv_heads, values["vocab_size"])
    return Architecture(*shape, tied=tied)
