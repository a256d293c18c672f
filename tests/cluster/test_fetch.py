"""All that a profile needs from outside, named; nothing is downloaded here."""

import pytest

from realm.cluster import fetch as room
from realm.conversations.hub import HubChoice
from realm.core.profile import load_profile
from realm.models.assets import AssetError


@pytest.fixture
def fetched(monkeypatch):
    """What is asked for, in order; ``done``: the exit code of what makes an environment."""
    asked = []
    monkeypatch.setattr(room.assets, "fetch_all", lambda profile: asked.append("assets"))
    monkeypatch.setattr(room.assets, "model", asked.append)
    monkeypatch.setattr(room.assets, "gguf_of", lambda name: asked.append(f"gguf {name}") or True)
    monkeypatch.setattr(room, "fetch_rows", lambda name, choice: asked.append((name, choice)))
    monkeypatch.setattr(room, "program_of", lambda endpoint: None)
    done = type("Done", (), {"returncode": 0})
    monkeypatch.setattr(room.subprocess, "run", lambda words: asked.append(words[1]) or done)
    return asked, done


def test_the_papers_models_data_and_serving_environment(fetched):
    room.fetch(load_profile("paper"))
    asked, _ = fetched
    models = ["huggyllama/llama-7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"]
    files = [f"HTML_cleaned_raw_dataset/sg_90k_part{part}.json" for part in (1, 2)]
    data = ("anon8231489123/ShareGPT_Vicuna_unfiltered", HubChoice(data_files=files))
    assert asked == ["assets", *models, data, "--serving-env"]


def test_what_a_laptop_uses_is_in_the_assets(fetched):
    room.fetch(load_profile("smoke"))
    assert fetched[0] == ["assets"]


def test_a_file_that_is_served_as_it_is(fetched):
    smoke = load_profile("smoke")
    judge = smoke.mt_bench.base.model_copy(update={"model": "someone/model-GGUF:model.gguf"})
    mine = smoke.model_copy(update={"mt_bench": smoke.mt_bench.model_copy(update={"base": judge})})
    room.fetch(mine)
    assert fetched[0] == ["assets", "gguf someone/model-GGUF:model.gguf"]


def test_an_environment_that_cannot_be_made_is_an_error(fetched):
    fetched[1].returncode = 1
    with pytest.raises(AssetError, match=r"\.venv-serving could not be made"):
        room.fetch(load_profile("gpu"))
