"""GGUF in and out: a packaged GGUF model as safetensors, and a fine-tuned model as GGUF for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from realm.core.errors import OneLineError
from realm.core.files import atomic_path, read_json
from realm.core.locks import in_turn
from realm.models.pretokenizers import cut_as_llama_cpp


class ConversionError(OneLineError, RuntimeError):
    """A model that cannot be written as GGUF; the message names it and the way out."""


def write_safetensors(gguf: Path, folder: Path) -> None:
    """A GGUF model and its tokenizer as ``folder``: about half a minute and 540 MB for 135M parameters.

    The tokenizer gives the ids that llama.cpp gives for the file. Raises PreTokenizerError where that is not known how.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    cut_as_llama_cpp(tokenizer, *_tokenizer_kind(gguf))
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    # The weights are plain numbers by now; without this the configuration would still call them quantized.
    values = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(values), dtype="float32")
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer_kind(gguf: Path) -> tuple[str, str | None, bool]:
    """What a file says of its tokenizer: model, pre-tokenizer, and whether a blank stands before each text."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    said = lambda key, otherwise: fields[key].contents() if key in fields else otherwise  # noqa: E731
    return (
        said("tokenizer.ggml.model", ""),
        said("tokenizer.ggml.pre", None),
        bool(said("tokenizer.ggml.add_space_prefix", True)),
    )


def stated_licence(gguf: Path) -> str | None:
    """The licence that a GGUF file names in its own metadata; None where it names none or cannot be read."""
    from gguf import GGUFReader

    try:
        field = GGUFReader(gguf).get_field("general.license")
    except (OSError, ValueError, IndexError, KeyError):
        return None
    return str(field.contents()) if field else None


def export_gguf(model_folder: Path, vocabulary: Path | None, target: Path) -> Path:
    """Write a LLaMA-architecture model as GGUF (matrices Q8_0, norms float32) unless ``target`` is newer.

    ``vocabulary`` is a GGUF of the same base model: its tokenizer and hyperparameters are copied, the chat
    template comes from the folder's tokenizer. Raises ConversionError without a vocabulary or for another
    architecture.
    """
    weights = sorted(model_folder.glob("*.safetensors"))
    if not weights:
        raise ConversionError(f"{model_folder}: holds no *.safetensors")
    made = lambda: target.exists() and target.stat().st_mtime >= max(w.stat().st_mtime for w in weights)  # noqa: E731
    if made():
        return target
    if vocabulary is None:
        raise ConversionError(
            f"{model_folder}: engine llama.cpp needs a base model that came as GGUF; "
            "use engine transformers or vllm for this one"
        )
    with in_turn(target):
        if not made():
            template = (model_folder / "chat_template.jinja").read_text(encoding="utf-8")
            with atomic_path(target) as temporary:
                _write_gguf(weights, vocabulary, template, temporary)
    return target


def _write_gguf(weights: list[Path], vocabulary: Path, template: str, target: Path) -> None:
    import gguf
    from safetensors import safe_open

    source = gguf.GGUFReader(vocabulary)
    architecture = source.get_field("general.architecture").contents()
    if architecture != "llama":
        raise ConversionError(f"{vocabulary}: architecture {architecture}, only llama is converted")
    writer = gguf.GGUFWriter(target, architecture)
    _copy_metadata(source, writer)
    writer.add_chat_template(template)
    writer.add_eos_token_id(_end_of_turn(weights[0].parent))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    field = lambda name: source.get_field(f"llama.{name}").contents()  # noqa: E731
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, field("block_count"))
    known = {t.name for t in source.tensors}
    for path in weights:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                new_name = names.get_name(name, try_suffixes=(".weight",))
                if new_name not in known:
                    continue  # the output head of a model that ties it to its embeddings
                data = tensors.get_tensor(name).float().numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    data = _rotary_layout(data, heads if "q_proj" in name else kv_heads)
                if data.ndim == 1:
                    writer.add_tensor(new_name, data.astype(np.float32))
                else:
                    kind = gguf.GGMLQuantizationType.Q8_0
                    writer.add_tensor(new_name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _end_of_turn(folder: Path) -> int:
    """The id at which the model in ``folder`` was taught to stop: that of the vocabulary may be another."""
    end = read_json(folder / "config.json")["eos_token_id"]
    return end[0] if isinstance(end, list) else end


def _copy_metadata(source, writer) -> None:
    import gguf

    replaced = {"general.architecture", "general.file_type", "tokenizer.chat_template", "tokenizer.ggml.eos_token_id"}
    for name, entry in source.fields.items():
        if name in replaced or name.startswith("GGUF.") or name.endswith("quantization_version"):
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), kind, sub_type=inner)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _rotary_layout(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of each head that transformers keeps apart; (heads * d, hidden)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
