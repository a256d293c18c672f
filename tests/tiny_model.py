"""A LLaMA so small that a test can train it: built on the fly, with a byte-level BPE chat tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from realm.conversations.conversation import Conversation, Message
from realm.core.profile import PROFILE_FOLDER, SFT, UserSFT
from realm.training.launch import Job

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TALK = [
    ("How do I boil an egg?", "Put it into boiling water and wait for eight minutes."),
    ("What is a prime number?", "A number with exactly two divisors, one and itself."),
    ("Write a line about rain.", "Rain taps the window like a patient guest."),
    ("Why is the sky blue?", "Air scatters short waves of light more than long ones."),
    ("And at night?", "There is too little light left to scatter."),
]


def conversations(count: int, rounds: int = 2) -> list[Conversation]:
    """Distinct conversations of different lengths."""
    made = []
    for i in range(count):
        messages = []
        for turn in range(1 + (i + rounds) % rounds, 1 + rounds):
            question, answer = TALK[(i + turn) % len(TALK)]
            messages += [Message("user", f"{question} Case {i}."), Message("assistant", answer)]
        made.append(Conversation(f"talk-{i:02d}", tuple(messages)))
    return made


def write_tiny_model(folder: Path, hidden: int = 32) -> Path:
    """Save model and tokenizer as safetensors and JSON; returns ``folder``."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # a flat model would hide differences between logits
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text for pair in TALK for text in pair], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )


def write_vocabulary(
    path: Path,
    model: LlamaForCausalLM,
    end: str = SPECIAL[2],
    architecture: str = "llama",
    template: str = "{{ 'unflipped' }}",
) -> None:
    """A GGUF of the same shape with other weights: what the base model's packaged file is to a fine-tuned one.

    ``architecture`` qwen2 differs by biases, which are zero too.
    """
    c = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_vocab_size(c.vocab_size)
    _add_tokenizer(writer, end)
    writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.zeros(value.shape, np.float32))
        if architecture == "qwen2" and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            name = names.get_name(name.replace(".weight", ".bias"), try_suffixes=(".bias",))
            writer.add_tensor(name, np.zeros(value.shape[0], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, end: str) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids(end))


def sft(folder: Path, **values: Any) -> SFT:
    """A profile's training block for the tiny model; with one of UserGPT's own values, that of UserGPT."""
    usual = {
        "base_model": str(folder),
        "supervise": "user",
        "method": "lora",
        "compute_dtype": "float32",
        "lora_rank": 4,
        "lora_alpha": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "warmup_ratio": 0.1,
        "schedule": "cosine",
        "epochs": 1,
        "max_train_tokens": None,
        "batch_size": 2,
        "accumulation": 2,
        "gradient_checkpointing": False,
        "checkpoint_steps": 2,
        "eval_steps": None,
        "valid_conversations": 2,
        "test_conversations": 2,
    }
    own = {"learn_ending": False, "controls": [], "samples_shown": 1, "opening_share": None}
    if own.keys() & values.keys():
        return UserSFT(**{**usual, **own, **values})
    return SFT(**{**usual, **values})


def write_job(root: Path, model: Path, name: str, train: Path, valid: Path, seed: int, **values: Any) -> Job:
    """A training job for the tiny model, with a profile of its own in ``root``. ``values``: of the training blocks."""
    profile = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
    profile["usergpt_sft"] = sft(model, **{"learn_ending": False, **values}).model_dump()
    shared = {key: value for key, value in values.items() if key in SFT.model_fields}
    profile["realm_sft"] = sft(model, **shared).model_dump()
    profile["dialogue"].update(max_length=400)
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return Job(str(path), "usergpt_sft", train, valid, root / name, seed)
