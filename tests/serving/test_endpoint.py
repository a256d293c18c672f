import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from stub_server import (
    BAD_KEY,
    BROKEN,
    BUSY,
    EMPTY_CHOICES,
    NO_MODEL,
    NULL_CONTENT,
    TOO_LONG,
    BreaksOff,
    Fault,
    Raw,
    StubServer,
)

from realm.conversations.conversation import Message
from realm.core import secrets
from realm.core.profile import Endpoint
from realm.models import gguf as conversion
from realm.models.assets import AssetError
from realm.models.gguf import ConversionError, export_gguf
from realm.serving import llama_cpp, local
from realm.serving.client import Address, Client, EndpointError
from realm.serving.local import connect, local_server, resolve_model

KEY = "sk-not-a-real-key-0123456789"
HELLO = [Message("system", "Be brief."), Message("user", "Hello?")]
LOCAL = Endpoint(engine="llama.cpp", model="stub", max_new_tokens=8)


@pytest.fixture(autouse=True)
def no_key_is_known(monkeypatch):
    """What one test had redacted must not hide what the next one shows."""
    monkeypatch.setattr(secrets, "_REGISTERED", set())


@pytest.fixture
def server():
    with StubServer() as running:
        yield running


async def ask(server, call, **values):
    """``call(client)`` against the stub; values go into the endpoint's block."""
    client = Client(Address(server.url, "stub", KEY), server.endpoint(**values), "responder")
    try:
        return await call(client)
    finally:
        await client.close()


def complete(server, **values):
    return asyncio.run(ask(server, lambda client: client.complete(HELLO, seed=1), **values))


def refusal(server, answers, **values):
    server.script = list(answers)
    with pytest.raises(EndpointError) as caught:
        complete(server, **values)
    return caught.value


# ---------------------------------------------------------------- one completion


def test_complete_returns_text_and_usage(server):
    server.script = ["Hi."]
    reply = complete(server)
    assert (reply.text, reply.finish, reply.reasoning) == ("Hi.", "stop", "")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (7, 3, None)


def test_a_server_that_tells_what_it_had_read_before_is_believed(server):
    told = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}}
    choices = [{"index": 0, "message": {"role": "assistant", "content": "Hi."}}]
    server.script = [Fault(200, payload={"choices": choices, "usage": told})]
    assert complete(server).cached_tokens == 6


def test_the_request_carries_messages_seed_and_sampling(server):
    complete(server, temperature=0.3, top_p=0.9, max_new_tokens=11)
    body = server.completions[0].body
    assert server.completions[0].said == [("system", "Be brief."), ("user", "Hello?")]
    assert (body["model"], body["seed"], body["temperature"]) == ("stub", 1, 0.3)
    assert (body["top_p"], body["max_tokens"]) == (0.9, 11)


def test_temperature_and_length_of_one_call_win_over_the_profile(server):
    call = lambda client: client.complete(HELLO, 1, temperature=0.0, max_new_tokens=5)  # noqa: E731
    asyncio.run(ask(server, call, temperature=0.9))
    body = server.completions[0].body
    assert (body["temperature"], body["max_tokens"]) == (0.0, 5)


def test_the_key_reaches_the_server_and_nothing_that_is_shown(server, caplog, monkeypatch):
    monkeypatch.setenv("STUB_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    client = Client(Address(server.url, "stub", KEY), server.endpoint(), "user")
    shown = [repr(client), repr(client.address), str(client.address), repr(vars(client))]
    complete(server)
    echo = Fault(500, f"no luck with key {KEY}, I say: {KEY}")
    shown += [str(refusal(server, [echo])), repr(refusal(server, [echo])), caplog.text]
    assert server.completions[0].authorization == f"Bearer {KEY}"
    assert not any(KEY in text for text in shown)
    assert "[redacted]" in str(refusal(server, [echo]))


def test_a_key_from_a_variable_of_any_name_stays_out_of_errors(server, monkeypatch):
    monkeypatch.setenv("SERVICE_CREDENTIAL", KEY)
    server.script = [Fault(500, f"no luck with key {KEY}")]

    async def through_connect():
        block = server.endpoint(api_key_env="SERVICE_CREDENTIAL")
        async with connect(block, "responder", Path(), Path()) as client:
            await client.complete(HELLO, 1)

    with pytest.raises(EndpointError) as caught:
        asyncio.run(through_connect())
    assert KEY not in str(caught.value)


def test_a_short_placeholder_for_a_key_does_not_eat_the_words(server, monkeypatch):
    monkeypatch.setenv("LOCAL_CREDENTIAL", "e")
    server.script = [BAD_KEY]
    with pytest.raises(EndpointError, match="the key is refused"):
        reach(server.endpoint(api_key_env="LOCAL_CREDENTIAL"))


def test_a_key_at_the_cut_of_a_long_message_stays_out(server, monkeypatch):
    monkeypatch.setenv("STUB_API_KEY", KEY)
    text = str(refusal(server, [Fault(500, f"{'x' * 260} {KEY}")]))
    assert KEY[:8] not in text


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (BAD_KEY, "refused", "key is refused (401)"),
        (Fault(403, "forbidden"), "refused", "key is refused (403)"),
        (NO_MODEL, "refused", "no such model or path (404)"),
        (TOO_LONG, "context", "too long"),
        (Fault(400, "temperature is out of range"), "failed", "temperature is out of range"),
        (Fault(500, "first line\nsecond line"), "failed", "first line second line"),
        (BUSY, "unreachable", "too many requests (429)"),
        (NULL_CONTENT, "failed", "without text"),
        (EMPTY_CHOICES, "failed", "without text"),
    ],
)
def test_every_fault_is_one_line_of_the_right_kind(server, answer, kind, words):
    started = time.monotonic()
    error = refusal(server, [answer])
    assert time.monotonic() - started < 5
    assert error.kind == kind
    assert words in str(error)
    assert "responder (stub at http://127.0.0.1:" in str(error)
    assert "\n" not in str(error) and KEY not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(200, page="<html>Welcome!</html>"), id="a web page"),
        pytest.param(Fault(200, payload={"choices": [{"index": 0}]}), id="a choice without message"),
        pytest.param(Fault(200, payload={"error": {"message": "quota"}}), id="an error in disguise"),
        pytest.param(Raw(b'{"choices": [{"mess'), id="half of a JSON value"),
    ],
)
def test_an_answer_that_is_no_completion_is_an_endpoint_error(server, answer):
    assert refusal(server, [answer]).kind == "failed"


def test_a_refused_key_names_the_variable_to_check(server):
    assert "check OTHER_API_KEY" in str(refusal(server, [BAD_KEY], api_key_env="OTHER_API_KEY"))


def test_a_silent_server_is_unreachable_after_the_timeout(server):
    started = time.monotonic()
    error = refusal(server, [Fault(200, delay=2.0)], timeout_seconds=0.3)
    assert time.monotonic() - started < 5
    assert error.kind == "unreachable"
    assert "no answer in 0.3 s" in str(error)


@pytest.fixture
def black_hole():
    """An address where a connection is made and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_an_address_that_says_nothing_is_unreachable_within_seconds(black_hole):
    block = Endpoint(engine="api", model="stub", base_url=black_hole, max_new_tokens=8)
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"judge \(stub at .*: no answer in 3 s") as caught:
        reach(block)
    assert time.monotonic() - started < 5
    assert caught.value.kind == "unreachable" and "\n" not in str(caught.value)


def test_a_dead_address_is_unreachable():
    with StubServer() as gone:
        pass
    started = time.monotonic()
    for call in (lambda client: client.complete(HELLO, 1), lambda client: client.check()):
        with pytest.raises(EndpointError, match="nothing answers there; start it, or correct base_url") as caught:
            asyncio.run(ask(gone, call, max_retries=1))
        assert caught.value.kind == "unreachable"
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 5


# ---------------------------------------------------------------- retries


def test_busy_and_broken_servers_are_asked_again(server):
    server.script = [BUSY, BROKEN, "at last"]
    assert complete(server, max_retries=2).text == "at last"
    assert len(server.completions) == 3


def test_retries_are_bounded(server):
    assert refusal(server, [BROKEN] * 9, max_retries=1).kind == "failed"
    assert len(server.completions) == 2


def test_retry_after_is_honoured(server):
    server.script = [Fault(429, "slow down", headers={"Retry-After": "1"}), "now"]
    started = time.monotonic()
    assert complete(server, max_retries=1).text == "now"
    assert time.monotonic() - started >= 1  # by itself the client would wait half a second


@pytest.mark.parametrize("answer", [BAD_KEY, NO_MODEL, TOO_LONG])
def test_final_errors_are_not_retried(server, answer):
    refusal(server, [answer], max_retries=3)
    assert len(server.completions) == 1


# ---------------------------------------------------------------- a completion in pieces


def stream(server, hear, **values):
    return asyncio.run(ask(server, lambda client: client.stream(HELLO, 1, hear), **values))


def test_a_stream_gives_pieces_and_asks_what_a_completion_asks(server):
    server.script, server.finish_reason = ["one two three"], "length"
    pieces = []
    reply = stream(server, pieces.append)
    assert (reply.text, reply.finish) == ("one two three", "length")
    assert pieces == ["one", " two", " three"]
    complete(server)
    streamed, whole = (r.body for r in server.completions)
    assert streamed == {**whole, "stream": True}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (BAD_KEY, "refused", "key is refused (401)"),
        (TOO_LONG, "context", "too long"),
        (Fault(200, page="<html>Welcome!</html>"), "failed", "without text"),
        (BreaksOff("one two"), "unreachable", "broke off in the middle"),
    ],
)
def test_a_stream_that_fails_is_an_endpoint_error(server, answer, kind, words):
    server.script = [answer]
    pieces = []
    with pytest.raises(EndpointError) as caught:
        stream(server, pieces.append)
    assert caught.value.kind == kind and words in str(caught.value)
    assert pieces == (["one", " two"] if isinstance(answer, BreaksOff) else [])


def test_a_cancelled_stream_ends_at_the_server_too(server):
    server.script, server.pause = ["more " * 500], 0.02

    async def inside(client):
        heard = asyncio.Event()
        task = asyncio.create_task(client.stream(HELLO, 1, lambda piece: heard.set()))
        await heard.wait()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(ask(server, inside))
    assert server.given_up.wait(5)


# ---------------------------------------------------------------- many completions


def many(server, count, **values):
    requests = [([Message("user", f"question {i}")], i) for i in range(count)]
    return asyncio.run(ask(server, lambda client: client.complete_all(requests, "test"), **values))


def test_complete_all_keeps_the_order(server):
    server.reply = lambda body: body["messages"][0]["content"].upper()
    assert [r.text for r in many(server, 9)] == [f"QUESTION {i}" for i in range(9)]


def test_no_more_than_concurrency_are_in_flight(server):
    server.seconds = 0.05
    many(server, 8, concurrency=2)
    assert server.most_busy == 2


def test_complete_all_ends_with_the_first_error(server):
    server.script = ["fine", BAD_KEY]
    with pytest.raises(EndpointError, match="key is refused"):
        many(server, 3, concurrency=1)


def test_requests_start_at_the_pace_of_the_profile(server):
    started = time.monotonic()
    many(server, 4, requests_per_minute=300)
    assert time.monotonic() - started >= 3 * 0.2


def test_what_is_asked_again_keeps_the_pace_too(server):
    server.script = [BUSY, BUSY]
    started = time.monotonic()
    complete(server, requests_per_minute=40, max_retries=2)
    assert time.monotonic() - started >= 2 * 1.5  # by itself the client would wait a second and a half at most


def test_a_conversation_stays_with_its_server_and_a_new_one_goes_to_the_least_busy(server):
    async def hold(client, names):
        for _ in range(3):
            await asyncio.gather(*(client.complete([Message("user", n)], 1, conversation=n) for n in names))

    async def all_of_them():
        # Room for all at once: who waits at the gate takes the server of whoever ends first.
        client = Client(Address(server.url, "stub", KEY, (second.url,)), server.endpoint(concurrency=6), "user")
        try:
            await hold(client, "a")
            await hold(client, "b")  # the servers are idle, and the first has a conversation
            await hold(client, "abcdef")
            await asyncio.gather(*(client.complete(HELLO, seed) for seed in range(4)))
        finally:
            await client.close()

    with StubServer() as second:
        asyncio.run(all_of_them())
        asked = [[r.said[0][1] for r in s.completions] for s in (server, second)]
    homes = [{text for text in texts if len(text) == 1} for texts in asked]
    assert [len(home) for home in homes] == [3, 3] and not homes[0] & homes[1]
    assert [sum(len(text) > 1 for text in texts) for texts in asked] == [2, 2]


def test_without_a_pace_nothing_waits(server):
    server.seconds = 0.5
    many(server, 4)
    assert server.most_busy > 1


# ---------------------------------------------------------------- reaching an endpoint


def reach(endpoint, folder=Path()):
    async def inside():
        async with connect(endpoint, "judge", folder, folder) as client:
            return await client.complete(HELLO, 1)

    return asyncio.run(inside())


def test_connect_takes_the_key_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OTHER_API_KEY", KEY)
    reach(server.endpoint(api_key_env="OTHER_API_KEY"))
    assert {r.authorization for r in server.requests} == {f"Bearer {KEY}"}
    assert server.requests[0].path == "/v1/models"


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_variable_is_named(server, monkeypatch, value):
    monkeypatch.delenv("ABSENT_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("ABSENT_API_KEY", value)
    with pytest.raises(EndpointError, match="environment variable ABSENT_API_KEY is not set"):
        reach(server.endpoint(api_key_env="ABSENT_API_KEY"))
    assert server.requests == []


def test_connect_checks_the_key_before_any_question():
    with StubServer(models=BAD_KEY) as strict, pytest.raises(EndpointError, match="key is refused") as caught:
        reach(strict.endpoint())
    assert caught.value.kind == "refused"
    assert strict.completions == []


LISTED = Fault(200, payload={"object": "list", "data": [{"id": "other", "object": "model"}]})


@pytest.mark.parametrize("models", [LISTED, Fault(404, "not found")], ids=["another is listed", "no list"])
def test_a_wrong_model_name_shows_before_any_question(models):
    with (
        StubServer(lambda body: NO_MODEL, models) as strict,
        pytest.raises(EndpointError, match="no such model or path") as caught,
    ):
        reach(strict.endpoint(max_retries=3))
    assert caught.value.kind == "refused"
    assert [r.body["max_tokens"] for r in strict.completions] == [1]


def test_a_model_that_the_list_leaves_out_will_do():
    with StubServer(models=LISTED) as hidden:
        assert reach(hidden.endpoint()).text.startswith("words about")
    with StubServer(models=Fault(200, page="<html>hello</html>")) as odd:
        assert reach(odd.endpoint()).text.startswith("words about")


def test_a_service_without_a_list_of_models_will_do():
    with StubServer(models=Fault(404, "not found")) as bare:
        assert reach(bare.endpoint()).text.startswith("words about")


def test_a_model_of_a_stage_that_did_not_run(tmp_path):
    with pytest.raises(EndpointError, match=r"02_usergpt_sft/merged: missing; run the stage"):
        resolve_model("stage:02_usergpt_sft", tmp_path)


def test_a_model_of_a_stage(tmp_path):
    merged = tmp_path / "02_usergpt_sft" / "merged"
    merged.mkdir(parents=True)
    (merged.parent / "base_model.txt").write_text("some/hub-model\n")
    assert resolve_model("stage:02_usergpt_sft", tmp_path) == (merged, None)


def test_a_model_that_is_nowhere():
    with pytest.raises(AssetError, match="no local folder of this name"):
        resolve_model("no such model", Path())


def test_a_folder_without_safetensors(tmp_path):
    with pytest.raises(AssetError, match="safetensors only"):
        resolve_model(str(tmp_path), Path())


def test_an_engine_that_is_not_installed():
    with pytest.raises(EndpointError, match="'no-such-engine' is not installed"):
        local.program_of(LOCAL.model_copy(update={"engine": "no-such-engine"}))


# ---------------------------------------------------------------- local servers

FAKE_ENGINE = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers.get("Authorization") == "Bearer " + os.environ["REALM_SERVER_API_KEY"]
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(b'{"data": []}')
print("loading", flush=True)
for port in sys.argv[1:]:
    threading.Thread(target=HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever).start()
"""


def use_engine(monkeypatch, folder, source):
    script = folder / "engine.py"
    script.write_text(source)
    command = lambda e, f, v, ports, s: ([sys.executable, str(script), *map(str, ports)], "fake")  # noqa: E731
    monkeypatch.setattr(local, "_command", command)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    use_engine(monkeypatch, tmp_path, FAKE_ENGINE)


def listens(base_url):
    try:
        urllib.request.urlopen(f"{base_url}/models", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def status(address, key):
    request = urllib.request.Request(f"{address.base_url}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_local_server_is_healthy_inside_and_gone_after(engine, tmp_path):
    with local_server(LOCAL, tmp_path, None, tmp_path / "logs" / "user.log") as address:
        assert address.model == "fake"
        assert address.base_url.startswith("http://127.0.0.1:")
        assert status(address, address.key) == 200
        assert status(address, "wrong") == 401
    assert not listens(address.base_url)
    log = (tmp_path / "logs" / "user.log").read_text()
    assert "loading" in log
    assert address.key not in log and address.key not in repr(address)


def test_an_endpoint_of_several_servers_waits_for_all_and_ends_all(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "cpu_count", lambda: 3)
    block = LOCAL.model_copy(update={"concurrency": 12})
    with local_server(block, tmp_path, None, tmp_path / "log") as address:
        urls = {address.base_url, *address.more}
        assert len(urls) == 3 and all(listens(url) for url in urls)
    assert not any(listens(url) for url in urls)


@pytest.mark.parametrize(
    ("concurrency", "cores", "share", "expected"),
    [
        (1, 8, 1, (1, 8, 1)),  # a chat: one server, all cores
        (16, 2, 1, (2, 1, 8)),
        (16, 2, 2, (2, 1, 8)),  # servers of one thread may outnumber the cores
        (6, 8, 1, (1, 8, 6)),  # a batch is worth more than a second server
        (18, 64, 2, (4, 8, 5)),  # slots for all that are in flight
        (3, 2, 2, (1, 1, 3)),
    ],
)
def test_cores_are_divided_among_servers_with_batches_enough(concurrency, cores, share, expected):
    found = llama_cpp.division(concurrency, cores, share)
    assert (found.servers, found.threads, found.slots) == expected
    assert found.servers * found.slots >= concurrency


def test_two_local_servers_have_their_own_port_and_key(engine, tmp_path):
    with (
        local_server(LOCAL, tmp_path, None, tmp_path / "one.log") as one,
        local_server(LOCAL, tmp_path, None, tmp_path / "two.log") as two,
    ):
        assert one.base_url != two.base_url
        assert len(one.key) >= 24 and one.key != two.key


def test_a_local_server_is_gone_after_an_exception(engine, tmp_path):
    with pytest.raises(ZeroDivisionError), local_server(LOCAL, tmp_path, None, tmp_path / "log") as address:
        assert listens(address.base_url)
        raise ZeroDivisionError
    assert not listens(address.base_url)


def test_local_servers_of_transformers_share_the_cores(monkeypatch, tmp_path):
    use_engine(monkeypatch, tmp_path, "import os\nraise SystemExit('threads: ' + os.environ['OMP_NUM_THREADS'])")
    monkeypatch.setattr(local, "cpu_count", lambda: 6)
    block = LOCAL.model_copy(update={"engine": "transformers"})
    with (
        pytest.raises(EndpointError, match="threads: 3;"),
        local_server(block, tmp_path, None, tmp_path / "log", share=2),
    ):
        pytest.fail("it never came up")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_every_engine_is_told_to_listen_on_loopback(monkeypatch, tmp_path, engine):
    monkeypatch.setattr(local, "program_of", lambda endpoint: endpoint.engine)
    words, _ = local._command(LOCAL.model_copy(update={"engine": engine}), tmp_path, None, [4567], 1)
    assert words[words.index("--host") + 1] == "127.0.0.1" and words[words.index("--port") + 1] == "4567"


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from pathlib import Path
from realm.core.profile import Endpoint
from realm.serving import local
folder = Path(sys.argv[1])
local._command = lambda e, f, v, ports, s: ([sys.executable, str(folder / "engine.py"), *map(str, ports)], "fake")
block = Endpoint(engine="llama.cpp", model="stub", max_new_tokens=8)
with local.local_server(block, folder, None, folder / "log") as address:
    print(address.base_url, flush=True)
    time.sleep(60)
"""


def wait_until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_local_server_does_not_outlive_its_parent(engine, tmp_path, ending):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        base_url = parent.stdout.readline().strip()
        assert listens(base_url)
        os.kill(parent.pid, ending)
        parent.wait(15)
    assert wait_until(lambda: not listens(base_url))


def test_a_server_that_dies_at_start_shows_the_last_line_of_its_log(monkeypatch, tmp_path):
    use_engine(monkeypatch, tmp_path, "print('reading weights')\nraise SystemExit('cannot read the weights')")
    log = tmp_path / "dead.log"
    started = time.monotonic()
    with pytest.raises(EndpointError) as caught, local_server(LOCAL, tmp_path, None, log):
        pytest.fail("it never came up")
    assert time.monotonic() - started < 5
    assert str(caught.value) == f"fake: the server ended at start: cannot read the weights; see {log}"
    assert caught.value.kind == "unreachable"


def test_a_server_that_never_answers_is_given_up_and_ended(monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    source = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    use_engine(monkeypatch, tmp_path, source)
    monkeypatch.setattr(local, "START_SECONDS", 1)
    with (
        pytest.raises(EndpointError, match="no sign of health in 1 s"),
        local_server(LOCAL, tmp_path, None, tmp_path / "x"),
    ):
        pytest.fail("it never came up")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_connect_ends_the_server_it_started(monkeypatch, engine, tmp_path):
    monkeypatch.setattr(local, "resolve_model", lambda name, folder: (tmp_path, None))

    async def inside():
        async with connect(LOCAL, "user", tmp_path, tmp_path) as client:
            assert listens(client.address.base_url)
            return client.address.base_url

    assert not listens(asyncio.run(inside()))
    assert (tmp_path / "user.log").exists()


# ---------------------------------------------------------------- llama.cpp's files


def back_to_transformers(weight, heads):
    """What a reader of GGUF does to a query or key projection."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(2, 1).reshape(rows, columns)


@pytest.mark.parametrize(("heads", "size"), [(1, 4), (3, 8), (9, 64)])
def test_rotary_layout_is_undone_by_its_inverse(heads, size):
    weight = np.random.default_rng(0).normal(size=(heads * size, 5))
    turned = conversion._rotary_layout(weight, heads)
    assert not np.array_equal(turned, weight)
    assert np.array_equal(back_to_transformers(turned, heads), weight)


def test_rotary_layout_interleaves_the_halves_of_each_head():
    weight = np.arange(8.0)[:, None]  # two heads of four rows
    assert conversion._rotary_layout(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_export_needs_a_vocabulary(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConversionError, match="use engine transformers or vllm"):
        export_gguf(tmp_path, None, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_export_refuses_another_architecture(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConversionError, match="architecture gpt2, only llama"):
        export_gguf(tmp_path, tmp_path / "other.gguf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_export_keeps_a_file_that_is_newer_than_the_weights(tmp_path):
    weights, target = tmp_path / "model.safetensors", tmp_path / "out.gguf"
    weights.touch()
    target.write_text("kept")
    os.utime(weights, (1, 1))
    assert export_gguf(tmp_path, None, target) == target
    os.utime(target, (0, 0))
    with pytest.raises(ConversionError):
        export_gguf(tmp_path, None, target)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    (folder / "chat_template.jinja").write_text("{{ 'flipped' }}")
    return folder


def addresses_that_listen(port):
    """Of this machine, for a TCP port, as the kernel has them."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's table is Linux's")
def test_the_default_server_listens_on_loopback_alone_and_wants_its_key(tiny, monkeypatch, tmp_path):
    from tiny_model import write_vocabulary
    from transformers import AutoModelForCausalLM

    write_vocabulary(tmp_path / "base.gguf", AutoModelForCausalLM.from_pretrained(tiny))
    monkeypatch.setattr(local, "cpu_count", lambda: 2)
    block = LOCAL.model_copy(update={"context_length": 128, "concurrency": 8})
    with local_server(block, tiny, tmp_path / "base.gguf", tmp_path / "log") as address:
        assert len(address.more) == 1
        for url in (address.base_url, *address.more):
            port = int(url.split(":")[2].split("/")[0])
            assert addresses_that_listen(port) == ["0100007F"]
            assert status(replace(address, base_url=url), address.key) == 200
            question = b'{"messages": [{"role": "user", "content": "Hello?"}]}'
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url}/chat/completions", question, timeout=30)


def test_an_exported_model_answers_like_the_original(tiny, tmp_path):
    import torch
    from tiny_model import write_vocabulary
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    write_vocabulary(tmp_path / "base.gguf", model)
    target = export_gguf(tiny, tmp_path / "base.gguf", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(target)
    assert reader.get_field("tokenizer.chat_template").contents() == "{{ 'flipped' }}"
    assert reader.get_field("llama.context_length").contents() == 512
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert "output.weight" not in kinds  # tied to the embeddings, as in the base
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.attn_norm.weight"] == "F32"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(40)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        wanted, found = model(input_ids=ids).logits, again(input_ids=ids).logits
    assert (found - wanted).norm() < 0.1 * wanted.norm()  # 8-bit noise; a wrong layout gives 0.9
