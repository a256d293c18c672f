"""The laptop's server: llama.cpp with the weights of a merged model.

It keeps each conversation's KV cache, so a round reads only what is new. ``python -m realm.llama_cpp --model FILE
--name NAME --ports N N`` serves the OpenAI protocol on the loopback address, by one server a port; the key comes
from the environment.
"""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realm.provenance import atomic_path

KEY_VARIABLE = "REALM_SERVER_API_KEY"
LEAST_BATCH = 4  # requests at once that make a server of its own worth while


class ConversionError(RuntimeError):
    """A model that cannot be written as GGUF; the message names it and the way out."""


def export_gguf(model_folder: Path, vocabulary: Path | None, target: Path) -> Path:
    """Write a LLaMA-architecture model as GGUF (matrices Q8_0, norms float32) unless ``target`` is newer.

    ``vocabulary`` is a GGUF of the same base model: its tokenizer and hyperparameters are copied, the chat
    template comes from the folder's tokenizer. Raises ConversionError without a vocabulary or for another
    architecture.
    """
    weights = sorted(model_folder.glob("*.safetensors"))
    if not weights:
        raise ConversionError(f"{model_folder}: holds no *.safetensors")
    if target.exists() and target.stat().st_mtime >= max(w.stat().st_mtime for w in weights):
        return target
    if vocabulary is None:
        raise ConversionError(
            f"{model_folder}: engine llama.cpp needs a base model that came as GGUF; "
            "use engine transformers or vllm for this one"
        )
    with atomic_path(target) as temporary:
        _write_gguf(weights, vocabulary, (model_folder / "chat_template.jinja").read_text(encoding="utf-8"), temporary)
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


def _copy_metadata(source, writer) -> None:
    import gguf

    replaced = {"general.architecture", "general.file_type", "tokenizer.chat_template"}
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


@dataclass(frozen=True)
class Division:
    """How an endpoint divides its cores: so many servers, with so many threads and requests at once each."""

    servers: int
    threads: int
    slots: int


def division(concurrency: int, cores: int, share: int) -> Division:
    """For ``cores`` that ``share`` endpoints use at a time.

    A server's threads wait for each other after every operation, and for the one that samples; servers do not wait.
    So there are as many as there are cores, while each has requests enough for a batch. The servers of all endpoints
    together may outnumber the cores: while one endpoint waits for the other's answers, its cores are of use. No more
    slots than requests at once: llama.cpp computes neighbouring slots in one batch, so idle ones between them cost
    speed; a history that loses its slot is kept in memory and comes back.
    """
    servers = max(1, min(cores, concurrency // LEAST_BATCH))
    return Division(servers, max(1, cores // (servers * share)), -(-concurrency // servers))


def serve(model: Path, ports: list[int], name: str, slots: int, context_length: int, threads: int) -> None:
    """Serve until killed, by one server a port; the file's pages are in memory once."""
    servers = [_server(model, port, name, slots, context_length, threads) for port in ports]
    print(f"serving {name} at {', '.join(s.listening_address for s in servers)}", flush=True)
    threading.Event().wait()


def _server(model: Path, port: int, name: str, slots: int, context_length: int, threads: int):
    """Sampling is by top-p and temperature, what the protocol has, and nothing else."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context_length
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.sampling.samplers = "top_p;temperature"
    parameters.ui = False
    if key := os.environ.get(KEY_VARIABLE):
        parameters.api_keys = [key]
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a GGUF model on the loopback address.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ports", type=int, required=True, nargs="+")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    serve(given.model, given.ports, given.name, given.slots, given.context_length, given.threads)
