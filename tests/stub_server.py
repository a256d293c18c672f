"""A threaded OpenAI-compatible server on the loopback address: scripted replies and faults, every request kept."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from realm.core.profile import Endpoint


@dataclass(frozen=True)
class Fault:
    """An answer other than a plain completion. ``payload`` replaces the usual body, ``page`` is sent as HTML."""

    status: int
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    payload: dict[str, Any] | None = None
    page: str = ""
    delay: float = 0.0  # seconds

    def body(self) -> bytes:
        usual = {"error": {"message": self.message, "type": "stub", "code": None}}
        return (self.page or json.dumps(self.payload or usual)).encode()


BAD_KEY = Fault(401, "Incorrect API key provided")
NO_MODEL = Fault(404, "The model does not exist")
TOO_LONG = Fault(400, "This model's maximum context length is 128 tokens, the request has 900")
BUSY = Fault(429, "Rate limit reached", headers={"Retry-After": "0"})
BROKEN = Fault(500, "internal error")
NULL_CONTENT = Fault(200, payload={"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]})
EMPTY_CHOICES = Fault(200, payload={"choices": []})


def answered(content: Any, finish: str | None = "stop", usage: dict[str, Any] | None = None, **fields: Any) -> Fault:
    """A completion with another end than a plain one, or other fields in its message; it counts no tokens."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **fields}}
    return Fault(200, payload={"choices": [choice], **({"usage": usage} if usage else {})})


@dataclass(frozen=True)
class BreaksOff:
    """A streamed answer whose connection ends in the middle."""

    text: str


@dataclass(frozen=True)
class Raw:
    """A body sent as it is. ``length``: what is announced; if that is more, the connection ends in mid-body."""

    body: bytes
    length: int | None = None
    kind: str = "application/json"


@dataclass(frozen=True)
class Trickle:
    """A good answer, in two halves that far apart."""

    seconds: float


Answer = str | Fault | BreaksOff | Raw | Trickle


@dataclass(frozen=True)
class Request:
    path: str
    authorization: str
    body: dict[str, Any]

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(m["role"], m["content"]) for m in self.body["messages"]]


def echo_digest(body: dict[str, Any]) -> str:
    """The default reply: a function of the messages and nothing else."""
    digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
    return f"words about {digest[:12]}"


class StubServer:
    """``script`` is used up first, one entry a completion; after it every reply comes from ``reply``."""

    def __init__(self, reply: Callable[[dict[str, Any]], Answer] = echo_digest, models: Fault | None = None):
        self.reply, self.models = reply, models
        self.script: list[Answer | None] = []  # None: the usual reply
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.seconds = 0.0  # what a plain completion takes
        self.pause = 0.0  # after each word of a streamed one
        self.finish_reason = "stop"  # of a streamed one
        self.given_up = threading.Event()  # a client left in the middle of a streamed one
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def completions(self) -> list[Request]:
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    def endpoint(self, **values: Any) -> Endpoint:
        """A profile's block that points here; patience is short, so that tests are."""
        chosen = {"max_new_tokens": 16, "timeout_seconds": 5.0, "max_retries": 0, "concurrency": 4, **values}
        return Endpoint(engine="api", model="stub", base_url=self.url, **chosen)

    def next_answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            scripted = self.script.pop(0) if self.script else None
        return scripted if scripted is not None else self.reply(request.body)

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_of(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each reply waits for a delayed acknowledgement

        def do_GET(self) -> None:
            stub.requests.append(Request(self.path, self.headers.get("Authorization", ""), {}))
            listing = {"object": "list", "data": [{"id": "stub", "object": "model"}]}
            self._send(stub.models or Fault(200, payload=listing))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            if len(sent := self.rfile.read(length)) < length:
                self.close_connection = True  # the client went away while it was asking
                return
            body = json.loads(sent)
            with stub.lock:
                stub.busy += 1
                stub.most_busy = max(stub.most_busy, stub.busy)
            answer = stub.next_answer(Request(self.path, self.headers.get("Authorization", ""), body))
            time.sleep(answer.delay if isinstance(answer, Fault) else stub.seconds)
            with stub.lock:
                stub.busy -= 1
            if isinstance(answer, Raw | Trickle):
                self._send_oddly(answer)
            elif body.get("stream") and not isinstance(answer, Fault):
                self._stream(answer)
            else:
                self._send(answer if isinstance(answer, Fault) else Fault(200, payload=_completion(answer)))

        def _send_oddly(self, answer: Raw | Trickle) -> None:
            whole = json.dumps(_completion("late words")).encode()
            raw = answer if isinstance(answer, Raw) else Raw(whole[:40], len(whole))
            try:
                self.send_response(200)
                self.send_header("Content-Type", raw.kind)
                self.send_header("Content-Length", str(raw.length or len(raw.body)))
                self.end_headers()
                self.wfile.write(raw.body)
                if isinstance(answer, Trickle):
                    time.sleep(answer.seconds)
                    self.wfile.write(whole[40:])
            except ConnectionError:
                pass  # the client gave up first
            self.close_connection = True

        def _stream(self, answer: str | BreaksOff) -> None:
            broken = isinstance(answer, BreaksOff)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for word in re.findall(r"\s*\S+", answer.text if broken else answer):
                    self._event(json.dumps(_chunk(word)))
                    time.sleep(stub.pause)
                if broken:
                    self.close_connection = True
                    return
                self._event(json.dumps(_chunk(None, stub.finish_reason)))
                self._event("[DONE]")
                self.wfile.write(b"0\r\n\r\n")
            except ConnectionError:
                self.close_connection = True
                stub.given_up.set()

        def _event(self, data: str) -> None:
            line = f"data: {data}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

        def _send(self, answer: Fault) -> None:
            payload = answer.body()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "text/html" if answer.page else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except ConnectionError:
                self.close_connection = True  # the client gave up first

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _chunk(text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    delta = {"content": text} if text else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "stub", "object": "chat.completion.chunk", "created": 0, "model": "stub", "choices": [choice]}


def _completion(text: str) -> dict[str, Any]:
    return {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
