"""The model card says what it was told, all of it, nothing else, and nothing of the machine it was made on."""

import re
import tomllib

import pytest
import yaml
from tiny_model import sft

from realm.core.files import REPOSITORY, ArtefactError
from realm.core.metrics import Metric
from realm.core.profile import load_profile
from realm.models.model_card import public_name, write_model_card

DIGEST = "0f" * 32
METRICS = [
    Metric("perplexity_before", 92.269, 69.09, 129.44, n=80, unit="perplexity"),
    Metric("perplexity_after", 59.101, 46.72, 77.02, n=1_080, unit="perplexity"),
    Metric("train_tokens", 40_400, unit="tokens a pass, tails cut"),
    Metric("someone_elses", 6.33, n=160, unit="score | 1 to 10", source="published"),
]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CPU = load_profile("cpu")


def card(folder, **values):
    usual = {
        "config": CPU.usergpt_sft,
        "dialogue": CPU.dialogue,
        "template": TEMPLATE,
        "flipped": True,
        "metrics": METRICS,
        "data": {"train.jsonl": DIGEST},
        "seed": 20230823,
        "licence": "Apache-2.0",
        "commit": "abc1234",
    }
    return write_model_card(folder, **{**usual, **values}).read_text(encoding="utf-8")


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    return tmp_path


def front_matter(text):
    opening, values, body = re.fullmatch(r"(---\n)(.*?\n)---\n(.*)", text, re.DOTALL).groups()
    assert opening and body.startswith("# ")
    return yaml.safe_load(values)


def row(text, first):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# ---------------------------------------------------------------- front matter


def test_the_front_matter_of_an_adapter(adapter):
    assert front_matter(card(adapter)) == {
        "license": "apache-2.0",
        "base_model": "smollm2-135m",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["user-simulation", "lora", "arxiv:2308.11534"],
    }


def test_the_front_matter_of_a_merged_and_of_a_full_model(tmp_path):
    merged = front_matter(card(tmp_path))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")
    paper = load_profile("paper")
    full = front_matter(card(tmp_path, config=paper.realm_sft, dialogue=paper.dialogue, flipped=False, licence=None))
    assert full["base_model"] == "meta-llama/Llama-2-7b-hf"
    assert full["tags"] == ["conversational", "arxiv:2308.11534"]
    assert "license" not in full


@pytest.mark.parametrize("name", ["odd: name # of 'a' model", "- dash", "{brace}"])
def test_odd_names_stay_one_value(adapter, name):
    assert front_matter(card(adapter, config=sft(name)))["base_model"] == name


# ---------------------------------------------------------------- what it says


def test_every_metric_is_shown_with_interval_n_unit_and_source(adapter):
    text = card(adapter)
    assert row(text, "perplexity_before") == [
        "perplexity_before",
        "92.27 [69.09, 129.4]",
        "80",
        "perplexity",
        "this run",
    ]
    assert row(text, "perplexity_after")[1:3] == ["59.1 [46.72, 77.02]", "1,080"]
    assert row(text, "train_tokens")[1:4] == ["40,400", "", "tokens a pass, tails cut"]
    assert row(text, "someone_elses")[3:] == ["score \\| 1 to 10", "published"]


def test_every_hyperparameter_is_shown(adapter):
    text = card(adapter)
    for key, value in CPU.usergpt_sft.model_dump().items():
        assert row(text, key) == [key, "null" if value is None else str(value)]
    assert row(text, "max_length") == ["max_length", "512"]


def test_data_template_seed_and_commit_are_shown(adapter):
    text = card(adapter)
    assert row(text, "train.jsonl") == ["train.jsonl", f"`{DIGEST}`"]
    assert f"````jinja\n{TEMPLATE}\n````" in text
    assert row(text, "seed")[1] == "20230823" and row(text, "commit of the code")[1] == "abc1234"
    assert row(text, "licence")[1] == "Apache-2.0"


def test_nothing_is_invented_where_nothing_is_known(adapter):
    text = card(adapter, metrics=[], data={}, licence=None, commit="")
    assert "## Metrics\n\nNone were recorded." in text
    assert "Which files it was trained on was not recorded." in text
    assert row(text, "licence")[1] == "that of the base model, which was not recorded"
    assert "commit of the code" not in text
    values = " ".join(str(v) for v in [*CPU.usergpt_sft.model_dump().values(), *CPU.dialogue.model_dump().values()])
    budget = f"{CPU.usergpt_sft.max_train_tokens:,}"
    known = set(re.findall(r"\d[\d.,]*", f"{values} 20230823 {budget} 2308.11534 135 256"))
    found = {n.rstrip(".,") for n in re.findall(r"(?<![\w-])\d[\d.,]*", text.replace(TEMPLATE, ""))}
    assert found <= known


def test_the_flip_is_explained_for_a_simulated_user_alone(adapter):
    user, assistant = card(adapter), card(adapter, flipped=False, config=CPU.realm_sft)
    assert "**Swap the roles.**" in user and "# UserGPT, from smollm2-135m" in user
    assert "Swap the roles" not in assistant and "# ReaLM, from smollm2-135m" in assistant
    assert row(user, "turns that carried the loss")[1] == "user"
    assert row(assistant, "turns that carried the loss")[1] == "assistant"


def test_serving_fits_what_the_folder_holds(adapter, tmp_path):
    assert "PeftModel.from_pretrained" in card(adapter)
    (adapter / "adapter_config.json").unlink()
    merged = card(tmp_path)
    assert "vllm serve FOLDER" in merged and "PeftModel" not in merged


def test_limits_follow_the_configuration(adapter):
    assert f"a budget of {CPU.usergpt_sft.max_train_tokens:,} tokens a pass" in card(adapter)
    paper = load_profile("paper")
    text = card(adapter, config=paper.usergpt_sft, dialogue=paper.dialogue)
    assert "budget" not in text and "not all weights" not in text and "at most 2048 tokens" in text


def test_the_text_has_no_holes(adapter):
    for text in (card(adapter), card(adapter, flipped=False, metrics=[], data={})):
        body = text.replace(TEMPLATE, "")
        assert "{{" not in body and "{%" not in body and "None |" not in body
        assert "\n\n\n" not in text and text.endswith("\n")


# ---------------------------------------------------------------- what it keeps to itself


def test_no_path_of_this_machine_gets_into_it(adapter, tmp_path):
    base = tmp_path / "models" / "my-base"
    base.mkdir(parents=True)
    text = card(adapter, config=sft(base), data={str(tmp_path / "runs" / "train.jsonl"): DIGEST})
    assert str(tmp_path) not in text and str(tmp_path.parent) not in text
    assert front_matter(text)["base_model"] == "my-base"
    assert row(text, "base_model")[1] == "my-base" and row(text, "train.jsonl")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("huggyllama/llama-7b", "huggyllama/llama-7b"),
        ("/somewhere/private/base", "base"),
        ("./runs/base", "base"),
        ("../base/", "base"),
        ("~/models/base", "base"),
    ],
)
def test_public_names(name, shown):
    assert public_name(name) == shown


def test_keys_are_redacted(adapter, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "sk-not-a-real-key-0123456789")
    text = card(adapter, template="{{ 'sk-not-a-real-key-0123456789' }}", config=sft("sk-not-a-real-key-0123456789"))
    assert "sk-not-a-real" not in text and "[redacted]" in text


# ---------------------------------------------------------------- the file


def test_it_takes_the_place_of_another_card(adapter):
    (adapter / "README.md").write_text("peft's own card")
    assert "peft's own card" not in card(adapter)
    assert {p.name for p in adapter.iterdir()} == {"README.md", "adapter_config.json"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="file"):
        card(tmp_path / "file" / "folder")


def test_the_template_is_packaged():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert "*.j2" in project["tool"]["setuptools"]["package-data"]["realm.models"]


def test_who_wrote_the_answers_is_named_where_a_model_did(tmp_path):
    assert "were written by" not in card(tmp_path)
    text = card(tmp_path, answers_by="qwen2.5-coder-1.5b (Apache-2.0, SHA-256 `cc32`)")
    assert "\nThe answers in it were written by qwen2.5-coder-1.5b (Apache-2.0, SHA-256 `cc32`).\n" in text
