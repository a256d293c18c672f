from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from realm.core.endpoint import Endpoint, Judge
from realm.core.profile import PROFILE_FOLDER, ProfileError, load_profile, profile_path

NAMES = sorted(path.stem for path in PROFILE_FOLDER.glob("*.yaml"))
SMOKE = PROFILE_FOLDER / "smoke.yaml"
API = {"engine": "api", "model": "m", "base_url": "https://api.openai.com/v1", "max_new_tokens": 8}


@pytest.fixture
def values() -> dict[str, Any]:
    """The smoke profile as plain values, to be spoiled."""
    return yaml.safe_load(SMOKE.read_text(encoding="utf-8"))


def spoil(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set ``a.b.c``; the value ``...`` takes the key away."""
    *blocks, last = key.split(".")
    for block in blocks:
        values = values[block]
    if value is ...:
        del values[last]
    else:
        values[last] = value
    return values


def complaint(path: Path) -> str:
    """The error of loading ``path``: one line that begins with the file."""
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.fixture
def complaint_about(tmp_path):
    def of(values: Any) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return complaint(path)

    return of


# ---------------------------------------------------------------- the profiles that are there


def test_the_four_profiles_are_there():
    assert {"smoke", "cpu", "cpu-long", "gpu", "paper"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_loads_by_name_and_by_path(name):
    profile = load_profile(name)
    assert profile == load_profile(PROFILE_FOLDER / f"{name}.yaml")
    assert (profile.usergpt_sft.supervise, profile.realm_sft.supervise) == ("user", "assistant")


@pytest.mark.parametrize("name", NAMES)
def test_served_contexts_hold_a_reply_and_stages_are_named_right(name):
    profile = load_profile(name)
    blocks = [profile.simulation, profile.mt_bench, profile.simulator_realism]
    endpoints = [value for block in blocks for _, value in block if isinstance(value, Endpoint)]
    assert len(endpoints) >= 6
    assert all(e.max_new_tokens < e.context_length for e in endpoints)
    stages = {e.model for e in endpoints if e.model.startswith("stage:")}
    assert stages == {"stage:02_usergpt_sft", "stage:04_realm_sft"}


def test_values_survive_a_dump():
    profile = load_profile("smoke")
    assert type(profile).model_validate(profile.model_dump()) == profile


def test_a_loaded_profile_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_profile("smoke").seed = 1


def test_the_spoiled_copy_is_valid_before_it_is_spoiled(values, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_profile(path) == load_profile("smoke")


# ---------------------------------------------------------------- wrong keys and values

WRONG = [
    ("extra", 1, "extra: unknown key; allowed: seed, dialogue, data_inspection"),
    ("dialogue.colour", 1, "dialogue.colour: unknown key; allowed: template, max_length"),
    ("simulation.user.top_k", 1, "simulation.user.top_k: unknown key; allowed: engine, model, base_url"),
    ("seed", ..., "seed: missing; allowed: int >= 0"),
    ("mt_bench.base.max_new_tokens", ..., "mt_bench.base.max_new_tokens: missing; allowed: int >= 1"),
    ("usergpt_sft.method", ..., "usergpt_sft.method: missing; allowed: qlora or lora or full"),
    ("seed", "one", "seed: input should be a valid integer, not 'one'; allowed: int >= 0"),
    ("seed", True, "seed: input should be a valid integer, not True; allowed: int >= 0"),
    ("seed", 1.5, "seed: input should be a valid integer, not 1.5; allowed: int >= 0"),
    ("usergpt_sft.gradient_checkpointing", "no", "not 'no'; allowed: bool"),
    ("usergpt_sft.learning_rate", "3e-4", "not '3e-4'; allowed: float > 0, < 1"),
    ("usergpt_sft.max_train_tokens", "all", "not 'all'; allowed: int or null >= 1000"),
    ("usergpt_sft.eval_steps", ..., "usergpt_sft.eval_steps: missing; allowed: int or null >= 1"),
    ("usergpt_sft.eval_steps", 0, "input should be greater than or equal to 1, not 0; allowed: int or null >= 1"),
    ("usergpt_sft.eval_steps", "often", "not 'often'; allowed: int or null >= 1"),
    ("dialogue.max_length", 63, "dialogue.max_length: input should be greater than or equal to 64, not 63"),
    ("dialogue.context_tokens", -1, "not -1; allowed: int >= 0"),
    ("dialogue.context_tokens", 129, "dialogue: context_tokens must be at most half of max_length, 256"),
    ("data_inspection.seeds_share", ..., "data_inspection.seeds_share: missing; allowed: float > 0, < 0.3"),
    (
        "data_inspection.strict",
        "no",
        "data_inspection.strict: input should be a valid boolean, not 'no'",
    ),
    ("realm_sft.keep", "first", "realm_sft.keep: 'first' is not allowed; allowed: 'best' or 'last'"),
    (
        "realm_sft.own_split",
        5,
        "realm_sft.own_split: input should be a valid dictionary",
    ),
    ("realm_sft.own_split", {"train_share": 0.95}, "realm_sft.own_split.seed: missing; allowed: int >= 0"),
    ("realm_sft.own_split", {"train_share": 1.0, "seed": 1}, "not 1.0; allowed: float > 0, < 1"),
    ("simulator_realism.base", ..., "simulator_realism.base: missing"),
    ("simulator_realism.sizes", [], "simulator_realism.sizes: "),
    ("simulator_realism.sizes", [21], "sizes must rise, from 10 at least to conversations, 20, at most"),
    ("simulator_realism.sizes", [20, 10], "sizes must rise"),
    ("simulator_realism.sizes", [9], "sizes must rise, from 10 at least"),
    ("simulator_realism.compared_tokens", 0, "not 0; allowed: int >= 8"),
    ("mt_bench.beside", {"chat": {"engine": "vllm"}}, "mt_bench.beside.chat.model: missing; allowed: str"),
    (
        "mt_bench.beside",
        {"chat": 5},
        "mt_bench.beside.chat: input should be a valid dictionary",
    ),
    ("mt_bench.beside", [], "mt_bench.beside: input should be a valid dictionary, not []"),
    ("mt_bench.beside", {"a/b": API}, "mt_bench: beside: 'a/b' is no name here"),
    ("mt_bench.beside", {"base": API}, "mt_bench: beside: 'base' is no name here"),
    ("mt_bench.beside", {"chat": {**API, "top_k": 1}}, "mt_bench.beside.chat.top_k: unknown key; allowed: engine"),
    ("simulation.user.gpu_memory_share", 0.0, "not 0.0; allowed: float or null > 0, <= 1"),
    ("usergpt_sft.opening_share", 1.5, "not 1.5; allowed: float or null >= 0, <= 1"),
    ("usergpt_sft.max_train_tokens", None, "usergpt_sft: opening_share is a share of max_train_tokens, which is null"),
    ("usergpt_sft.controls", ["everything"], "'everything' is not allowed"),
    ("realm_sft.controls", [], "realm_sft.controls: unknown key; allowed: base_model, supervise"),
    ("realm_sft.learn_ending", False, "realm_sft.learn_ending: unknown key"),
    ("realm_sft.samples_shown", 3, "realm_sft.samples_shown: unknown key"),
    ("realm_sft.eval_conversations", 3, "realm_sft.eval_conversations: unknown key"),
    ("data_inspection.test_share", 0.5, "data_inspection.test_share: input should be less than 0.5, not 0.5"),
    (
        "data_inspection.preset",
        "strict",
        "data_inspection.preset: 'strict' is not allowed; allowed: 'paper' or 'fixed'",
    ),
    ("data_inspection.preset", ..., "data_inspection.preset: missing; allowed: paper or fixed"),
    ("data_inspection.near_duplicate_threshold", 0.2, "not 0.2; allowed: float >= 0.3, <= 1"),
    ("data_inspection.near_duplicate_threshold", 1.1, "not 1.1; allowed: float >= 0.3, <= 1"),
    ("data_inspection.near_duplicate_threshold", "0.7", "not '0.7'; allowed: float >= 0.3, <= 1"),
    ("data_inspection.near_duplicate_threshold", ..., "missing; allowed: float >= 0.3, <= 1"),
    ("data_inspection.replace_private_data", "yes", "not 'yes'; allowed: bool"),
    ("data_inspection.replace_private_data", 1, "not 1; allowed: bool"),
    ("data_inspection.embedder", 5, "not 5; allowed: str"),
    ("data_inspection.embedder", None, "not None; allowed: str"),
    ("data_inspection.topics", 1, "not 1; allowed: int >= 2, <= 40"),
    ("data_inspection.topics", 41, "not 41; allowed: int >= 2, <= 40"),
    ("data_inspection.topic_turns", 9, "not 9; allowed: int >= 10"),
    ("data_inspection.topic_turns", 99.5, "not 99.5; allowed: int >= 10"),
    ("data_inspection.duplicates", True, "data_inspection.duplicates: unknown key; allowed: source, max_conversations"),
    ("simulation.simulator", "human", "allowed: 'usergpt', 'roleplay' or 'replay'"),
    ("simulation.simulator", ..., "simulation.simulator: missing; allowed: usergpt or roleplay or replay"),
    ("simulation.guardrails", ..., "simulation.guardrails: missing"),
    ("simulation.guardrails.retries", 1, "allowed: resample_tries, max_turn_characters, role_drift"),
    ("simulation.guardrails.resample_tries", 11, "not 11; allowed: int >= 0, <= 10"),
    ("simulation.guardrails.max_turn_characters", 0, "not 0; allowed: int or null >= 1"),
    ("simulation.guardrails.role_drift", "yes", "not 'yes'; allowed: bool"),
    ("simulation.budget", ..., "simulation.budget: missing"),
    ("simulation.budget.euros", 1, "allowed: requests, tokens, dollars, user_price, responder_price"),
    ("simulation.budget.requests", 0, "not 0; allowed: int or null >= 1"),
    ("simulation.budget.tokens", 1.5, "not 1.5; allowed: int or null >= 1"),
    ("simulation.budget.dollars", 0, "not 0; allowed: float or null > 0"),
    ("simulation.budget.user_price", {"prompt": 1.0}, "simulation.budget.user_price.completion: missing"),
    ("simulation.budget.user_price", {"prompt": -1, "completion": 1}, "not -1; allowed: float >= 0"),
    ("simulation.user.temperature", 2.5, "not 2.5; allowed: float >= 0, <= 2"),
    ("simulation.responder.top_p", 0, "not 0; allowed: float > 0, <= 1"),
    ("dialogue.template", "alpaca", "dialogue.template: 'alpaca' is not allowed; allowed: 'chatml' or 'dyadic'"),
    ("simulation.user.engine", "ollama", "allowed: 'llama.cpp', 'transformers', 'vllm' or 'api'"),
    ("mt_bench.judge", {**API, "engine": "ollama"}, "mt_bench.judge.engine: 'ollama' is not allowed"),
    ("mt_bench.judge", {**API, "colour": 1}, "mt_bench.judge.colour: unknown key; allowed: engine, model"),
    (
        "mt_bench.calibration",
        0,
        "calibration: input should be a valid boolean, not 0; allowed: bool or int >= 1",
    ),
    ("mt_bench.calibration", "yes", "mt_bench.calibration: input should be a valid boolean, not 'yes'; allowed: bool"),
    ("mt_bench.judge_repeats", 0, "mt_bench.judge_repeats: input should be greater than or equal to 1, not 0"),
    ("mt_bench.pairwise", 1, "mt_bench.pairwise: input should be a valid boolean, not 1; allowed: bool"),
    (
        "data_inspection.data_files",
        3,
        "data_files: input should be a valid string, not 3; allowed: str or list[str] or null",
    ),
    ("data_inspection.data_files", [1], "data_inspection.data_files: input should be a valid string, not [1]"),
    ("mt_bench.questions", 12, "mt_bench: questions must be a multiple of 8"),
    ("mt_bench.questions", 88, "mt_bench.questions: input should be less than or equal to 80, not 88"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_wrong_value_is_refused_with_key_and_allowed_values(values, complaint_about, key, value, expected):
    spoil(values, key, value)
    text = complaint_about(values)
    assert expected in text
    of_the_block = f"{key.split('.')[0]}: "  # where values of one block must fit together
    assert text.startswith((of_the_block, f"{key}: ", f"{key}."))


def test_a_block_that_is_no_block_is_refused_by_name(values, complaint_about):
    spoil(values, "dialogue", 5)
    assert complaint_about(values).startswith("dialogue: ")


def test_a_checkpoint_between_evaluations_is_refused(values, complaint_about):
    spoil(values, "usergpt_sft.checkpoint_steps", 10)
    spoil(values, "usergpt_sft.eval_steps", 4)
    assert complaint_about(values) == "usergpt_sft: checkpoint_steps must be a multiple of eval_steps, 4"


def test_nothing_to_simulate_is_refused(values, complaint_about):
    spoil(values, "simulation.free", 0)
    spoil(values, "simulation.seeded", 0)
    assert complaint_about(values) == "simulation: free and seeded are both 0: nothing to simulate"


def test_a_budget_of_dollars_needs_a_price(values, complaint_about):
    spoil(values, "simulation.budget.dollars", 5)
    assert complaint_about(values).startswith("simulation.budget: dollars needs user_price or responder_price")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"simulator": "replay"}, "simulator replay takes its turns from seed_source: free must be 0"),
        ({"simulator": "replay", "free": 0}, "simulator replay needs user: null"),
        ({"user": None}, "simulator usergpt needs a user endpoint"),
    ],
)
def test_a_replay_has_no_user_to_ask_and_others_have(values, complaint_about, changes, expected):
    values["simulation"].update(changes)
    assert complaint_about(values) == f"simulation: {expected}"


def test_a_replay_without_user_is_accepted(values, tmp_path):
    values["simulation"].update(simulator="replay", free=0, user=None)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_profile(path).simulation.user is None


def test_an_environment_goes_with_engines_that_are_programs(values, complaint_about):
    values["simulation"]["user"]["environment"] = ".venv-serving"
    assert complaint_about(values).startswith("simulation.user: environment goes with engine vllm or transformers")


def test_the_paper_trains_and_keeps_as_the_authors_do():
    """Their sft_7b.sh of the response model, and its datasets.py."""
    paper = load_profile("paper")
    realm = paper.realm_sft
    assert (realm.eval_steps, realm.checkpoint_steps, realm.keep) == (37, 37, "last")
    assert (realm.own_split.train_share, realm.own_split.seed) == (0.95, 125)
    assert realm.valid_conversations >= 0.05 * paper.simulation.free
    for block in (realm, paper.usergpt_sft):
        assert (block.epochs, block.batch_size, block.accumulation, block.learning_rate) == (3, 4, 8, 2e-5)
        assert (block.method, block.warmup_ratio, block.schedule, block.keep) == ("full", 0.03, "cosine", "last")
        assert not block.chooses_best


def test_the_paper_compares_realm_with_its_own_base_and_the_chat_model():
    paper = load_profile("paper")
    assert paper.realm_sft.base_model == "meta-llama/Llama-2-7b-hf"
    assert paper.mt_bench.base.model == "base:04_realm_sft"
    assert [e.model for e in paper.mt_bench.beside.values()] == ["meta-llama/Llama-2-7b-chat-hf"]
    assert list(paper.mt_bench.answerers) == ["base", "realm", "llama_2_chat"]
    assert paper.endpoints()["mt_bench.beside.llama_2_chat"] == paper.mt_bench.beside["llama_2_chat"]


def test_the_paper_says_what_differs_and_what_is_not_known():
    text = (PROFILE_FOLDER / "paper.yaml").read_text(encoding="utf-8")
    assert "# What differs from the authors':" in text and "# What is not known:" in text


def test_checkpoints_and_evaluations_meet_only_where_the_best_is_kept(values, tmp_path, complaint_about):
    values["realm_sft"] |= {"eval_steps": 3, "checkpoint_steps": 4, "keep": "best"}
    assert "checkpoint_steps must be a multiple of eval_steps, 3" in complaint_about(values)
    values["realm_sft"]["keep"] = "last"
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert not load_profile(path).realm_sft.chooses_best


def test_the_paper_has_no_guardrails():
    rules = load_profile("paper").simulation.guardrails
    assert rules.model_dump() == {"resample_tries": 0, "max_turn_characters": None, "role_drift": False}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("base_url", ..., "engine api needs base_url, for example https://api.openai.com/v1"),
        ("engine", "vllm", "base_url goes with engine api, not vllm"),
    ],
)
def test_an_address_belongs_to_engine_api(values, complaint_about, key, value, expected):
    spoil(values, "mt_bench.judge", dict(API))
    spoil(values, f"mt_bench.judge.{key}", value)
    assert complaint_about(values) == f"mt_bench.judge: {expected}"


def test_a_key_variable_belongs_to_engine_api(values, complaint_about):
    spoil(values, "simulation.user.api_key_env", "OPENAI_API_KEY")
    assert complaint_about(values) == "simulation.user: api_key_env goes with engine api, not llama.cpp"


def test_an_api_endpoint_is_accepted(values, tmp_path):
    spoil(values, "mt_bench.judge", {**API, "api_key_env": "OPENAI_API_KEY"})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_profile(path).mt_bench.judge == Judge(**API, api_key_env="OPENAI_API_KEY")


def test_a_judgment_may_be_as_long_as_fastchats(values, tmp_path):
    spoil(values, "mt_bench.judge", {k: v for k, v in API.items() if k != "max_new_tokens"})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_profile(path).mt_bench.judge.max_new_tokens == 2_048


@pytest.mark.parametrize("key", ["5", "on", "2024-01-01"])
def test_a_key_that_is_no_text_is_refused(complaint_about, key):
    assert complaint_about(f"{key}: 1\n{SMOKE.read_text(encoding='utf-8')}")


# ---------------------------------------------------------------- files that are no profile


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "not valid YAML: key 'seed' stands twice"),
        ("dialogue:\n  template: chatml\n  template: dyadic\n", "not valid YAML: key 'template' stands twice"),
        ("seed: [1", "not valid YAML: "),
        ("seed: 1\n\tdialogue: 2", "not valid YAML: "),
        ("seed: !!python/object:os.system {}", "not valid YAML: "),
        ("? [a, b]\n: 1", "not valid YAML: "),
        ("seed: \x00", "not valid YAML: "),
        ("", "expected keys and values; allowed: seed, dialogue"),
        ("- seed", "expected keys and values; allowed: seed, dialogue"),
    ],
)
def test_other_yaml_is_refused(complaint_about, text, expected):
    assert complaint_about(text).startswith(expected)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfes\x00")
    assert complaint(path).startswith("not valid YAML: ")


@pytest.mark.parametrize("name", ["nothing", "nothing.yaml", "."])
def test_a_missing_profile_is_refused_with_those_there_are(name):
    with pytest.raises(ProfileError) as caught:
        profile_path(name)
    assert str(caught.value).startswith(f"{name}: no such profile; there are ")
    assert all(known in str(caught.value) for known in NAMES)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_called_unknown_not_missing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(profile_path("smoke").read_text().replace("  free: 2", "  fre: 2"))
    with pytest.raises(ProfileError, match=r"simulation.fre: unknown key; allowed: .*free"):
        load_profile(path)
