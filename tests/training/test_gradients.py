"""Gradients are those of the model that is trained, whatever ran before: held against plain float32 weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_model import sft
from transformers import AutoModelForCausalLM, AutoTokenizer

from realm.conversations.readers import read_conversations
from realm.core.profile import load_profile
from realm.dialogue.encoder import encoder_of
from realm.models import assets
from realm.training import base
from realm.training.base import TrainingError, adapter_off, add_adapter, load_base, refuse_without_gradient
from realm.training.likelihood import likelihood
from realm.training.loss import supervised_nll
from realm.training.rows import Rows, collate
from realm.training.trainer import train

LAYERS = 8  # of 30: real weights and real shapes, in a quarter of the time
METHODS = ["qlora", "lora", "full"]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first layers of the real model."""
    source, target = assets.model("smollm2-135m"), tmp_path_factory.mktemp("layers")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, num_hidden_layers=LAYERS)
    assert model.config.hidden_size == 576 and len(model.model.layers) == LAYERS
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def encoder():
    return encoder_of(load_profile("smoke"), "usergpt_sft")


@pytest.fixture(scope="module")
def rows(encoder):
    """Four real conversations of at most 80 tokens, some supervised."""
    real = (c for c in read_conversations(assets.data("sharegpt")) if c.rounds)
    encoded = (row.without_tail() for row in encoder.encode_all(list(itertools.islice(real, 400))) if row.supervised)
    return list(itertools.islice((row for row in encoded if len(row.input_ids) <= 80), 4))


def configuration(folder, method: str, dtype: str):
    return sft(folder, method=method, compute_dtype=dtype, lora_rank=8, lora_alpha=16, learning_rate=1e-4)


def with_adapter(model, config):
    """An adapter that changes something: LoRA's second matrix begins at zero, where half of all gradients are zero."""
    model = add_adapter(model, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model, rows, encoder, config) -> torch.Tensor:
    """Of everything that is trained, in one vector, float32; as the Trainer computes it."""
    model.train()
    model.zero_grad()
    batch = collate([Rows(rows)[i] for i in range(len(rows))], encoder.tokenizer.eos_token_id)
    batch.pop("ids")
    half = config.method == "full" and config.compute_dtype == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        supervised_nll(model, batch)[0].mean().backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0).item()


def in_float32(config):
    """A plain model of the very weights that ``load_base`` rounded."""
    model = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
    rounded = {name: value.float() for name, value in load_base(config).state_dict().items()}
    model.load_state_dict(rounded)
    return model


@pytest.mark.parametrize(("method", "dtype"), list(itertools.product(METHODS, DTYPES)))
def test_an_evaluation_pass_leaves_gradients_as_they_were(folder, encoder, rows, method, dtype):
    if method == "qlora" and base.compute_dtype("auto") != torch.bfloat16:
        pytest.skip("this processor does not compute in bfloat16, so bitsandbytes has no layout of its own for it")
    config = configuration(folder, method, dtype)
    model = with_adapter(load_base(config), config)
    before = gradients(model, rows, encoder, config)
    for _ in range(2):  # adapter on and off, as notebooks 02 and 04 evaluate
        likelihood(model, rows, encoder.tokenizer, "evaluation")
        with adapter_off(model):
            likelihood(model, rows, encoder.tokenizer, "evaluation")
    after = gradients(model, rows, encoder, config)
    assert torch.equal(before, after)
    plain_config = configuration(folder, method, "float32")
    plain = gradients(with_adapter(in_float32(config), plain_config), rows, encoder, plain_config)
    assert cosine(before, plain) >= 0.995
    assert (before.norm() / plain.norm()).item() == pytest.approx(1, abs=0.05)


def packed(monkeypatch, config):
    """The base as bitsandbytes packs it: what load_base gives on a GPU."""
    monkeypatch.setattr(base, "_unpacked", lambda model, dtype: model)
    return with_adapter(load_base(config), config)


@pytest.fixture
def repacks():
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks four-bit weights on CPUs with AVX-512 bfloat16 alone")


@pytest.mark.usefixtures("repacks")
def test_packed_weights_are_not_trained_after_an_evaluation_pass(monkeypatch, folder, encoder, rows, tmp_path):
    config = configuration(folder, "qlora", "bfloat16")
    model = packed(monkeypatch, config)
    refuse_without_gradient(model)  # as loaded, they have one
    likelihood(model, rows, encoder.tokenizer, "evaluation")
    with pytest.raises(TrainingError, match="repacked by a pass in evaluation mode"):
        train(model, encoder.tokenizer, rows, config, tmp_path, seed=1)


@pytest.mark.usefixtures("repacks")
def test_a_dropped_gradient_is_an_error_even_where_nobody_looks(monkeypatch, folder, encoder, rows):
    config = configuration(folder, "qlora", "bfloat16")
    model = packed(monkeypatch, config)
    likelihood(model, rows, encoder.tokenizer, "evaluation")
    with pytest.raises(UserWarning, match="autograd kernel was not registered"):
        gradients(model, rows, encoder, config)


@pytest.mark.usefixtures("repacks")
def test_evaluation_between_steps_leaves_training_as_it_is(folder, encoder, rows, tmp_path):
    quiet = configuration(folder, "qlora", "bfloat16").model_copy(update={"checkpoint_steps": 1, "epochs": 2})
    looked_at = quiet.model_copy(update={"eval_steps": 1})
    logs = [
        train(add_adapter(load_base(c), c, 1), encoder.tokenizer, rows, c, tmp_path / str(i), 1, valid)
        for i, (c, valid) in enumerate([(quiet, []), (looked_at, rows[:2])])
    ]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]]
    assert [r["grad_norm"] for r in logs[0]] == [r["grad_norm"] for r in logs[1]]
