"""What training leaves behind: adapter and merged model, ready to be served."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from realm.core.cards import public_name
from realm.core.files import atomic_folder, read_json, write_json
from realm.core.profile import SFT
from realm.models import assets

TRAINED = "trained"  # where launched processes leave their weights: an adapter, or the whole model


def save_servable(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, config: SFT, folder: str | Path, template: str, end: str
) -> dict[str, Path]:
    """Write ``adapter/`` (PEFT) and ``merged/`` (the unquantized base with the adapter added, bfloat16).

    The tokenizer in both carries ``template``, the chat template that servers render, and stops at ``end``, the token
    that closed the turns that were learned: so do model and generation configuration. A full fine-tune has no adapter.
    ``model`` keeps its precision, and checkpoints stay until ``sweep``: what comes after may fail.
    Returns the folders written.
    """
    folder = Path(folder)
    written: dict[str, Path] = {}
    if isinstance(model, PeftModel):
        written["adapter"] = folder / "adapter"
        with atomic_folder(written["adapter"]) as workspace:
            _save(model, tokenizer, template, end, workspace)
            _name_base(workspace, config.base_model)
        base = AutoModelForCausalLM.from_pretrained(
            assets.model(config.base_model), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        merged = PeftModel.from_pretrained(base, written["adapter"]).merge_and_unload().to(torch.bfloat16)
    else:
        merged = _in_half(model)
    written["merged"] = folder / "merged"
    with atomic_folder(written["merged"]) as workspace:
        _save(merged, tokenizer, template, end, workspace)
    # Servers need to know whose vocabulary this is.
    (folder / "base_model.txt").write_text(config.base_model + "\n", encoding="utf-8")
    return written


def sweep(folder: str | Path) -> None:
    """Remove what launched processes left, which is in adapter and merged model by now, its controls' and students'
    too.

    Checkpoints stay: the same training goes on from its last one, and repeats nothing.
    """
    for place in (Path(folder), *Path(folder).glob("control_*"), *Path(folder).glob("student_*")):
        shutil.rmtree(place / TRAINED, ignore_errors=True)


def _in_half(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in bfloat16, in the computer's memory."""
    with torch.device("meta"):
        copied = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    halves = {name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}
    copied.load_state_dict(halves, assign=True)
    copied.tie_weights()
    copied.generation_config = model.generation_config
    return copied


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, template: str, end: str, folder: Path) -> None:
    served = copy.deepcopy(tokenizer)
    served.chat_template, served.eos_token = template, end
    model.config.eos_token_id = model.generation_config.eos_token_id = served.eos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    # A PEFT model writes its adapter alone; whoever loads base and adapter finds here where to stop.
    model.generation_config.save_pretrained(folder)
    served.save_pretrained(folder)


def _name_base(folder: Path, base_model: str) -> None:
    """peft notes from where the base was loaded: a path of this machine, where its name would serve anywhere.

    The README.md that peft adds holds the path too, and nothing that ``models.model_card`` does not say better.
    """
    path = folder / "adapter_config.json"
    write_json(path, {**read_json(path), "base_model_name_or_path": public_name(base_model)})
    (folder / "README.md").unlink(missing_ok=True)
