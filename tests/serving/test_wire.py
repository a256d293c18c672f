"""What a machine's environment does to a connection: proxies, certificates, keys, and interrupts."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stub_server import StubServer

from realm.conversations.conversation import Message
from realm.core import secrets
from realm.core.profile import Endpoint
from realm.core.secrets import redact
from realm.serving import local
from realm.serving.faults import EndpointError
from realm.serving.local import connect, local_server
from realm.serving.wire import is_loopback, split_query, wait_of

HELLO = [Message("user", "Hello?")]
AWAY = "https://service.invalid/v1"
LOCAL = Endpoint(engine="llama.cpp", model="stub", max_new_tokens=8, concurrency=1)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    monkeypatch.setattr(secrets, "_REGISTERED", set())
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def ask(endpoint):
    async def inside():
        async with connect(endpoint, "responder", Path(), Path()) as client:
            return (await client.complete(HELLO, 1)).text

    return asyncio.run(inside())


def away(**values):
    return Endpoint(engine="api", model="stub", base_url=AWAY, max_new_tokens=8, max_retries=0, **values)


@contextlib.contextmanager
def proxy():
    """An HTTP proxy that keeps the first lines of what it is asked and helps nobody."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self):
            asked.append(self.rfile.readline())
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_never_asked_through_a_proxy(monkeypatch, name):
    with proxy() as (url, asked), StubServer() as server:
        monkeypatch.setenv(name, url)
        assert ask(server.endpoint()).startswith("words about")
        assert ask(server.endpoint().model_copy(update={"base_url": server.url.replace("127.0.0.1", "localhost")}))
        assert asked == []
        with pytest.raises(EndpointError):
            ask(away().model_copy(update={"base_url": "http://service.invalid/v1"}))
        assert asked  # the proxy is one, and others go through it


ENGINE = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": []}')
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def use_engine(monkeypatch, folder, source):
    script = folder / "engine.py"
    script.write_text(source)
    command = lambda e, f, v, ports, s: ([sys.executable, str(script), *map(str, ports)], "fake")  # noqa: E731
    monkeypatch.setattr(local, "_command", command)


def test_the_health_of_a_local_server_is_not_asked_of_a_proxy(monkeypatch, tmp_path):
    use_engine(monkeypatch, tmp_path, ENGINE)
    monkeypatch.setattr(local, "START_SECONDS", 20)
    with proxy() as (url, asked):
        monkeypatch.setenv("http_proxy", url)
        with local_server(LOCAL, tmp_path, None, tmp_path / "log") as address:
            assert address.base_url.startswith("http://127.0.0.1:")
        assert asked == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://me:pass-word@127.0.0.1:1", "ALL_PROXY names a SOCKS proxy.* pip install socksio"),
        ("https_proxy", "::::", "https_proxy holds no address of a proxy"),
        ("HTTPS_PROXY", "ftp://me:pass-word@x", "HTTPS_PROXY holds no address of a proxy"),
        ("SSL_CERT_FILE", "/no/such/bundle.pem", "SSL_CERT_FILE names a file that is not there"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE names a file that holds no certificates"),
    ],
)
def test_a_variable_that_keeps_us_from_asking_is_named_and_its_value_not_shown(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(EndpointError, match=words) as caught:
        ask(away())
    assert "pass-word" not in str(caught.value) and "\n" not in str(caught.value)
    with StubServer() as server:  # this machine is asked without any of them
        assert ask(server.endpoint()).startswith("words about")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.2/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        ("http://localhost.example.com/v1", False),
        ("http://10.0.0.1/v1", False),
    ],
)
def test_loopback_is_told_by_name_and_number(url, expected):
    assert is_loopback(url) == expected


def test_an_address_with_a_query_keeps_it_behind_the_path():
    url = "https://x.example/openai/deployments/d?api-version=2024-10-21"
    assert split_query(url) == ("https://x.example/openai/deployments/d", {"api-version": "2024-10-21"})
    with StubServer() as server:
        ask(server.endpoint().model_copy(update={"base_url": f"{server.url}?api-version=1"}))
        assert server.completions == [] and server.requests[-1].path == "/v1/chat/completions?api-version=1"


def test_a_wish_to_be_left_alone_is_read_in_its_three_forms():
    assert wait_of({"retry-after": "2"}) == 2 and wait_of({"retry-after-ms": "1500"}) == 1.5
    assert wait_of({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}) > 1e6
    assert wait_of({}) is None and wait_of({"retry-after": "soon"}) is None


# ---------------------------------------------------------------- keys and headers

KEY = "sk-not-a-real-key-0123456789"


def test_a_line_break_behind_a_key_is_not_sent_and_hides_nothing(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", f"{KEY}\n")
    with StubServer() as server:
        ask(server.endpoint(api_key_env="SOME_API_KEY"))
        assert {r.authorization for r in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in redact(f"wrong key {KEY}.")


@pytest.mark.parametrize("value", [f"{KEY}\n{KEY}", "sk-“quoted”-0123456789"])
def test_a_key_that_no_header_can_carry_is_told_by_its_variable(monkeypatch, value):
    monkeypatch.setenv("SOME_API_KEY", value)
    with StubServer() as server, pytest.raises(EndpointError, match="SOME_API_KEY holds a line break or") as caught:
        ask(server.endpoint(api_key_env="SOME_API_KEY"))
    assert server.requests == [] and KEY not in str(caught.value) and "quoted" not in str(caught.value)


def test_headers_are_filled_in_from_the_environment_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("GATEWAY_CREDENTIAL", KEY)
    seen = []
    with StubServer() as server:
        send = server._server.RequestHandlerClass.do_POST

        def look(handler):
            seen.append(handler.headers)
            send(handler)

        server._server.RequestHandlerClass.do_POST = look
        headers = {"api-key": "$GATEWAY_CREDENTIAL", "X-Title": "a test for 1 $$"}
        ask(server.endpoint(headers=headers))
    assert seen[0]["api-key"] == KEY and seen[0]["X-Title"] == "a test for 1 $"
    assert redact(KEY) == "[redacted]"


@pytest.mark.parametrize(
    ("value", "words"),
    [("$NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set; headers.api-key of the profile"), ("a $ b", "is a dollar")],
)
def test_a_header_that_cannot_be_filled_in_is_one_line(value, words):
    with StubServer() as server, pytest.raises(EndpointError, match=words):
        ask(server.endpoint(headers={"api-key": value}))


def test_extra_fields_reach_the_service():
    with StubServer() as server:
        ask(server.endpoint(extra_body={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}))
        body = server.completions[0].body
    assert body["top_k"] == 5 and body["chat_template_kwargs"] == {"enable_thinking": False}


# ---------------------------------------------------------------- interrupts

STARTING = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from pathlib import Path
from realm.core.profile import Endpoint
from realm.serving import local
folder = Path(sys.argv[1])
local._command = lambda e, f, v, ports, s: ([sys.executable, str(folder / "engine.py"), *map(str, ports)], "fake")
local.resolve_model = lambda name, run_folder: (folder, None)
async def inside():
    async with local.connect(Endpoint(engine="llama.cpp", model="stub", max_new_tokens=8), "user", folder, folder):
        print("it came up", flush=True)
try:
    asyncio.run(inside())
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_ends_the_start_of_a_local_server_at_once(monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    (tmp_path / "engine.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", STARTING, str(tmp_path)], stderr=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + 30
        while not pid.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        interrupted = time.monotonic()
        os.kill(parent.pid, signal.SIGINT)
        assert parent.wait(30) == 130, parent.stderr.read()
        assert time.monotonic() - interrupted < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
