"""Endpoints: any OpenAI-compatible service behind one client, and local servers that always end.

The client is the ``openai`` package; what is added here are one-line errors, bounds on what is in flight and on
how fast it is sent, and keys that come from the environment and go nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
from joblib import cpu_count
from tqdm import tqdm

from realm import assets, llama_cpp
from realm.conversation import Message
from realm.profile import Endpoint
from realm.provenance import redact, register_secret

T = TypeVar("T")
START_SECONDS = 300
CHECK_SECONDS = 3  # for a service's list of models; whoever is slower than this is not there
ENGINES_WITH_KEYS = ("llama.cpp", "vllm")


class EndpointError(RuntimeError):
    """An endpoint that does not do what is asked; one line with address, reason and fix.

    ``kind``: ``unreachable``, ``refused`` (key, permission or model name), ``context`` (too long), ``failed``.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(redact(message))
        self.kind = kind


@dataclass(frozen=True)
class Address:
    """Where an endpoint listens. The key does not show in ``repr``. ``more``: further servers of the same model."""

    base_url: str
    model: str
    key: str = ""
    more: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Address({self.model} at {self.base_url})"


@dataclass(frozen=True)
class Reply:
    """One answer. Token counts are the server's; 0 where it sends none.

    ``cached_tokens``: those of the prompt that it had read before; None where it does not tell.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first error ends the others and is raised by itself, not wrapped in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [t.result() for t in tasks]


# ---------------------------------------------------------------- client


class Pace:
    """Lets requests start evenly, at most ``per_minute`` in any minute; None lets all start at once."""

    def __init__(self, per_minute: int | None):
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, *_: object) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)


class Client:
    """Chat completions against one address, within the concurrency and rate of its endpoint.

    Of several servers at that address a request goes to the least busy, and of equally busy ones to the home of
    the fewest conversations; a conversation stays with the one that has read its history.
    """

    def __init__(self, address: Address, endpoint: Endpoint, role: str):
        self.address, self.endpoint, self.role = address, endpoint, role
        self._gate = asyncio.Semaphore(endpoint.concurrency)
        pace = Pace(endpoint.requests_per_minute)
        self._openai = openai.AsyncOpenAI(
            base_url=address.base_url,
            # Servers without keys ignore it, and the package refuses to start without one.
            api_key=address.key or "none",
            timeout=endpoint.timeout_seconds,
            max_retries=endpoint.max_retries,
            # Under the package's retries: they are requests too.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [pace.wait]}),
        )
        self._servers = [self._openai, *(self._openai.with_options(base_url=url) for url in address.more)]
        self._busy = [0] * len(self._servers)
        self._at_home: list[set[str]] = [set() for _ in self._servers]  # the conversations of each

    async def check(self) -> None:
        """Ask for the list of models; raises EndpointError if nothing answers or the key or model is refused."""
        # A local server was seen to be healthy, and may be slow on a busy machine.
        patience = CHECK_SECONDS if self.endpoint.engine == "api" else self.endpoint.timeout_seconds
        quick = self._openai.with_options(timeout=patience, max_retries=0)
        listed: set[str] = set()
        try:
            listed = {model.id for model in (await quick.models.list()).data}
        except openai.NotFoundError:
            pass  # some services have no list of models
        except openai.OpenAIError as error:
            raise self._explain(error, patience) from None
        except (AttributeError, TypeError, ValueError):  # the package checks the shape of nothing
            pass
        if self.endpoint.engine == "api" and self.address.model not in listed:
            await self._try_model()

    async def _try_model(self) -> None:
        """Ask for one token: a list may leave out what is served, but a wrong name must not show after hours."""
        try:
            await self.complete([Message("user", "Hello")], 0, max_new_tokens=1)
        except EndpointError as error:
            if error.kind == "refused":
                raise

    async def complete(
        self,
        messages: Sequence[Message],
        seed: int,
        *,
        conversation: str | None = None,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Reply:
        """One completion; ``conversation`` names the one that it goes on with.

        Retries (exponential, with jitter, ``Retry-After`` honoured) are the openai package's. Raises EndpointError
        when they are used up or the error is final.
        """
        async with self._gate, self._server(conversation) as server:
            try:
                answer = await server.chat.completions.create(
                    **self._request(messages, seed, temperature, max_new_tokens)
                )
            except openai.OpenAIError as error:
                raise self._explain(error) from None
            except ValueError:  # the package lets a body that is no JSON through as it is
                raise EndpointError("failed", f"{self._name}: sent an answer that is no valid JSON") from None
        try:
            choice, usage = answer.choices[0], answer.usage
            text = choice.message.content
        except (AttributeError, IndexError, TypeError):  # the package checks the shape of nothing
            text = None
        if not isinstance(text, str):
            raise EndpointError("failed", f"{self._name}: sent an answer without text")
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
        return Reply(text, choice.finish_reason or "", *counts, cached)

    @contextlib.asynccontextmanager
    async def _server(self, conversation: str | None) -> AsyncIterator[openai.AsyncOpenAI]:
        number = next((n for n, names in enumerate(self._at_home) if conversation in names), None)
        if number is None:
            number = min(range(len(self._busy)), key=lambda n: (self._busy[n], len(self._at_home[n])))
        if conversation is not None:
            self._at_home[number].add(conversation)
        self._busy[number] += 1
        try:
            yield self._servers[number]
        finally:
            self._busy[number] -= 1

    async def stream(self, messages: Sequence[Message], seed: int, hear: Callable[[str], None]) -> str:
        """One completion, each piece given to ``hear`` as it comes; returns the finish reason.

        Ended when cancelled, at the server too. Raises EndpointError, also in the middle of an answer.
        """
        heard, reason = False, ""
        try:
            async with (
                self._gate,
                await self._openai.chat.completions.create(**self._request(messages, seed), stream=True) as answer,
            ):
                async for chunk in answer:
                    for choice in chunk.choices or ():  # a chunk that only counts tokens has none
                        heard, reason = True, choice.finish_reason or reason
                        if choice.delta.content:
                            hear(choice.delta.content)
        except openai.OpenAIError as error:
            if heard and isinstance(error, openai.APIConnectionError):
                raise EndpointError("unreachable", f"{self._name}: broke off in the middle of an answer") from None
            raise self._explain(error) from None
        if not heard:
            raise EndpointError("failed", f"{self._name}: sent an answer without text")
        return reason

    def _request(
        self,
        messages: Sequence[Message],
        seed: int,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> dict[str, Any]:
        return {
            "model": self.address.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": self.endpoint.temperature if temperature is None else temperature,
            "top_p": self.endpoint.top_p,
            "max_tokens": max_new_tokens or self.endpoint.max_new_tokens,
            "seed": seed,
        }

    async def complete_all(
        self, requests: Sequence[tuple[Sequence[Message], int]], desc: str, **options: Any
    ) -> list[Reply]:
        """Completions for (messages, seed) pairs, in order, with a progress bar. The first error ends it."""
        bar = tqdm(total=len(requests), desc=desc, unit="turn")

        async def one(messages: Sequence[Message], seed: int) -> Reply:
            reply = await self.complete(messages, seed, **options)
            bar.update()
            return reply

        with bar:
            return await together(one(m, s) for m, s in requests)

    async def close(self) -> None:
        await self._openai.close()

    @property
    def _name(self) -> str:
        return f"{self.role} ({self.address.model} at {self.address.base_url})"

    def _explain(self, error: openai.OpenAIError, patience: float | None = None) -> EndpointError:
        if isinstance(error, openai.APITimeoutError):
            seconds = patience or self.endpoint.timeout_seconds
            return EndpointError("unreachable", f"{self._name}: no answer in {seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            fix = "start it, or correct base_url"
            return EndpointError("unreachable", f"{self._name}: nothing answers there; {fix}")
        status = getattr(error, "status_code", None)
        text = redact(" ".join(str(error).split()))[:300]
        if status in (401, 403):
            key = self.endpoint.api_key_env or "api_key_env, which is not set"
            return EndpointError("refused", f"{self._name}: the key is refused ({status}); check {key}")
        if status == 404:
            return EndpointError("refused", f"{self._name}: no such model or path (404); correct model or base_url")
        if status == 429:
            fix = "wait, or lower concurrency or requests_per_minute in the profile"
            return EndpointError("unreachable", f"{self._name}: too many requests (429) after all retries; {fix}")
        if status == 400 and "context" in text.lower():
            return EndpointError("context", f"{self._name}: the conversation is too long: {text}")
        return EndpointError("failed", f"{self._name}: {text}")


# ---------------------------------------------------------------- reaching an endpoint


@contextlib.asynccontextmanager
async def connect(
    endpoint: Endpoint, role: str, run_folder: Path, log_folder: Path, *, share: int = 1
) -> AsyncIterator[Client]:
    """A checked client: for engine ``api`` of the service, otherwise of a local server started for it.

    ``role`` names the endpoint in errors and logs. ``share``: how many local endpoints divide the cores.
    Raises EndpointError with one line if it cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        place = reach(endpoint, role, run_folder, log_folder, share=share)
        address = await asyncio.to_thread(stack.enter_context, place)
        client = Client(address, endpoint, role)
        try:
            await client.check()
            yield client
        finally:
            await client.close()


@contextlib.contextmanager
def reach(endpoint: Endpoint, role: str, run_folder: Path, log_folder: Path, *, share: int = 1) -> Iterator[Address]:
    """The address of an endpoint, with a local server behind it where one is needed.

    An interrupt ends the wait for that server at once. Raises as ``connect`` does, and ConversionError.
    """
    if endpoint.engine == "api":
        yield Address(endpoint.base_url, endpoint.model, _key_from(endpoint.api_key_env))
        return
    folder, vocabulary = resolve_model(endpoint.model, run_folder)
    with local_server(endpoint, folder, vocabulary, log_folder / f"{role}.log", share=share) as address:
        yield address


def _key_from(variable: str | None) -> str:
    if not variable:
        return ""
    if not os.environ.get(variable):
        raise EndpointError("refused", f"environment variable {variable} is not set; the key is expected there")
    register_secret(os.environ[variable])
    return os.environ[variable]


def resolve_model(name: str, run_folder: Path) -> tuple[Path, Path | None]:
    """(model folder, GGUF with its vocabulary or None) of an asset, a folder, or ``stage:02_usergpt_sft``.

    Raises EndpointError if the stage has not run.
    """
    if not name.startswith("stage:"):
        return assets.model(name), assets.gguf_of(name)
    stage = Path(run_folder) / name.removeprefix("stage:")
    merged = stage / "merged"
    note = stage / "base_model.txt"
    for path in (merged, note):
        if not path.exists():
            raise EndpointError("failed", f"{path}: missing; run the stage that trains this model first")
    return merged, assets.gguf_of(note.read_text(encoding="utf-8").strip())


@contextlib.contextmanager
def local_server(
    endpoint: Endpoint, folder: Path, vocabulary: Path | None, log: Path, *, share: int = 1
) -> Iterator[Address]:
    """Serve a model folder on free loopback ports, by one process; yields when it is healthy, and always ends it.

    It ends with this process, however this one ends. Raises EndpointError with the log's last line and its place
    if the server does not come up.
    """
    key = secrets.token_urlsafe(24) if endpoint.engine in ENGINES_WITH_KEYS else ""
    # The other engines batch in one server, which has all cores of the endpoint, as for one request.
    at_once = endpoint.concurrency if endpoint.engine == "llama.cpp" else 1
    division = llama_cpp.division(at_once, cpu_count(), share)
    ports = _free_ports(division.servers)
    command, name = _command(endpoint, folder, vocabulary, ports, division)
    environment = {**os.environ, llama_cpp.KEY_VARIABLE: key, "VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    if endpoint.engine == "transformers":
        # Its list of models fails where no Hub cache was ever made; the model itself is a local folder.
        hub = assets.cache_folder() / "hub"
        hub.mkdir(parents=True, exist_ok=True)
        environment |= {"HF_HUB_CACHE": str(hub), "OMP_NUM_THREADS": str(division.threads)}
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "realm.guard", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    first, *more = (f"http://127.0.0.1:{port}/v1" for port in ports)
    address = Address(first, name, key, tuple(more))
    try:
        _wait_healthy(guard, address, log)
        yield address
    finally:
        guard.stdin.close()
        try:
            guard.wait(15)
        except subprocess.TimeoutExpired:
            guard.kill()


def _command(
    endpoint: Endpoint, folder: Path, vocabulary: Path | None, ports: Sequence[int], division: llama_cpp.Division
) -> tuple[list[str], str]:
    """The engine's command line and the name under which it serves the model."""
    if endpoint.engine == "llama.cpp":
        # Beside a model of ours; beside the cached asset otherwise: written once either way.
        gguf = llama_cpp.export_gguf(folder, vocabulary, folder / "model-q8_0.gguf")
        options = {
            "--model": gguf,
            "--name": folder.name,
            "--slots": division.slots,
            "--context-length": endpoint.context_length,
            "--threads": division.threads,
        }
        words = [str(word) for pair in options.items() for word in pair]
        return [sys.executable, "-m", "realm.llama_cpp", *words, "--ports", *map(str, ports)], folder.name
    if endpoint.engine == "transformers":
        program = _program("transformers")
        return [
            program,
            "serve",
            str(folder),
            "--continuous-batching",
            "--host",
            "127.0.0.1",
            "--port",
            str(ports[0]),
        ], str(folder)
    return [
        _program("vllm"),
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(ports[0]),
        "--served-model-name",
        folder.name,
        "--max-model-len",
        str(endpoint.context_length),
    ], folder.name


def _program(name: str) -> str:
    """The script beside this interpreter, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise EndpointError(
            "failed", f"engine {name}: the program {name!r} is not installed; pip install 'realm-repro[gpu]'"
        )
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all held at once, or one could come twice
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_healthy(guard: subprocess.Popen, address: Address, log: Path) -> None:
    header = {"Authorization": f"Bearer {address.key}"}
    waiting = [urllib.request.Request(f"{url}/models", headers=header) for url in (address.base_url, *address.more)]
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if guard.poll() is not None:
            raise EndpointError(
                "unreachable", f"{address.model}: the server ended at start: {_last_line(log)}; see {log}"
            )
        try:
            while waiting:
                with urllib.request.urlopen(waiting[0], timeout=5):
                    waiting.pop(0)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EndpointError("unreachable", f"{address.model}: no sign of health in {START_SECONDS} s; see {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"
