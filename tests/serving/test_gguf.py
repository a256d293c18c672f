"""Any GGUF as it is: of another architecture than is converted, by the bundled server and by a ``llama-server``."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tiny_model import write_tiny_model, write_vocabulary

from realm.conversations.conversation import Message
from realm.core.profile import Endpoint
from realm.serving import llama_cpp, local
from realm.serving.client import Client, EndpointError
from realm.serving.counting import TokenCounter
from realm.serving.local import connect, reach

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
SAID = [Message("system", "Be brief."), Message("user", "How far is it to the moon, and who measured it first?")]
# A stand-in for a llama-server built for this machine: it notes how it is called, and the bundled one does its work.
STAND_IN = """#!{python}
import json, os, sys
words, flags = sys.argv[1:], {{}}
while words:
    name = words.pop(0)
    flags[name] = words.pop(0) if words and not words[0].startswith("--") else True
with open({note!r}, "w") as note:
    json.dump({{"pid": os.getpid(), "flags": flags, "key": os.environ.get("LLAMA_API_KEY")}}, note)
os.environ["REALM_SERVER_API_KEY"] = os.environ["LLAMA_API_KEY"]
length = int(flags["--ctx-size"]) // int(flags["--parallel"])
os.execv(sys.executable, [sys.executable, "-m", "realm.serving.llama_cpp", "--model", flags["--model"],
    "--name", flags["--alias"], "--ports", flags["--port"], "--slots", flags["--parallel"],
    "--context-length", str(length), "--threads", flags["--threads"]])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("gguf")
    tiny = AutoModelForCausalLM.from_pretrained(write_tiny_model(folder / "tiny"))
    (folder / "served").mkdir()
    write_vocabulary(folder / "served" / "small,model.gguf", tiny, architecture="qwen2", template=TEMPLATE)
    return folder / "served" / "small,model.gguf"


@pytest.fixture(autouse=True)
def no_other_server(monkeypatch):
    """Whatever this machine has installed."""
    monkeypatch.delenv(llama_cpp.PROGRAM_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join(("/usr/bin", "/bin")))


def endpoint(model: Path | str, **values) -> Endpoint:
    return Endpoint(engine="llama.cpp", model=str(model), max_new_tokens=4, context_length=256, **values)


def program(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def stand_in(tmp_path) -> Path:
    note = str(tmp_path / "called.json")
    return program(tmp_path / "bin" / "llama-server", STAND_IN.format(python=sys.executable, note=note))


async def ask(block: Endpoint, folder: Path):
    async with connect(block, "responder", folder, folder / "logs") as client:
        counter = TokenCounter(client.address)
        try:
            return client.address, await client.complete(SAID, 1), await counter(SAID)
        finally:
            await counter.close()


def test_a_file_of_another_architecture_is_served_as_it_is_and_counts_as_its_server_does(model, tmp_path):
    address, reply, counted = asyncio.run(ask(endpoint(model, concurrency=2), tmp_path))
    assert address.model == "small-model"
    assert reply.completion_tokens == 4
    # Its own template, whatever this library trains with: roles in brackets.
    assert counted == reply.prompt_tokens > len(SAID[1].content) // 4
    assert [p.name for p in model.parent.iterdir()] == [model.name]  # nothing was converted


def test_an_asset_that_is_a_gguf_is_not_converted(model, tmp_path, monkeypatch):
    monkeypatch.setattr(local.assets, "gguf_of", lambda name: model if name == "an-asset" else None)
    monkeypatch.setattr(local.assets, "model", lambda name: pytest.fail("it was converted"))
    with reach(endpoint("an-asset"), "responder", tmp_path, tmp_path) as address:
        assert address.model == "small-model"


@pytest.mark.parametrize("way", ["path", "variable"])
def test_a_llama_server_serves_in_place_of_the_bundled_one(model, tmp_path, monkeypatch, stand_in, way):
    if way == "path":
        monkeypatch.setenv("PATH", f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}")
    else:
        other = stand_in.rename(tmp_path / "my own server")
        monkeypatch.setenv(llama_cpp.PROGRAM_VARIABLE, str(other))
    monkeypatch.setattr(local, "cpu_count", lambda: 4)
    with reach(endpoint(model, concurrency=6), "responder", tmp_path, tmp_path, share=2) as address:
        called = json.loads((tmp_path / "called.json").read_text())
        assert address.more == ()
        client = Client(address, endpoint(model), "responder")
        assert asyncio.run(client.complete(SAID, 1)).completion_tokens == 4
        request = urllib.request.Request(f"{address.base_url}/chat/completions", b"{}")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=30)
    port = address.base_url.split(":")[2].removesuffix("/v1")
    assert called["flags"] == {
        "--model": str(model),
        "--alias": "small-model",
        "--host": "127.0.0.1",
        "--port": port,
        "--parallel": "6",
        "--ctx-size": str(6 * 256),
        "--threads": "2",
        "--threads-batch": "2",
        "--samplers": "top_p;temperature",
        "--cont-batching": True,
        "--jinja": True,
    }
    assert called["key"] == address.key != ""  # in its environment alone
    assert is_gone(called["pid"])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


DEAF = """#!{python}
import http.server, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({note!r}).write_text(str(os.getpid()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_llama_server_that_does_not_listen_to_its_end_is_killed(model, tmp_path, monkeypatch):
    note = tmp_path / "pid"
    deaf = program(tmp_path / "llama-server", DEAF.format(python=sys.executable, note=str(note)))
    monkeypatch.setenv(llama_cpp.PROGRAM_VARIABLE, str(deaf))
    with reach(endpoint(model), "responder", tmp_path, tmp_path):
        assert not is_gone(int(note.read_text()))
    assert is_gone(int(note.read_text()))


def test_the_variable_can_pass_over_the_path_and_must_name_a_program(stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(stand_in.parent))
    assert llama_cpp.native_program() == str(stand_in)
    monkeypatch.setenv(llama_cpp.PROGRAM_VARIABLE, "bundled")
    assert llama_cpp.native_program() is None
    monkeypatch.setenv(llama_cpp.PROGRAM_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(EndpointError, match=r"^REALM_LLAMA_SERVER=.*nothing: no program there; correct it, unset it"):
        llama_cpp.native_program()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("#!/bin/sh\nkill -ILL $$\n", r"ended by SIGILL; set REALM_LLAMA_SERVER"),
        ("#!/bin/sh\necho unknown option --jinja; exit 1\n", r"ended \(1\); set REALM_LLAMA_SERVER"),
        ("#!/no/such/interpreter\n", r"cannot be started \(No such file"),
        ("#!/bin/sh\necho 'E llama: error loading model: unknown model architecture: x'; exit 1\n", "architecture: x;"),
    ],
)
def test_a_llama_server_that_does_not_run_here_is_named_with_the_way_out(model, tmp_path, monkeypatch, source, words):
    monkeypatch.setenv(llama_cpp.PROGRAM_VARIABLE, str(program(tmp_path / "llama-server", source)))
    with (
        pytest.raises(EndpointError, match=words) as caught,
        reach(endpoint(model), "responder", tmp_path, tmp_path),
    ):
        pytest.fail("it never came up")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_told_in_llama_cpp_s_words(model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-5000])
    with (
        pytest.raises(EndpointError, match=r"cut: the server ended at start: .*corrupted or incomplete; see"),
        reach(endpoint(cut), "responder", tmp_path, tmp_path),
    ):
        pytest.fail("it never came up")


def test_a_file_that_is_not_there_is_one_line_for_every_engine(tmp_path):
    for engine in ("llama.cpp", "transformers", "vllm"):
        block = endpoint(tmp_path / "gone.gguf").model_copy(update={"engine": engine})
        with pytest.raises((EndpointError, local.assets.AssetError)) as caught, reach(block, "r", tmp_path, tmp_path):
            pytest.fail("it never came up")
        assert "gone.gguf" in str(caught.value) and "\n" not in str(caught.value)
