"""Serving from an environment of its own, and a stage's base model served like what it became."""

import json
import os

import pytest
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from realm.core.files import REPOSITORY
from realm.core.profile import Endpoint
from realm.models import assets
from realm.serving import local
from realm.serving.client import EndpointError
from realm.serving.local import local_server, program_of, resolve_model

VLLM = Endpoint(engine="vllm", model="m", max_new_tokens=8, context_length=512, environment=".venv-serving")
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
# Answers the health check, and says with what environment and arguments it was started.
PROGRAM = """#!/bin/sh
echo "PATH=$PATH"
echo "$0 $@"
exec "{python}" "{script}" "$@"
"""
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": []}')
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def make_environment(folder, name="vllm"):
    import sys

    script = folder / "server.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SERVER)
    program = folder / "bin" / name
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, script=script))
    program.chmod(0o755)
    return program


# ---------------------------------------------------------------- the environment


def test_the_program_of_an_environment_is_used_and_no_other(tmp_path, monkeypatch):
    program = make_environment(tmp_path / "env")
    other = make_environment(tmp_path / "other")
    monkeypatch.setenv("PATH", f"{other.parent}{os.pathsep}{os.environ['PATH']}")
    inside = VLLM.model_copy(update={"environment": str(tmp_path / "env")})
    assert program_of(inside) == str(program)
    assert program_of(VLLM.model_copy(update={"environment": None})) == str(other)
    with pytest.raises(EndpointError, match="is missing"):
        program_of(VLLM.model_copy(update={"environment": str(tmp_path / "nowhere")}))


def test_an_environment_lies_in_the_repository_unless_it_is_named_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "REPOSITORY", tmp_path)
    program = make_environment(tmp_path / ".venv-serving")
    assert program_of(VLLM) == str(program)


def test_a_missing_environment_is_one_line_with_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "REPOSITORY", tmp_path)
    for endpoint in (VLLM, VLLM.model_copy(update={"environment": None})):
        with pytest.raises(EndpointError) as caught:
            program_of(endpoint)
        text = str(caught.value)
        assert "./run_all.sh --serving-env" in text and "`environment`" in text and "\n" not in text
        assert "pip install" not in text


def test_a_server_of_an_environment_runs_with_its_programs_first(tmp_path):
    program = make_environment(tmp_path / "env")
    model = write_tiny_model(tmp_path / "model")
    endpoint = VLLM.model_copy(update={"environment": str(tmp_path / "env"), "gpu_memory_share": 0.45})
    log = tmp_path / "log"
    with local_server(endpoint, model, None, log) as address:
        assert address.model == "model"
    said = log.read_text()
    assert f"PATH={program.parent}{os.pathsep}" in said
    assert f"{program} serve {model} --host 127.0.0.1" in said
    assert "--gpu-memory-utilization 0.45" in said and "--max-model-len 512" in said


def test_the_serving_environment_is_pinned_whole_and_found_by_the_profiles():
    lines = (REPOSITORY / "cluster" / "serving.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert pinned[0].startswith("vllm==")
    assert all(line.count("==") == 1 and "+" not in line for line in pinned)
    assert len({line.split("==")[0] for line in pinned}) == len(pinned) > 100
    from realm.core.profile import PROFILE_FOLDER, load_profile

    served = [e for p in PROFILE_FOLDER.glob("*.yaml") for e in load_profile(p).endpoints().values()]
    assert {e.environment for e in served if e.engine == "vllm"} == {".venv-serving"}
    assert ".venv-serving/" in (REPOSITORY / ".gitignore").read_text().splitlines()


# ---------------------------------------------------------------- base and trained, under one template


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A finished training stage: other weights, its own template and end token."""
    base = write_tiny_model(tmp_path / "base")
    folder = tmp_path / "run" / "04_realm_sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for parameter in model.parameters():
        parameter.data += 1
    tokenizer.chat_template = TEMPLATE
    model.config.eos_token_id = 1
    model.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    (folder / "base_model.txt").write_text(f"{base}\n")
    return tmp_path, base, folder


def test_the_base_of_a_stage_has_its_weights_and_the_stages_template(stage):
    root, base, folder = stage
    found, vocabulary = resolve_model("base:04_realm_sft", root / "run")
    assert vocabulary is None and found == folder / "untrained"
    of = lambda place: {k: v.sum().item() for k, v in load_file(place / "model.safetensors").items()}  # noqa: E731
    assert of(found) == of(base) != of(folder / "merged")
    messages = [{"role": "user", "content": "hi"}]
    trained, untrained = (AutoTokenizer.from_pretrained(p) for p in (folder / "merged", found))
    texts = {t.apply_chat_template(messages, tokenize=False) for t in (trained, untrained)}
    assert texts == {"[user]hi"}
    assert AutoTokenizer.from_pretrained(base).chat_template != TEMPLATE
    assert json.loads((found / "config.json").read_text())["eos_token_id"] == 1
    AutoModelForCausalLM.from_pretrained(found)


def test_it_is_made_once_and_anew_when_the_stage_is(stage):
    root, _, folder = stage
    made, _ = resolve_model("base:04_realm_sft", root / "run")
    before = made.stat().st_ino
    assert resolve_model("base:04_realm_sft", root / "run")[0].stat().st_ino == before
    other = write_tiny_model(root / "another")
    (folder / "base_model.txt").write_text(f"{other}\n")
    resolve_model("base:04_realm_sft", root / "run")
    assert (made / "model.safetensors").resolve() == (other / "model.safetensors").resolve()


def test_the_base_of_a_stage_that_has_not_run_is_one_line(tmp_path):
    with pytest.raises(EndpointError, match="run the stage that trains this model first"):
        resolve_model("base:04_realm_sft", tmp_path)


def test_a_stage_of_a_packaged_model_keeps_its_vocabulary(stage, monkeypatch):
    root, base, folder = stage
    monkeypatch.setattr(assets, "gguf_of", lambda name: root / f"{name}.gguf")
    monkeypatch.setattr(assets, "model", lambda name: base)
    (folder / "base_model.txt").write_text("smollm2-135m\n")
    assert resolve_model("base:04_realm_sft", root / "run")[1] == root / "smollm2-135m.gguf"
