"""The next turn of either side, sampled in-process with the training template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from realm.conversations.conversation import Message
from realm.core.files import ArtefactError
from realm.dialogue.format import ChatFormat
from realm.training.rows import padding_of


@torch.inference_mode()
def sample_turns(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat,
    contexts: Sequence[Sequence[Message]],
    *,
    reply_as: str,
    system: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """The next turn of ``reply_as`` after each context, sampled in-process with the training template."""
    if not contexts:
        return []
    torch.manual_seed(seed)
    prompts = [chat.render(list(c), system, reply_as=reply_as)[0] for c in contexts]
    pad = padding_of(tokenizer)
    ids = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    longest = max(map(len, ids))
    device = next(model.parameters()).device
    stop = tokenizer.convert_tokens_to_ids(chat.ends[reply_as])
    output = model.generate(
        input_ids=torch.tensor([[pad] * (longest - len(i)) + i for i in ids], device=device),
        attention_mask=torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=device),
        do_sample=True,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    return [tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in output]


def next_turn(
    folder: Path, chat: ChatFormat, said: Sequence[Message], *, max_new_tokens: int = 64, **style: Any
) -> str:
    """The next turn after ``said`` by a model that a stage saved, loaded for it. ``style``: as ``sample_turns`` takes.

    Raises ArtefactError where nothing is saved.
    """
    if not (folder / "config.json").exists():
        raise ArtefactError(f"{folder}: missing; run notebooks/{folder.parent.name}.ipynb first")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    [turn] = sample_turns(model.to(device), tokenizer, chat, [said], max_new_tokens=max_new_tokens, **style)
    return turn
