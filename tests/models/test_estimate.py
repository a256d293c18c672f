"""Estimates against what they estimate: models on the meta device, tensors that autograd keeps, the reference run."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import conversations, sft, write_tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from realm.core.profile import load_profile
from realm.dialogue.encoder import Encoder
from realm.dialogue.format import chat_format, load_tokenizer
from realm.evaluation import published
from realm.models import assets, estimate, workload
from realm.models.architecture import PUBLISHED, Architecture, UnknownArchitecture, architecture
from realm.pipeline.commands import main
from realm.reporting.reference import REFERENCE_METRICS
from realm.training.base import add_adapter, load_base
from realm.training.loss import supervised_nll
from realm.training.rows import collate
from realm.training.trainer import train

TESTS = Path(__file__).parents[1]
BLOCKS = ["usergpt_sft", "realm_sft"]
PROFILES = ["smoke", "cpu", "cpu-long", "gpu", "paper"]
LLAMA = PUBLISHED["huggyllama/llama-7b"]
REFERENCE = json.loads(REFERENCE_METRICS.read_text(encoding="utf-8")) if REFERENCE_METRICS.exists() else {}


def measured(stage):
    return {record["name"]: record["value"] for record in REFERENCE[stage]["metrics"]}


def llama(shape):
    """Its words for LlamaConfig."""
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }


def on_meta(shape):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**llama(shape)))


def with_values(profile, block, **values):
    return profile.model_copy(update={block: getattr(profile, block).model_copy(update=values)})


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("rank", [8, 64])
def test_parameters_equal_those_of_the_model_on_the_meta_device(name, rank):
    shape = PUBLISHED[name]
    model = on_meta(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = get_peft_model(model, lora)
    assert shape.adapter(rank) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_published_counts():
    assert LLAMA.parameters == PUBLISHED["meta-llama/Llama-2-7b-hf"].parameters == 6_738_415_616
    assert PUBLISHED["smollm2-135m"].parameters == 134_515_008


@pytest.mark.skipif(not REFERENCE, reason="no reference run is published yet")
def test_the_adapter_is_as_large_as_the_reference_run_measured():
    rank = load_profile("cpu").usergpt_sft.lora_rank
    assert PUBLISHED["smollm2-135m"].adapter(rank) == measured("02_usergpt_sft")["usergpt_trained_parameters"]


def test_the_packaged_model_has_the_shape_that_is_published():
    folders = list((assets.cache_folder() / "models").glob("smollm2-135m-*"))
    if not folders:
        pytest.skip("the packaged model is not fetched yet")
    assert architecture(str(folders[0])) == architecture("smollm2-135m")


def test_a_local_folder_is_read(tmp_path):
    folder = write_tiny_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(folder)
    shape = architecture(str(folder))
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.tied) == (2, 32, 4, 2, True)
    assert shape.parameters == model.num_parameters()


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "{}", '{"model_type": "gpt2", "hidden_size": 8, "num_attention_heads": 2}'],
    ids=["broken", "list", "empty", "gpt2"],
)
def test_a_folder_that_holds_no_llama_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnknownArchitecture, match="does not describe a LLaMA"):
        architecture(str(tmp_path))


def test_biases_and_odd_heads_are_refused(tmp_path):
    path = write_tiny_model(tmp_path) / "config.json"
    plain = json.loads(path.read_text())
    for change in ({"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 16}):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(UnknownArchitecture):
            architecture(str(tmp_path))


# ---------------------------------------------------------------- memory


def kept_for_backward(model, forward, autocast):
    """Bytes of the tensors that autograd saves in ``forward(model)``, parameters and their casts left out."""
    weights = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    sizes, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)  # else another tensor may get its storage's address
        if storage._cdata not in weights and tuple(tensor.shape) not in shapes:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        forward(model.train())
    return sum(sizes.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), hidden=256)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("full", "float32"),
        ("full", "bfloat16"),
        ("lora", "float32"),
        ("lora", "bfloat16"),
        ("qlora", "float32"),
        ("qlora", "bfloat16"),
    ],
)
def test_activations_are_what_autograd_keeps(folder, method, dtype):
    config = sft(folder, method=method, compute_dtype=dtype)
    tokenizer = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "user", 400)
    row = max(encoder.encode_all(conversations(4, rounds=4)), key=lambda r: len(r.input_ids))
    features = [{"input_ids": row.input_ids, "labels": row.labels, "id": row.id}] * config.batch_size
    batch = collate(features, 0)
    batch.pop("ids")
    model = add_adapter(load_base(config), config, seed=0)
    found = kept_for_backward(
        model, lambda m: supervised_nll(m, batch), autocast=method == "full" and dtype == "bfloat16"
    )
    width = 2 if dtype == "bfloat16" else 4
    fused = torch.cuda.is_available()  # as ``load_base`` chooses
    parts = estimate.memory(architecture(str(folder)), config, len(row.input_ids), 0.2, 1, width, fused)
    assert found == pytest.approx(parts["activations"], rel=0.2)


@pytest.mark.parametrize("method", ["full", "adapter"])
def test_activations_hold_at_the_width_of_llama_7b(method):
    length = 64
    batch = {"input_ids": torch.zeros(1, length, dtype=torch.long, device="meta")}
    # A mask of four dimensions is taken as it is; making one would ask for values, which this device has not.
    batch["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    sizes = []
    for layers in (1, 2):
        model = on_meta(replace(LLAMA, layers=layers, vocab=100))
        if method == "adapter":
            with torch.device("meta"):
                model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        sizes.append(kept_for_backward(model, lambda m: m(**batch, logits_to_keep=1), autocast=False))
    scores = 4 * LLAMA.heads * length**2  # this device computes attention the plain way, which keeps the scores
    hidden, intermediate = estimate.ACTIVATION_BYTES[method, 4]
    expected = length * (hidden * LLAMA.hidden + intermediate * LLAMA.intermediate)
    assert sizes[1] - sizes[0] - scores == pytest.approx(expected, rel=0.01)


def test_memory_of_a_full_fine_tune_of_llama_7b():
    config = load_profile("paper").usergpt_sft
    one, four = (estimate.memory(LLAMA, config, 2_048, 0.25, n, 2) for n in (1, 4))
    # Master weights, gradient and two moments: 16 bytes a parameter (ZeRO, arXiv 1910.02054), 2 more for autocast.
    assert one["weights"] + one["gradients, AdamW"] == 18 * LLAMA.parameters
    assert four["gradients, AdamW"] == one["gradients, AdamW"] / 4
    assert four["weights"] < 1.4 * 4 * LLAMA.parameters / 4
    # What layers hand on is bfloat16 where they are gathered in it, float32 under autocast.
    assert one["activations"] - four["activations"] == 2 * LLAMA.layers * LLAMA.hidden * 2_048 * config.batch_size


SHAPES = {
    "layers": Architecture(3, 512, 1_408, 8, 8, 4_000, tied=False),
    "head": Architecture(3, 512, 1_408, 8, 8, 32_000, tied=False),
    "one matrix": Architecture(3, 512, 1_408, 8, 2, 32_000, tied=True),
}
USUAL = {"batch": 2, "length": 256, "share": 0.25, "width": 2, "checkpointing": True, "sync": True, "processes": 4}
CASES = [
    ("layers", {}),
    ("layers", {"sync": False}),
    ("layers", {"width": 4}),
    ("layers", {"checkpointing": False}),
    ("layers", {"batch": 1, "length": 32}),
    ("head", {}),
    ("one matrix", {"batch": 1, "length": 32}),
]


@pytest.fixture(scope="module")
def shards():
    """What one of four processes holds, counted tensor by tensor: ``peak`` with AdamW's moments, and ``between``."""
    cases = [{**USUAL, **values, "shape": llama(SHAPES[name])} for name, values in CASES]
    words = [sys.executable, "-W", "ignore", str(TESTS / "sharded_memory.py"), json.dumps(cases)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    moments = [8 * SHAPES[name].parameters / USUAL["processes"] for name, _ in CASES]
    found = zip(json.loads(done.stdout), moments, strict=True)
    return [{kind: size + own for kind, size in record.items()} for record, own in found]


@pytest.mark.parametrize("number", [i for i, (_, values) in enumerate(CASES) if "sync" not in values])
def test_the_memory_of_a_sharded_fine_tune_is_what_its_tensors_take(shards, number):
    name, values = CASES[number]
    case = {**USUAL, **values}
    config = load_profile("paper").usergpt_sft.model_copy(
        update={"batch_size": case["batch"], "gradient_checkpointing": case["checkpointing"]}
    )
    parts = estimate.memory(SHAPES[name], config, case["length"], case["share"], case["processes"], case["width"])
    # On the safe side: not all of its parts are largest at once.
    assert 0.98 <= sum(parts.values()) / shards[number]["peak"] <= 1.25


def test_gradients_that_wait_are_those_of_all_weights_on_each_process(shards):
    shared, waiting = shards[0], shards[1]
    size = SHAPES["layers"].parameters
    assert shared["between"] == pytest.approx(16 * size / 4, rel=0.01)  # all of it is shared out
    assert waiting["between"] == pytest.approx((12 / 4 + 2) * size, rel=0.01)  # whole, and in bfloat16
    assert waiting["peak"] > shared["peak"]


def test_what_is_said_of_cards_is_what_the_estimate_says():
    spans = {}
    for gpus in (4, 8):
        rows = [estimate.stage_rows(load_profile("paper"), block, {}, gpus) for block in BLOCKS]
        spans[gpus] = "{:.0f} to {:.0f}".format(*(float(r["GiB per device: total"]) for r in rows))
    readme = " ".join((TESTS.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"{spans[4]} GiB of tensors on each of 4 GPUs or {spans[8]} on each of 8, and 25 on one" in readme
    assert f"{spans[4]} GiB of tensors on each" in (TESTS.parent / "cluster" / "fsdp.yaml").read_text(encoding="utf-8")


def test_what_fits_leaves_room_for_what_is_no_tensor():
    card = estimate.GPUS["RTX 4090 24 GB"]
    assert estimate.fits(20 * estimate.GIB, card) and not estimate.fits(21 * estimate.GIB, card)
    # Eight such cards hold the shards of the paper's fine-tune, but none the whole model, which the notebook compares.
    rows = estimate.stage_rows(load_profile("paper"), "usergpt_sft", {}, 16)
    assert float(rows["GiB per device: total"]) < 16 < 24 < float(rows["GiB on one, to compare"])
    assert rows["time, RTX 4090 24 GB"] == "does not fit"


def test_nf4_takes_a_little_more_than_four_bits():
    config = load_profile("cpu").usergpt_sft
    parts = estimate.memory(LLAMA, config, 512, 0.25, 1, 2)
    assert 8 * (parts["weights"] - 2 * (LLAMA.parameters - LLAMA.linear)) / LLAMA.linear == pytest.approx(
        4.127, abs=1e-3
    )


BASE = load_profile("gpu").usergpt_sft


def total(length=1_024, share=0.25, processes=1, width=2, **values):
    config = BASE.model_copy(update=values)
    return sum(estimate.memory(LLAMA, config, length, share, processes, width).values())


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 2}, {"batch_size": 4}),
        ({"length": 512}, {"length": 1_024}),
        ({"share": 0.1}, {"share": 0.9}),
        ({"lora_rank": 8}, {"lora_rank": 64}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"method": "qlora"}, {"method": "lora"}),
        ({"method": "lora"}, {"method": "full"}),
        ({"method": "full", "processes": 8}, {"method": "full", "processes": 2}),
        ({"method": "full", "processes": 2}, {"method": "full", "processes": 1}),
    ],
)
def test_memory_grows_with(less, more):
    assert total(**less) < total(**more)


def test_every_part_is_counted_once():
    parts = estimate.memory(LLAMA, BASE, 1_024, 0.25, 1, 2)
    assert list(parts) == ["weights", "adapter", "gradients, AdamW", "activations", "logits"]
    assert all(size > 0 for size in parts.values())
    assert estimate.memory(LLAMA, BASE.model_copy(update={"method": "full"}), 1_024, 0.25, 4, 2)["adapter"] == 0


# ---------------------------------------------------------------- work and time


def load_of(tokens, share=1.0, length=1):
    return workload.Workload(tokens, tokens, length, share, False, "")


@pytest.mark.parametrize(("method", "factor"), [("full", 6), ("lora", 4), ("qlora", 4)])
def test_operations_follow_the_rule_of_thumb(method, factor):
    config = BASE.model_copy(
        update={"method": method, "gradient_checkpointing": False, "lora_rank": 1, "epochs": 1, "test_conversations": 2}
    )
    used = LLAMA.linear + LLAMA.head  # an embedding is looked up, not multiplied
    assert estimate.stage_flops(LLAMA, config, load_of(10_000)) == pytest.approx(factor * used * 10_000, rel=0.01)
    again = config.model_copy(update={"gradient_checkpointing": True})
    assert estimate.stage_flops(LLAMA, again, load_of(10_000)) == pytest.approx((factor + 2) * used * 10_000, rel=0.01)


def test_more_processes_and_a_faster_device_take_less_time():
    slow, fast = estimate.GPUS["A100 80 GB"], estimate.GPUS["H100 80 GB"]
    low, high = estimate.seconds(1e18, slow, 1)
    assert 0 < low < high
    assert estimate.seconds(1e18, slow, 4) == (low / 4, high / 4)
    assert estimate.seconds(1e18, fast, 1) < (low, high)


def test_steps_are_those_of_the_trainer(folder, tmp_path):
    config = sft(folder, epochs=2)
    tokenizer = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "user", 400)
    rows = [r.without_tail() for r in encoder.encode_all(conversations(7))]
    model = add_adapter(load_base(config), config, seed=0)
    log = train(model, tokenizer, rows, config, tmp_path, seed=0)
    assert len(log) == workload.optimizer_steps(config, len(rows), 1) == 4


def test_the_papers_corpus_is_the_published_one():
    assert published.funnel()["segments"].dropna().iloc[-1] == workload.PAPER_SEGMENTS


def test_tokens_come_from_the_budget_the_metrics_or_the_paper():
    numbers = {
        "conversations_train": 1_000,
        "train_row_tokens_mean": 300.0,
        "supervised_share_without_tails": 0.4,
    }
    profile = load_profile("gpu")
    unmeasured = workload.workload(profile, "usergpt_sft", {})
    assert unmeasured.tokens == 34_435 * 2_048 and "assumed" in unmeasured.basis
    known = workload.workload(profile, "usergpt_sft", numbers)
    assert (known.segments, known.length, known.tokens) == (1_000, 300, 300_000)
    assert known.share == 0.4 and "assumed" not in known.basis
    partly = {k: v for k, v in numbers.items() if k != "train_row_tokens_mean"}
    assert workload.workload(profile, "usergpt_sft", partly) == unmeasured
    budget = with_values(profile, "usergpt_sft", max_train_tokens=3_000)
    assert workload.workload(budget, "usergpt_sft", numbers).segments == 10
    assert workload.workload(budget, "usergpt_sft", {}).few_segments


def test_realchat_is_bounded_by_the_context():
    profile = load_profile("paper")
    assert workload.workload(profile, "realm_sft", {}).tokens == math.ceil(0.95 * 50_728) * 2_048


@pytest.mark.skipif(not REFERENCE, reason="no reference run is published yet")
class TestAgainstTheReferenceRun:
    """The stage's seconds include loading and saving; its range must hold them all the same."""

    @pytest.mark.parametrize("known", [False, True])
    @pytest.mark.parametrize(("block", "stage"), [("usergpt_sft", "02_usergpt_sft"), ("realm_sft", "04_realm_sft")])
    def test_its_time_lies_in_the_range(self, block, stage, known):
        profile = load_profile("cpu")
        config = getattr(profile, block)
        load = workload.workload(profile, block, measured("01_data") if known else {})
        flops = estimate.stage_flops(architecture(config.base_model), config, load)
        [device] = estimate.CPU.values()
        low, high = estimate.seconds(flops, device, 1)
        assert low < REFERENCE[stage]["seconds"] < high

    def test_its_tokens_share_and_steps_are_close(self):
        profile, stage = load_profile("cpu"), measured("02_usergpt_sft")
        if not measured("01_data").keys() >= workload.MEASURED:
            pytest.skip("the reference run is older than these metrics of notebook 01")
        load = workload.workload(profile, "usergpt_sft", measured("01_data"))
        share = stage["usergpt_supervised_tokens"] / stage["usergpt_train_tokens"]
        assert load.tokens == pytest.approx(stage["usergpt_train_tokens"], rel=0.05)
        assert load.share == pytest.approx(share, rel=0.1)
        assert load.segments == pytest.approx(stage["usergpt_train_segments"], rel=0.2)

    def test_its_steps_follow_from_its_segments(self):
        for block, stage, name in zip(BLOCKS, ("02_usergpt_sft", "04_realm_sft"), ("usergpt", "realm"), strict=True):
            segments = measured(stage)[f"{name}_train_segments"]
            lines = (REFERENCE_METRICS.parent / f"{stage[:2]}_loss.csv").read_text().splitlines()
            config = getattr(load_profile("cpu"), block)
            assert workload.optimizer_steps(config, segments, config.cpu_processes) == len(lines) - 1


# ---------------------------------------------------------------- the dry run


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_prints_an_estimate(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    monkeypatch.setenv("REALM_CACHE", str(tmp_path / "empty"))
    assert main(["--profile", name, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    text = shown[shown.index(estimate.HEADING) :]
    assert "untested on a GPU" in text and "cannot estimate" not in text
    shape = architecture(load_profile(name).usergpt_sft.base_model)
    rows = {
        line[3:37].strip(): line[37:].split("  ") for line in text.splitlines() if not line.startswith("   usergpt")
    }
    assert {"GiB per device: total", "training tokens, at most", "optimizer steps"} <= rows.keys()
    assert (f"{shape.parameters:,}" in text) == (name == "paper")
    widths = {len(line) for line in text.splitlines()[1:-3]}
    assert len(widths) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_table_adds_up():
    rows = estimate.stage_rows(load_profile("paper"), "usergpt_sft", {}, None)
    parts = [float(v) for k, v in rows.items() if k.startswith("GiB per") and not k.endswith("total")]
    assert float(rows["GiB per device: total"]) == pytest.approx(sum(parts), abs=0.03)
    assert rows["GiB on one, to compare"] == "25.10"  # the whole model in float32
    assert rows["method, processes"] == "full, 4"
    assert rows["time, RTX 4090 24 GB"] == "does not fit"
    assert rows["time, A100 80 GB"].endswith(" h")


def test_the_number_of_gpus_is_an_option(capsys):
    assert main(["--profile", "paper", "--dry-run", "--stage", "2", "--gpus", "8"]) == 0
    assert "full, 8" in capsys.readouterr().out
    assert main(["--profile", "paper", "--dry-run", "--gpus", "0"]) == 1
    assert capsys.readouterr().err == "error: --gpus 0: at least 1\n"


def test_a_profile_for_any_device_is_estimated_for_gpus_when_asked():
    profile = load_profile("cpu")
    assert "time, 2 CPU cores" in estimate.stage_rows(profile, "usergpt_sft", {}, None)
    asked = estimate.stage_rows(profile, "usergpt_sft", {}, 2)
    assert "time, A100 80 GB" in asked and "time, 2 CPU cores" not in asked


def test_stages_that_train_nothing_print_no_estimate(capsys):
    assert main(["--profile", "cpu", "--dry-run", "--stage", "1"]) == 0
    assert "estimate" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["someone/unheard-of-13b", "../nowhere", "/nowhere/at/all"])
def test_an_unknown_model_is_one_clear_line(name):
    profile = with_values(load_profile("cpu"), "realm_sft", base_model=name)
    text = estimate.table(profile, BLOCKS, {})
    [line] = [line for line in text.splitlines() if "cannot estimate" in line]
    assert line == f"   realm_sft: cannot estimate: {name}: its shape is not known before it is fetched"
    assert "4,884,480" in text  # the other stage keeps its column
    alone = estimate.table(profile, ["realm_sft"], {})
    assert alone.splitlines() == [estimate.HEADING, line]


def test_metrics_of_the_run_folder_are_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    (tmp_path / "cpu" / "01_data").mkdir(parents=True)
    values = dict(zip(sorted(workload.MEASURED), (9_000, 0.4, 38.0), strict=True))
    records = [{"name": name, "value": value} for name, value in values.items()]
    (tmp_path / "cpu" / "01_data" / "metrics.json").write_text(json.dumps(records))
    assert main(["--profile", "cpu", "--dry-run", "--stage", "2"]) == 0
    assert "metrics of notebook 01; segments of 38 tokens on average" in capsys.readouterr().out


def test_durations_have_two_digits():
    shown = [estimate._duration(s) for s in (5, 119, 150, 3_600, 8_000, 200_000, 5e6)]
    assert shown == ["5 s", "119 s", "2.5 min", "60 min", "2.2 h", "2.3 d", "58 d"]
    assert math.isinf(next(iter(estimate.CPU.values())).gib)


def test_heads_that_share_keys_have_smaller_matrices():
    shape = Architecture(1, 64, 128, 8, 2, 100, tied=True)
    assert shape.matrices == [(64, 64), (64, 16), (64, 16), (64, 64), (64, 128), (64, 128), (128, 64)]
