import copy
import gc
import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_model import SPECIAL, conversations, sft, write_tiny_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from realm.conversations.conversation import PLACE, Conversation, Message
from realm.core.stopping import STOP_VARIABLE, Stopped
from realm.dialogue.encoder import IGNORED, Encoder
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT, USER_SYSTEM_PROMPT, chat_format, load_tokenizer
from realm.evaluation.perplexity import perplexity_of
from realm.training import base as base_room
from realm.training import likelihood as likelihood_room
from realm.training import trainer
from realm.training.artefacts import TRAINED, save_servable, sweep
from realm.training.base import TrainingError, adapter_off, add_adapter, compute_dtype, load_base
from realm.training.likelihood import Likelihood, likelihood
from realm.training.loss import supervised_nll
from realm.training.rows import collate, padding_of, require_fit, select_rows
from realm.training.sampling import sample_turns
from realm.training.trainer import train

END = SPECIAL[2]


@pytest.fixture(scope="module", autouse=True)
def light_collections():
    # The Trainer collects garbage at its end; with all libraries in memory that takes longer than training.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def chat(tokenizer):
    return chat_format("chatml", tokenizer)


@pytest.fixture(scope="module")
def rows(tokenizer, chat):
    encoder = Encoder(tokenizer, chat, "user", 400)
    return [r.without_tail() for r in encoder.encode_all(conversations(12))]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Sums in one order: runs that should agree then agree to the last bit, those of this module's fixtures too.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh_model(config, seed=0):
    return add_adapter(load_base(config), config, seed)


def stirred(model, seed=1):
    """An adapter starts as zero; give it something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def batch_of(rows, tokenizer):
    features = [{"input_ids": r.input_ids, "labels": r.labels, "id": r.id} for r in rows]
    batch = collate(features, tokenizer.pad_token_id)
    batch.pop("ids")
    return batch


def plain_loss(model, batch):
    """Logits of every token, padding masked, the way of any textbook."""
    # Each row here ends with a supervised token, so what stands after its last one is padding.
    real = (batch["labels"] != IGNORED).flip(1).cumsum(1).flip(1) > 0
    logits = model(input_ids=batch["input_ids"], attention_mask=real.long()).logits
    targets = batch["labels"][:, 1:].reshape(-1)
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def perplexity(found):
    return float(perplexity_of(found.nll, found.tokens))


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_gradients_equal_the_plain_way(folder, tokenizer, rows, method):
    model = stirred(fresh_model(sft(folder, method=method)))
    batch = batch_of(rows[:5], tokenizer)
    nll, owner = supervised_nll(model, batch)
    assert len(nll) == sum(r.supervised for r in rows[:5])
    assert owner.bincount().tolist() == [r.supervised for r in rows[:5]]
    plain = plain_loss(model, batch)
    assert nll.sum().item() == pytest.approx(plain.item(), rel=1e-4)
    ours, theirs = gradients(model, nll.sum()), gradients(model, plain_loss(model, batch))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["user", "assistant", "both"])
def test_without_tail_leaves_the_loss_as_it_is(folder, tokenizer, chat, side):
    model = stirred(fresh_model(sft(folder)))
    whole = list(Encoder(tokenizer, chat, side, 400).encode_all(conversations(6)))
    short = [r.without_tail() for r in whole]
    assert sum(len(r.input_ids) for r in short) < sum(len(r.input_ids) for r in whole)
    with torch.no_grad():
        long_loss = supervised_nll(model, batch_of(whole, tokenizer))[0].sum()
        short_loss = supervised_nll(model, batch_of(short, tokenizer))[0].sum()
    assert short_loss.item() == pytest.approx(long_loss.item(), rel=1e-5)


def test_padding_does_not_change_the_loss_of_a_row(folder, tokenizer, rows):
    model = stirred(fresh_model(sft(folder)))
    with torch.no_grad():
        together, owner = supervised_nll(model, batch_of(rows[:4], tokenizer))
        alone = [supervised_nll(model, batch_of([r], tokenizer))[0].sum().item() for r in rows[:4]]
    sums = [together[owner == i].sum().item() for i in range(4)]
    assert sums == pytest.approx(alone, rel=1e-4)


# ---------------------------------------------------------------- rows


def test_select_rows_stops_at_the_budget_and_counts(tokenizer, chat):
    talk = conversations(40)
    encoder = Encoder(tokenizer, chat, "user", 400)
    chosen = select_rows(talk, encoder, 1_000, seed=3)
    longest = max(len(r.input_ids) for r in chosen.rows)
    assert 1_000 <= chosen.tokens < 1_000 + longest
    assert chosen.tokens == sum(len(r.input_ids) for r in chosen.rows)
    assert chosen.supervised == sum(r.supervised for r in chosen.rows) > 0
    assert len(chosen.rows) + chosen.over_budget + chosen.nothing_supervised == 40
    assert chosen.over_budget > 0
    assert all(r.labels[-1] != IGNORED for r in chosen.rows)  # tails are cut


def test_select_rows_without_a_budget_takes_all(tokenizer, chat):
    chosen = select_rows(conversations(9), Encoder(tokenizer, chat, "user", 400), None, seed=0)
    assert (len(chosen.rows), chosen.over_budget, chosen.nothing_supervised) == (9, 0, 0)


def test_select_rows_depends_on_the_seed_alone(tokenizer, chat):
    encoder = Encoder(tokenizer, chat, "user", 400)
    order = lambda seed: [r.id for r in select_rows(conversations(20), encoder, None, seed).rows]  # noqa: E731
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_select_rows_drops_and_counts_what_has_no_supervised_token(tokenizer, chat):
    mute = Conversation("mute", (Message("assistant", "Nobody asked."),))
    chosen = select_rows([*conversations(3), mute], Encoder(tokenizer, chat, "user", 400), None, seed=0)
    assert chosen.nothing_supervised == 1
    assert "mute" not in [r.id for r in chosen.rows]


def test_select_rows_refuses_when_nothing_is_supervised(tokenizer, chat):
    mute = [Conversation(f"m{i}", (Message("assistant", "Nobody asked."),)) for i in range(3)]
    with pytest.raises(TrainingError, match=r"none of 3 conversations.*supervise: user"):
        select_rows(mute, Encoder(tokenizer, chat, "user", 400), None, seed=0)


def test_select_rows_refuses_when_the_limit_cuts_every_target(tokenizer, chat):
    with pytest.raises(TrainingError, match="max_length 8 too small"):
        select_rows(conversations(3), Encoder(tokenizer, chat, "user", 8), None, seed=0)


def opened(count: int, inside: int):
    """Conversations that open their session, and others from within one."""
    made = conversations(count + inside)
    return [replace(c, id=f"{c.id}/1", meta={PLACE: 2}) if i >= count else c for i, c in enumerate(made)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_budget_is_shared_between_openings_and_follow_ups(tokenizer, chat, share):
    encoder = Encoder(tokenizer, chat, "user", 400)
    chosen = select_rows(opened(60, 60), encoder, 4_000, 1, share)
    opens = sum(len(r.input_ids) for r in chosen.rows if "/" not in r.id)
    longest = max(len(r.input_ids) for r in chosen.rows)
    assert abs(opens - share * 4_000) <= longest
    assert abs(chosen.tokens - 4_000) <= 2 * longest
    assert chosen.over_budget == 120 - len(chosen.rows)


def test_openings_alone_are_the_same_tokens_and_more_of_them(tokenizer, chat):
    encoder = Encoder(tokenizer, chat, "user", 400)
    whole, alone = (select_rows(opened(60, 60), encoder, 4_000, 1, 1.0, rows).rows for rows in ("segment", "turn"))
    assert len(alone) > len(whole)
    for short, long in zip(alone, whole, strict=False):
        kept = len(short.input_ids)
        assert short.id == long.id and short.supervised > 0
        assert (short.input_ids == long.input_ids[:kept]).all() and (short.labels == long.labels[:kept]).all()
        # The whole first turn, its end token with it, and nothing after that.
        assert short.labels[-1] != IGNORED and (long.labels[kept : kept + 1] == IGNORED).all()
        assert np.flatnonzero(np.diff(short.labels != IGNORED)).size == 1
    assert any(len(short.input_ids) < len(long.input_ids) for short, long in zip(alone, whole, strict=False))


def test_without_a_share_rows_come_as_they_do(tokenizer, chat):
    encoder = Encoder(tokenizer, chat, "user", 400)
    mixed = opened(60, 60)
    usual = [r.id for r in select_rows(mixed, encoder, 2_000, 1).rows]
    assert any("/" in i for i in usual) and any("/" not in i for i in usual)


def test_a_token_beyond_the_embeddings_is_named_before_training(folder, tokenizer, rows, tmp_path):
    config = sft(folder)
    foreign = replace(rows[0], id="odd", input_ids=np.array([1, 5, 384, 7], dtype=np.int32), labels=rows[0].labels[:4])
    for use in (
        lambda m: train(m, tokenizer, [*rows, foreign], config, tmp_path, 1),
        lambda m: likelihood(m, [replace(foreign, labels=foreign.input_ids)], tokenizer, "test"),
    ):
        with pytest.raises(TrainingError, match="odd: token 384, but the model has embeddings of 384"):
            use(fresh_model(config))


def test_a_row_longer_than_the_model_is_named(folder, rows):
    ids = np.ones(513, dtype=np.int32)
    with pytest.raises(
        TrainingError, match=r"long: 513 tokens for a model of 512 positions; lower dialogue.max_length"
    ):
        require_fit(load_base(sft(folder)), [replace(rows[0], id="long", input_ids=ids, labels=ids)])


def test_a_padding_token_of_id_0_is_one(tokenizer):
    assert tokenizer.pad_token_id == 0 == padding_of(tokenizer)
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    assert padding_of(bare) == 0
    bare.pad_token = None
    with pytest.raises(TrainingError, match="neither a padding token nor an end token"):
        padding_of(bare)


# ---------------------------------------------------------------- training


def test_training_lowers_the_loss(folder, tokenizer, rows, tmp_path):
    config = sft(folder, epochs=5)
    model = fresh_model(config)
    before = perplexity(likelihood(model, rows, tokenizer, "before"))
    log = train(model, tokenizer, rows, config, tmp_path, seed=1)
    after = perplexity(likelihood(model, rows, tokenizer, "after"))
    assert after < 0.8 * before
    assert [r["step"] for r in log] == list(range(1, 16))  # 12 rows, 4 a step, 5 epochs
    assert {"loss", "learning_rate", "grad_norm"} <= log[0].keys()
    written = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in written if "loss" in r] == [r["loss"] for r in log]


def test_the_logged_loss_is_a_mean_over_supervised_tokens(folder, tokenizer, rows, tmp_path):
    config = sft(folder, batch_size=3, accumulation=4)
    model = fresh_model(config)
    expected = likelihood(model, rows, tokenizer, "before")
    log = train(model, tokenizer, rows, config, tmp_path, seed=1)
    assert len(log) == 1
    assert log[0]["loss"] == pytest.approx(expected.nll.sum() / expected.tokens.sum(), rel=1e-3)


def test_gradient_checkpointing_trains_the_same_adapter(folder, tokenizer, rows, tmp_path):
    trained = []
    for name, checkpointing in (("without", False), ("with", True)):
        config = sft(folder, gradient_checkpointing=checkpointing)
        model = fresh_model(config)
        train(model, tokenizer, rows[:8], config, tmp_path / name, seed=1)
        assert model.is_gradient_checkpointing == checkpointing
        trained.append(weights(model))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-4, atol=1e-5)


class PowerCut(Exception):
    pass


def interrupted(monkeypatch, config, tokenizer, rows, folder, at_step, seed=1, valid=()):
    """Train until ``at_step`` and no further."""
    original = trainer._Progress.on_log

    def on_log(self, args, state, control, logs=None, **kwargs):
        original(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == at_step:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Progress, "on_log", on_log)
        with pytest.raises(PowerCut):
            train(fresh_model(config), tokenizer, rows, config, folder, seed, valid)


def count_batches(monkeypatch):
    calls = []
    original = supervised_nll
    monkeypatch.setattr(trainer, "supervised_nll", lambda *a: calls.append(1) or original(*a))
    return calls


@pytest.fixture(scope="module")
def uninterrupted(folder, tokenizer, rows, tmp_path_factory):
    """Configuration, final adapter and log of a run: 3 steps an epoch, 2 batches a step, a checkpoint every 2 steps."""
    config = sft(folder, epochs=2)
    model = fresh_model(config)
    log = train(model, tokenizer, rows, config, tmp_path_factory.mktemp("whole"), seed=1)
    return config, weights(model), log


@pytest.mark.parametrize("at_step", [3, 5])
def test_a_resumed_run_ends_with_the_same_adapter(uninterrupted, tokenizer, rows, tmp_path, monkeypatch, at_step):
    config, whole, log = uninterrupted
    interrupted(monkeypatch, config, tokenizer, rows, tmp_path / "cut", at_step)
    calls = count_batches(monkeypatch)
    resumed = fresh_model(config)
    resumed_log = train(resumed, tokenizer, rows, config, tmp_path / "cut", seed=1)
    assert len(calls) == 2 * (6 - (at_step - 1))  # from the last checkpoint on, not from the first step
    assert [r["step"] for r in resumed_log] == [r["step"] for r in log] == [1, 2, 3, 4, 5, 6]
    for name, value in whole.items():
        torch.testing.assert_close(dict(resumed.named_parameters())[name], value, rtol=0, atol=1e-6)


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_and_goes_on_there(
    uninterrupted, tokenizer, rows, tmp_path, monkeypatch
):
    config, whole, _ = uninterrupted
    wish = tmp_path / "stop"
    monkeypatch.setenv(STOP_VARIABLE, str(wish))
    steps = count_batches(monkeypatch)
    # In the third step; a checkpoint is due every second.
    monkeypatch.setattr(trainer, "refuse_without_gradient", lambda *_: len(steps) == 5 and wish.touch())
    with pytest.raises(
        Stopped, match="asked to stop: a checkpoint is written at step 3 of 6; run again to go on there"
    ):
        train(fresh_model(config), tokenizer, rows, config, tmp_path / "cut", seed=1)
    assert len(steps) == 6
    wish.unlink()
    resumed = fresh_model(config)
    train(resumed, tokenizer, rows, config, tmp_path / "cut", seed=1)
    assert len(steps) == 12  # nothing twice
    for name, value in whole.items():
        torch.testing.assert_close(dict(resumed.named_parameters())[name], value, rtol=0, atol=1e-6)


def without_keywords(model):
    """A forward that takes what it names and nothing else, as those of models from elsewhere do."""
    forward = model.forward

    def bare(
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.forward = bare


def refusing(model):
    """As the class of Gemma 3n says of itself."""
    model.accepts_loss_kwargs = False


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("unlike", [without_keywords, refusing])
def test_a_model_that_takes_no_count_of_tokens_trains_alike(folder, tokenizer, rows, tmp_path, method, unlike):
    config = sft(folder, method=method, accumulation=3)
    logs, ends = [], []
    for name in ("usual", "unlike"):
        base = load_base(config)
        if name == "unlike":
            unlike(base)
        model = add_adapter(base, config, 0)
        logs.append([r["loss"] for r in train(model, tokenizer, rows, config, tmp_path / name, seed=1)])
        ends.append(weights(model))
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6)


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(folder, tokenizer, rows, tmp_path, monkeypatch):
    seen = []
    original = collate
    monkeypatch.setattr(trainer, "collate", lambda f, pad: seen.extend(r["id"] for r in f) or original(f, pad))
    config = sft(folder, epochs=2)
    train(fresh_model(config), tokenizer, rows, config, tmp_path, seed=1)
    first, second = seen[: len(rows)], seen[len(rows) :]
    assert sorted(first) == sorted(second) == sorted(r.id for r in rows)
    assert first != second


def test_batches_hold_rows_of_like_length_and_come_in_no_order_of_length():
    lengths = [10 * (i % 40 + 1) for i in range(201)]  # 201: the last batch is short
    sampler = trainer._LengthGrouped(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(201)) and order == list(sampler)
    batches = [[lengths[i] for i in order[k : k + 4]] for k in range(0, 201, 4)]
    assert np.median([max(b) - min(b) for b in batches]) <= 20
    longest = [max(b) for b in batches]
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.5


@pytest.mark.parametrize("change", [{"learning_rate": 5e-3}, {"supervise": "assistant"}])
def test_checkpoints_of_another_configuration_are_not_resumed(folder, tokenizer, rows, tmp_path, monkeypatch, change):
    first, second = sft(folder), sft(folder, **change)
    stage = tmp_path / "02_usergpt_sft"
    interrupted(monkeypatch, first, tokenizer, rows, stage, at_step=3)
    [left] = (stage / "checkpoints").glob("checkpoint-*")
    before = {p.name: p.read_bytes() for p in left.iterdir()}
    calls = count_batches(monkeypatch)
    train(fresh_model(second), tokenizer, rows, second, stage, seed=1)
    assert len(calls) == 6  # 12 rows in batches of 2: from the first
    [kept] = tmp_path.glob("set_aside/*-02_usergpt_sft/checkpoints/checkpoint-*")
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before


@pytest.mark.parametrize("values", [{}, {"test_conversations": 9}])
def test_a_training_that_was_finished_is_not_done_again(folder, tokenizer, rows, tmp_path, monkeypatch, values):
    first, config = fresh_model(sft(folder)), sft(folder, **values)
    log = train(first, tokenizer, rows, sft(folder), tmp_path / "02_usergpt_sft", seed=1)
    calls = count_batches(monkeypatch)
    again = fresh_model(config)
    assert train(again, tokenizer, rows, config, tmp_path / "02_usergpt_sft", seed=1) == log
    assert calls == []
    assert all(torch.equal(v, dict(again.named_parameters())[n]) for n, v in first.named_parameters())


def test_checkpoints_of_another_seed_are_not_resumed(folder, tokenizer, rows, tmp_path, monkeypatch):
    interrupted(monkeypatch, sft(folder), tokenizer, rows, tmp_path, at_step=3, seed=1)
    calls = count_batches(monkeypatch)
    train(fresh_model(sft(folder)), tokenizer, rows, sft(folder), tmp_path, seed=2)
    assert len(calls) == 6


def test_checkpoints_of_other_rows_are_not_resumed(folder, tokenizer, chat, rows, tmp_path, monkeypatch):
    interrupted(monkeypatch, sft(folder), tokenizer, rows, tmp_path, at_step=3)
    others = list(Encoder(tokenizer, chat, "user", 400).encode_all(conversations(30)[18:]))
    assert len(others) == len(rows)
    calls = count_batches(monkeypatch)
    train(fresh_model(sft(folder)), tokenizer, others, sft(folder), tmp_path, seed=1)
    assert len(calls) == 6


def test_a_half_written_checkpoint_does_not_stop_the_next_run(folder, tokenizer, rows, tmp_path, monkeypatch):
    interrupted(monkeypatch, sft(folder), tokenizer, rows, tmp_path, at_step=3)
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir()  # the power went while it was being written
    model = fresh_model(sft(folder))
    log = train(model, tokenizer, rows, sft(folder), tmp_path, seed=1)
    assert log[-1]["step"] == 3


def test_a_loss_that_is_no_number_names_its_conversations(folder, tokenizer, rows, tmp_path):
    model = fresh_model(sft(folder))
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 on talk-\d\d, talk-\d\d"):
        train(model, tokenizer, rows, sft(folder), tmp_path, seed=1)


# ---------------------------------------------------------------- validation


@pytest.fixture(scope="module")
def valid(tokenizer, chat):
    return list(Encoder(tokenizer, chat, "user", 400).encode_all(conversations(40)[36:]))


def evaluations(folder):
    lines = (folder / "train_log.jsonl").read_text().splitlines()
    return {r["step"]: r["eval_loss"] for r in map(json.loads, lines) if "eval_loss" in r}


def mean_loss(model, rows, tokenizer):
    found = likelihood(model, rows, tokenizer, "by hand")
    return found.nll.sum() / found.tokens.sum()


# Steps this long learn at first and then destroy what they learned.
WILD = {"epochs": 3, "learning_rate": 0.1, "schedule": "constant", "eval_steps": 2, "checkpoint_steps": 4}


@pytest.fixture(scope="module")
def wild(folder, tokenizer, rows, valid, tmp_path_factory):
    config, out = sft(folder, **WILD), tmp_path_factory.mktemp("wild")
    model = fresh_model(config)
    log = train(model, tokenizer, rows, config, out, 1, valid)
    return model, log, out


def test_the_validation_loss_is_logged_as_often_as_asked_and_at_the_end(wild):
    _, log, out = wild
    assert list(evaluations(out)) == [2, 4, 6, 8, 9]
    assert [r["step"] for r in log] == list(range(1, 10))


def test_training_ends_with_the_best_adapter(wild, tokenizer, valid):
    model, _, out = wild
    losses = evaluations(out)
    best = min(losses.values())
    assert losses[9] > best * 1.05  # or this test would show nothing
    assert mean_loss(model, valid, tokenizer) == pytest.approx(best, rel=1e-5)


def test_training_that_keeps_the_last_step_ends_there_though_an_earlier_one_was_better(
    wild, folder, tokenizer, rows, valid, tmp_path
):
    config = sft(folder, **WILD, keep="last")
    model = fresh_model(config)
    train(model, tokenizer, rows, config, tmp_path, 1, valid)
    losses = evaluations(tmp_path)
    assert losses == pytest.approx(evaluations(wild[2]), rel=1e-5)
    assert min(losses.values()) * 1.05 < losses[9]
    assert mean_loss(model, valid, tokenizer) == pytest.approx(losses[9], rel=1e-5)


@pytest.mark.parametrize("at_step", [3, 5, 9])
def test_a_resumed_run_finds_the_same_best_adapter(
    wild, folder, tokenizer, rows, valid, tmp_path, monkeypatch, at_step
):
    whole, _, out = wild
    config = sft(folder, **WILD)
    interrupted(monkeypatch, config, tokenizer, rows, tmp_path, at_step, valid=valid)
    model = fresh_model(config)
    train(model, tokenizer, rows, config, tmp_path, 1, valid)
    assert evaluations(tmp_path) == pytest.approx(evaluations(out), rel=1e-6)
    for name, value in whole.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], value, rtol=0, atol=1e-6)


def test_a_full_fine_tune_ends_with_the_best_weights_too(folder, tokenizer, rows, valid, tmp_path):
    config = sft(folder, **{**WILD, "method": "full"})
    model = fresh_model(config)
    train(model, tokenizer, rows, config, tmp_path, 1, valid)
    assert mean_loss(model, valid, tokenizer) == pytest.approx(min(evaluations(tmp_path).values()), rel=1e-5)


def test_evaluations_without_rows_are_refused(folder, tokenizer, rows, tmp_path):
    config = sft(folder, eval_steps=2)
    with pytest.raises(TrainingError, match="eval_steps is set, but there are no validation rows"):
        train(fresh_model(config), tokenizer, rows, config, tmp_path, seed=1)


def test_a_validation_loss_that_is_no_number_stops_the_run(folder, tokenizer, rows, valid, tmp_path, monkeypatch):
    config = sft(folder, eval_steps=2)
    nothing = Likelihood(["talk"], np.array([np.nan]), np.array([1]))
    monkeypatch.setattr(trainer, "likelihood", lambda *a: nothing)
    with pytest.raises(TrainingError, match="the validation loss is nan at step 2"):
        train(fresh_model(config), tokenizer, rows, config, tmp_path, 1, valid)


def test_a_full_fine_tune_moves_every_weight(folder, tokenizer, rows, tmp_path):
    config = sft(folder, method="full")
    model = fresh_model(config)
    before = weights(model)
    train(model, tokenizer, rows[:8], config, tmp_path, seed=1)
    assert all(p.requires_grad for p in model.parameters())
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


# ---------------------------------------------------------------- perplexity


def nll_by_hand(model, row):
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return -sum(chances[i - 1, t].item() for i, t in enumerate(row.labels.tolist()) if t != IGNORED)


def test_likelihood_equals_a_computation_by_hand(folder, tokenizer, rows):
    model = stirred(fresh_model(sft(folder))).eval()
    found = likelihood(model, rows, tokenizer, "test")
    by_hand = [nll_by_hand(model, r) for r in rows]
    assert found.ids == [r.id for r in rows]
    assert found.nll == pytest.approx(by_hand, rel=1e-5)
    assert found.tokens.tolist() == [r.supervised for r in rows]
    assert perplexity(found) == pytest.approx(math.exp(sum(by_hand) / sum(r.supervised for r in rows)), rel=1e-5)


def test_likelihood_does_not_depend_on_batches_or_order(folder, tokenizer, rows, monkeypatch):
    model = stirred(fresh_model(sft(folder)))
    usual = likelihood(model, rows, tokenizer, "usual")
    backwards = likelihood(model, rows[::-1], tokenizer, "backwards")
    monkeypatch.setattr(likelihood_room, "EVAL_BATCH_TOKENS", 150)
    small = likelihood(model, rows, tokenizer, "small batches")
    assert backwards.ids == usual.ids[::-1]
    assert backwards.nll[::-1] == pytest.approx(usual.nll, rel=1e-5)
    assert small.nll == pytest.approx(usual.nll, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_batches_that_cores_score_side_by_side_are_those_of_one_core(folder, tokenizer, rows, monkeypatch, training):
    """And the model, its hooks and the number of threads are as before, also where a batch fails."""
    model = stirred(fresh_model(sft(folder))).train(training)
    monkeypatch.setattr(likelihood_room, "EVAL_BATCH_TOKENS", 60)
    alone = likelihood(model, rows, tokenizer, "one core")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    at_once, most = [], []

    def seen(*arguments):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.01)
        try:
            return nll_of_rows(*arguments)
        finally:
            at_once.pop()

    nll_of_rows = likelihood_room._nll_of_rows
    monkeypatch.setattr(likelihood_room, "_nll_of_rows", seen)
    together = likelihood(model, rows, tokenizer, "three cores")
    assert max(most) == 3 and together.nll.tolist() == alone.nll.tolist()
    monkeypatch.setattr(likelihood_room, "_nll_of_rows", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        likelihood(model, rows, tokenizer, "fails")
    monkeypatch.undo()
    assert model.training is training and not model.get_output_embeddings()._forward_pre_hooks
    torch.set_num_threads(1)


def test_processes_that_share_a_model_score_in_their_own_thread(folder, tokenizer, rows, monkeypatch):
    """Else each would ask the others for the model's parts in an order of its own, and a GPU belongs to a thread."""
    model, at_work = fresh_model(sft(folder)), set()
    nll_of_rows = likelihood_room._nll_of_rows
    seen = lambda *arguments: at_work.add(threading.get_ident()) or nll_of_rows(*arguments)  # noqa: E731
    monkeypatch.setattr(likelihood_room, "_nll_of_rows", seen)
    monkeypatch.setattr(likelihood_room, "sharded", lambda: True, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    likelihood(model, rows, tokenizer, "shared")
    assert at_work == {threading.get_ident()}


def test_likelihood_leaves_out_rows_without_supervision_and_refuses_none(folder, tokenizer, rows):
    model = fresh_model(sft(folder))
    mute = replace(rows[0], id="mute", labels=np.full_like(rows[0].labels, IGNORED))
    assert likelihood(model, [rows[0], mute], tokenizer, "test").ids == [rows[0].id]
    with pytest.raises(TrainingError, match="no held-out conversation"):
        likelihood(model, [mute], tokenizer, "test")


def test_adapter_off_gives_the_base_models_numbers(folder, tokenizer, rows):
    config = sft(folder)
    base = likelihood(load_base(config), rows, tokenizer, "base")
    model = stirred(fresh_model(config))
    with adapter_off(model):
        off = likelihood(model, rows, tokenizer, "off")
    on = likelihood(model, rows, tokenizer, "on")
    assert off.nll == pytest.approx(base.nll, rel=1e-6)
    assert np.abs(on.nll - base.nll).max() > 1


# ---------------------------------------------------------------- sampling


def test_sampled_turns_repeat_with_the_seed_and_hold_no_control_tokens(folder, tokenizer, chat):
    model = fresh_model(sft(folder))
    contexts = [(), conversations(1)[0].messages[:2]]
    sample = lambda seed: sample_turns(  # noqa: E731
        model,
        tokenizer,
        chat,
        contexts,
        reply_as="user",
        system=USER_SYSTEM_PROMPT,
        max_new_tokens=12,
        temperature=1.0,
        seed=seed,
    )
    first = sample(1)
    assert len(first) == 2
    assert first == sample(1) != sample(2)
    assert not any(token in text for text in first for token in SPECIAL)


# ---------------------------------------------------------------- artefacts


@pytest.fixture(scope="module")
def served(folder, tokenizer, chat, tmp_path_factory):
    config = sft(folder)
    model = stirred(fresh_model(config)).eval()
    out = tmp_path_factory.mktemp("served")
    text = chat.jinja(USER_SYSTEM_PROMPT, flipped=True)
    return model, save_servable(model, tokenizer, config, out, text, END), out


def test_save_servable_writes_adapter_and_merged_as_safetensors(served, folder):
    _, written, out = served
    assert written == {"adapter": out / "adapter", "merged": out / "merged"}
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert (out / "merged" / "model.safetensors").exists()
    pickled = [p.name for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert pickled == []
    assert not list(out.glob(".*")) and not (out / "checkpoints").exists()
    assert (out / "base_model.txt").read_text().strip() == str(folder)


def test_what_is_served_names_the_base_and_no_folder_of_this_machine(served, folder):
    _, written, _ = served
    texts = [p.read_text() for place in written.values() for p in place.iterdir() if p.suffix != ".safetensors"]
    assert [t for t in texts if str(folder.parent) in t] == []
    assert (
        json.loads((written["adapter"] / "adapter_config.json").read_text())["base_model_name_or_path"] == folder.name
    )


def test_both_tokenizers_carry_the_flipped_template(served, tokenizer, chat):
    _, written, _ = served
    for place in written.values():
        loaded = AutoTokenizer.from_pretrained(place)
        asked = [{"role": "system", "content": "S"}, {"role": "assistant", "content": "Q"}]
        text = loaded.apply_chat_template([*asked, {"role": "user", "content": "A"}], tokenize=False)
        said = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A")]
        assert text == chat.render(said, None)[0]
    assert tokenizer.chat_template is None  # the caller's tokenizer stays as it was


def test_merged_weights_answer_like_the_adapter(served, rows):
    model, written, _ = served
    merged = AutoModelForCausalLM.from_pretrained(written["merged"], dtype=torch.float32)
    stored = AutoModelForCausalLM.from_pretrained(written["merged"]).dtype
    assert stored == torch.bfloat16
    ids = torch.from_numpy(rows[0].input_ids.astype(np.int64))[None]
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with adapter_off(model):
            base = model(input_ids=ids).logits
        difference = (merged(input_ids=ids).logits - adapted).abs().max()
    assert difference < 0.03 * adapted.abs().max()
    assert (adapted - base).abs().max() > 5 * difference


def test_what_is_served_stops_where_training_taught_it(folder, tokenizer, chat, tmp_path):
    other_end = copy.deepcopy(tokenizer)
    other_end.eos_token = SPECIAL[0]  # the base's end of text is not the template's end of turn
    model = stirred(fresh_model(sft(folder)))
    written = save_servable(model, other_end, sft(folder), tmp_path, chat.jinja("S", flipped=True), chat.ends["user"])
    end = tokenizer.convert_tokens_to_ids(SPECIAL[2])
    for place in written.values():
        assert AutoTokenizer.from_pretrained(place).eos_token_id == end
        assert GenerationConfig.from_pretrained(place).eos_token_id == end
    assert AutoConfig.from_pretrained(written["merged"]).eos_token_id == end
    assert other_end.eos_token == SPECIAL[0]  # the caller's stays as it was


def test_a_full_fine_tune_is_saved_without_an_adapter(folder, tokenizer, chat, tmp_path):
    config = sft(folder, method="full", supervise="assistant")
    model = fresh_model(config)
    text = chat.jinja(ASSISTANT_SYSTEM_PROMPT, flipped=False)
    written = save_servable(model, tokenizer, config, tmp_path, text, END)
    assert list(written) == ["merged"]
    assert not (tmp_path / "adapter").exists()


def test_a_full_fine_tune_keeps_its_precision_when_it_is_saved(folder, tokenizer, tmp_path):
    config = sft(folder, method="full")
    model = fresh_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    written = save_servable(model, tokenizer, config, tmp_path, "{{ messages }}", END)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == torch.float32 for name, value in before.items())
    assert json.loads((written["merged"] / "config.json").read_text())["dtype"] == "bfloat16"
    merged = AutoModelForCausalLM.from_pretrained(written["merged"])
    for name, value in merged.state_dict().items():
        assert torch.equal(value, before[name].to(torch.bfloat16)), name


def test_what_an_unfinished_stage_needs_stays_until_it_is_done(folder, tokenizer, rows, valid, tmp_path, monkeypatch):
    config = sft(folder, **WILD)
    model = fresh_model(config)
    log = train(model, tokenizer, rows, config, tmp_path, 1, valid)
    save_servable(model, tokenizer, config, tmp_path, "{{ messages }}", END)
    # What came next failed: the stage is run again.
    calls = count_batches(monkeypatch)
    again = fresh_model(config)
    assert train(again, tokenizer, rows, config, tmp_path, 1, valid) == log
    assert calls == []
    for name, value in weights(model).items():
        assert torch.equal(weights(again)[name], value)
    (tmp_path / "control_both" / "checkpoints").mkdir(parents=True)
    (tmp_path / "control_both" / TRAINED).mkdir()
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("adapter", "merged", "base_model.txt", "train_log.jsonl", "control_both", "checkpoints")
    }
    assert [p.name for p in (tmp_path / "control_both").iterdir()] == ["checkpoints"]  # they took hours


def test_saving_again_replaces_what_was_there(served, tokenizer, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")
    model, _, _ = served
    config = sft(model.peft_config["default"].base_model_name_or_path)
    save_servable(model, tokenizer, config, tmp_path, "{{ messages }}", END)
    assert not (tmp_path / "adapter" / "old.txt").exists()


# ---------------------------------------------------------------- four bits


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("wide"), hidden=64)


def test_qlora_rounds_to_nf4_and_unpacks_on_a_cpu(wide_folder, monkeypatch):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    config = sft(wide_folder, method="qlora")
    unpacked = load_base(config)
    assert not any(isinstance(m, Linear4bit) for m in unpacked.modules())
    monkeypatch.setattr(base_room, "_unpacked", lambda model, dtype: model)
    layers = {name: m for name, m in load_base(config).named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 14  # seven linear layers in each of two blocks; the head stays as it is
    assert {m.weight.quant_type for m in layers.values()} == {"nf4"}
    assert all(m.weight.dtype == torch.uint8 and m.weight.quant_state.nested for m in layers.values())
    for name, packed in layers.items():
        plain = unpacked.get_submodule(name)
        assert torch.equal(plain.weight, dequantize_4bit(packed.weight.data, packed.weight.quant_state)), name


def test_qlora_trains_the_adapter_alone(wide_folder, tokenizer, rows, tmp_path):
    config = sft(wide_folder, method="qlora")
    model = add_adapter(load_base(config), config, 0)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    assert sum("lora_A" in n for n in trained) == 14
    before = weights(model)
    train(model, tokenizer, rows[:8], config, tmp_path, seed=1)
    after = weights(model)
    assert all(not torch.equal(before[n], after[n]) for n in before if "lora_B" in n)


def test_qlora_merges_into_the_unquantized_base(wide_folder, tokenizer, rows, tmp_path):
    config = sft(wide_folder, method="qlora")
    model = stirred(fresh_model(config)).eval()
    written = save_servable(model, tokenizer, config, tmp_path, "{{ messages }}", END)
    merged = AutoModelForCausalLM.from_pretrained(written["merged"], dtype=torch.float32)
    assert "quantization_config" not in json.loads((written["merged"] / "config.json").read_text())
    base = load_base(sft(wide_folder))
    expected = PeftModel.from_pretrained(base, written["adapter"]).eval()
    ids = torch.from_numpy(rows[0].input_ids.astype(np.int64))[None]
    with torch.no_grad():
        wanted, found = expected(input_ids=ids).logits, merged(input_ids=ids).logits
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_compute_dtype_takes_what_it_is_told():
    assert compute_dtype("float32") == torch.float32
    assert compute_dtype("bfloat16") == torch.bfloat16
    assert compute_dtype("auto") in (torch.float32, torch.bfloat16)
