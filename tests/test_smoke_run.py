"""The smoke profile end to end, on the real assets: some minutes on two cores."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from stub_server import StubServer

from realm.conversations.readers import load_conversations
from realm.core.files import file_sha256, read_json
from realm.core.manifest import TRAINED_ON
from realm.core.metrics import Metrics
from realm.core.profile import profile_path
from realm.pipeline.commands import main
from realm.pipeline.stages import STAGES

KEY = "sk-not-a-real-key-0123456789"
NUMBERS_EVERY_RUN_HAS = (
    "conversations_read",
    "conversations_salvage_lost",
    "user_turn_perplexity_before",
    "user_turn_perplexity_after",
    "realchat_conversations",
    "realchat_rounds_mean",
    "assistant_turn_perplexity_before",
    "assistant_turn_perplexity_after",
    "corpus_humans_conversations",
    "corpus_roleplay_tokens_per_answer",
    "teaching_perplexity_base",
    "teaching_perplexity_realchat",
    "teaching_perplexity_humans_first_round_equal_tokens",
    "teaching_difference_roleplay_realchat",
    "teaching_supervised_tokens_seeds_equal_tokens",
    "teaching_conversations_realchat_half",
    "mt_bench_published_overall",
    "two_sample_auc_usergpt",
    "two_sample_auc_roleplay",
    "two_sample_auc_human_floor",
)


@dataclass
class Smoke:
    profile: Path
    folder: Path
    printed: dict[str, str]
    metrics: dict
    judge: StubServer


def run_stage(profile, number):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["--profile", str(profile), "--stage", number, "--report"])
    assert code == 0, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All six stages; the judge is a service that wants a key, and tells it again in each judgment."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, StubServer() as judge:
        judge.reply = lambda body: f"You are {judge.requests[-1].authorization}. Rating: [[7]]"
        profile = runs / "smoke.yaml"
        profile.write_text(yaml.safe_dump(judged_by(judge)), encoding="utf-8")
        patch.setenv("REALM_RUNS", str(runs))
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("HF_HUB_OFFLINE", "1")
        printed = {stage.number: run_stage(profile, stage.number) for stage in STAGES}
        folder = runs / "smoke-own"
        metrics = {m.name: m for stage in STAGES for m in Metrics.load(folder / stage.folder)}
        yield Smoke(profile, folder, printed, metrics, judge)


def judged_by(judge):
    """Profile smoke with that judge."""
    values = yaml.safe_load(profile_path("smoke").read_text(encoding="utf-8"))
    service = {"engine": "api", "model": "stub", "base_url": judge.url, "api_key_env": "OPENAI_API_KEY"}
    values["mt_bench"]["judge"] = service
    return values


def test_every_stage_ran_and_left_its_artefacts(smoke):
    for stage in STAGES:
        assert f"{stage.number} {stage.notebook}" in smoke.printed[stage.number]
        assert "skipped" not in smoke.printed[stage.number]
        for name in (*stage.writes, "metrics.json", "manifest.json", "done.json"):
            assert list((smoke.folder / stage.folder).glob(name)), f"{stage.folder}/{name}"
        for suffix in (".ipynb", ".html"):
            assert (smoke.folder / "notebooks" / stage.notebook).with_suffix(suffix).stat().st_size > 10_000


def test_every_promised_number_is_there(smoke):
    assert [name for name in NUMBERS_EVERY_RUN_HAS if name not in smoke.metrics] == []


def test_the_numbers_that_do_not_depend_on_the_machine(smoke):
    assert smoke.metrics["conversations_read"].value == 17_671
    assert smoke.metrics["conversations_salvage_lost"].value == 1
    assert smoke.metrics["mt_bench_published_overall"].value == 6.328125
    assert smoke.metrics["mt_bench_published_overall"].source == "published"
    assert smoke.metrics["realchat_conversations"].value == 4
    assert smoke.metrics["corpus_held_out_conversations"].value == 4


def test_the_judge_is_heard(smoke):
    for model in ("base", "realm"):
        overall = smoke.metrics[f"mt_bench_overall_{model}"]
        assert (overall.value, overall.n, overall.source) == (7, 16, "this run")
        assert smoke.metrics[f"mt_bench_missing_judgments_{model}"].value == 0
    assert smoke.metrics["judge_repeats_itself"].value == 1  # and it says nothing else, so no comparison is read
    assert smoke.metrics["mt_bench_unread_pairs_realm_base"].value == 16


def test_the_measured_numbers_make_sense(smoke):
    for side in ("user", "assistant"):
        for when in ("before", "after"):
            metric = smoke.metrics[f"{side}_turn_perplexity_{when}"]
            assert 1 < metric.ci_low <= metric.value <= metric.ci_high < 1_000
            assert metric.n == 16 and metric.source == "this run"
    assert 0 <= smoke.metrics["realchat_rounds_mean"].value <= 2
    for who in ("usergpt", "roleplay", "human_floor"):
        metric = smoke.metrics[f"two_sample_auc_{who}"]
        assert 0 <= metric.ci_low <= metric.value <= metric.ci_high <= 1


def test_nothing_that_was_trained_on_is_evaluated(smoke):
    trained = {s: read_json(smoke.folder / s / "manifest.json")[TRAINED_ON] for s in ("02_usergpt_sft", "04_realm_sft")}
    beside = [f"03_simulation/beside/{name}/realchat.jsonl" for name in ("roleplay", "humans", "seeds")]
    learned = ["03_simulation/realchat.jsonl", *beside]
    assert [list(of) for of in trained.values()] == [["01_data/train.jsonl"], learned]
    assert all(file_sha256(smoke.folder / name) == digest for of in trained.values() for name, digest in of.items())
    seeds = {c.session for c in load_conversations(smoke.folder / "01_data" / "seeds.jsonl")}
    test = {c.session for c in load_conversations(smoke.folder / "01_data" / "test.jsonl")}
    seeded = [c.id for c in load_conversations(smoke.folder / "03_simulation" / "realchat.jsonl") if "seeded" in c.id]
    assert len(seeded) == 2 and not seeds & test
    assert all(any(name in talk for name in seeds) for talk in seeded)
    assert not any(name in talk for name in test for talk in seeded)


def test_notebooks_show_no_noise(smoke):
    for path in (smoke.folder / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for noise in ("IProgress", "kernels-community", "autograd kernel", "is_gradient_checkpointing", "over TCP"):
            assert noise not in text, (path.name, noise)


def test_only_published_numbers_carry_the_published_source(smoke):
    for name, metric in smoke.metrics.items():
        assert (metric.source == "published") == ("_published_" in name), name


def test_the_report_names_every_stage(smoke):
    page = (smoke.folder / "report.html").read_text(encoding="utf-8")
    assert all(f'id="{stage.notebook}"' in page for stage in STAGES)
    assert all(name in page for name in NUMBERS_EVERY_RUN_HAS)


def test_every_figure_has_its_numbers(smoke):
    drawn = sorted((smoke.folder / "figures").glob("*.png"))
    assert {p.name[:2] for p in drawn} == {s.number for s in STAGES}
    assert all(p.with_suffix(".csv").exists() for p in drawn)


@pytest.mark.parametrize("number", ["01", "03"])
def test_a_second_call_is_skipped(smoke, number):
    assert "skipped: nothing changed" in run_stage(smoke.profile, number)


def test_no_server_outlives_its_stage(smoke):
    logs = list(smoke.folder.rglob("logs/*.log"))
    assert len(logs) >= 6
    commands = [(p / "cmdline").read_bytes() for p in Path("/proc").glob("[0-9]*") if readable(p / "cmdline")]
    models = str(smoke.folder).encode()
    assert [c for c in commands if models in c] == []


def readable(path):
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_the_key_is_in_no_file(smoke):
    weights = (".safetensors", ".gguf")
    files = [p for p in smoke.folder.rglob("*") if p.is_file() and p.suffix not in weights]
    assert any(p.suffix == ".sqlite" for p in files)
    told = [r for r in smoke.judge.completions if r.authorization == f"Bearer {KEY}"]
    assert len(told) == len(smoke.judge.completions) >= 32  # both turns of eight questions, of two models
    kept = [p for p in files if b"You are" in p.read_bytes() and b"[redacted]" in p.read_bytes()]
    assert {p.name for p in kept} >= {
        "stub_single.jsonl",
        "stub_pair.jsonl",
    }  # what the judge told stands there, but the key
    assert [str(p) for p in files if KEY.encode() in p.read_bytes()] == []
