"""Reaching an endpoint: a service at its address, or a local server that is started, waited for and always ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from string import Template

from joblib import cpu_count

from realm.core.files import REPOSITORY
from realm.core.profile import Endpoint
from realm.core.progress import Bar
from realm.core.secrets import register_secret
from realm.models import assets
from realm.models.gguf import export_gguf
from realm.serving import gpus, llama_cpp
from realm.serving.client import Address, Client
from realm.serving.faults import EndpointError
from realm.serving.untrained import untrained
from realm.serving.words import endpoint_words

START_SECONDS = 300
START_SECONDS_OF_VLLM = 1_800  # weights of 7B come over a network, and kernels and graphs are made before it answers
ENGINES_WITH_KEYS = ("llama.cpp", "vllm")


@contextlib.asynccontextmanager
async def connect(
    endpoint: Endpoint, role: str, run_folder: Path, log_folder: Path, *, share: int = 1, number: int = 0
) -> AsyncIterator[Client]:
    """A checked client: for engine ``api`` of the service, otherwise of a local server started for it.

    ``role`` names the endpoint in errors and logs. ``share``: how many local endpoints divide cores and GPUs, of which
    this is the ``number``-th, counted from 0.
    Raises EndpointError with one line if it cannot be reached.
    """
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        place = reach(endpoint, role, run_folder, log_folder, share=share, number=number, stop=stop)
        entering = asyncio.ensure_future(asyncio.to_thread(stack.enter_context, place))
        waited = Bar(desc=f"starting the server of {role}", unit="", disable=endpoint.engine == "api")
        try:
            with waited:
                address = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: it is told, and awaited, or the server that it starts would stay.
            stop.set()
            await asyncio.wait([entering])
            raise
        client = Client(address, endpoint, role, endpoint_words(endpoint, run_folder))
        try:
            await client.check()
            yield client
        finally:
            await client.close()


@contextlib.contextmanager
def reach(
    endpoint: Endpoint,
    role: str,
    run_folder: Path,
    log_folder: Path,
    *,
    share: int = 1,
    number: int = 0,
    stop: threading.Event | None = None,
) -> Iterator[Address]:
    """The address of an endpoint, with a local server behind it where one is needed.

    An interrupt, or ``stop`` from another thread, ends the wait for that server at once. Raises as ``connect`` does,
    and ConversionError.
    """
    if endpoint.engine == "api":
        headers = {name: _filled_in(name, value) for name, value in endpoint.headers.items()}
        yield Address(endpoint.base_url, endpoint.model, _key_from(endpoint.api_key_env), headers=headers)
        return
    # A GGUF file is served as it is, whatever its architecture.
    served = assets.gguf_of(endpoint.model) if endpoint.engine == "llama.cpp" else None
    folder, vocabulary = (served, None) if served else resolve_model(endpoint.model, run_folder)
    log = log_folder / f"{role}.log"
    with local_server(endpoint, folder, vocabulary, log, share=share, number=number, stop=stop) as address:
        yield address


def _key_from(variable: str | None) -> str:
    return _secret(variable, "the key is expected there") if variable else ""


def _filled_in(name: str, value: str) -> str:
    """A header's value with ``$NAME`` replaced from the environment; ``$$`` is a dollar."""
    try:
        names = Template(value).get_identifiers()
        return Template(value).substitute({n: _secret(n, f"headers.{name} of the profile wants it") for n in names})
    except ValueError:
        raise EndpointError(
            "refused", f"headers.{name} of the profile: $ is followed by no name of a variable; $$ is a dollar"
        ) from None


def _secret(variable: str, use: str) -> str:
    """The value of a variable of the environment, as a header can carry it. Raises EndpointError without showing it."""
    value = os.environ.get(variable, "")
    register_secret(value)
    if not value.strip():
        raise EndpointError("refused", f"environment variable {variable} is not set; {use}")
    value = value.strip()  # a line break at its end comes from the file that it was read from
    register_secret(value)
    if not (value.isascii() and value.isprintable()):
        raise EndpointError(
            "refused",
            f"environment variable {variable} holds a line break or another character that no key has; set it again",
        )
    return value


def resolve_model(name: str, run_folder: Path) -> tuple[Path, Path | None]:
    """(model folder, GGUF with its vocabulary or None) of an asset, a folder, ``stage:02_usergpt_sft``, or
    ``base:02_usergpt_sft``: what that stage started from, served as what it became."""
    kind, _, of = name.partition(":")
    if kind not in ("stage", "base"):
        return assets.model(name), assets.gguf_of(name)
    stage = Path(run_folder) / of
    merged = stage / "merged"
    note = stage / "base_model.txt"
    for path in (merged, note):
        if not path.exists():
            why = f"missing; run the stage that trains this model first, notebooks/{of}.ipynb"
            raise EndpointError("failed", f"{path}: {why}")
    base = note.read_text(encoding="utf-8").strip()
    return untrained(stage, base) if kind == "base" else merged, assets.gguf_of(base)


@contextlib.contextmanager
def local_server(
    endpoint: Endpoint,
    folder: Path,
    vocabulary: Path | None,
    log: Path,
    *,
    share: int = 1,
    number: int = 0,
    stop: threading.Event | None = None,
) -> Iterator[Address]:
    """Serve a model folder, or a GGUF file, on free loopback ports; yields when it is healthy, and always ends it.

    It ends with this process, however this one ends. Raises EndpointError with the log's last line and its place
    if the server does not come up.
    """
    key = secrets.token_urlsafe(24) if endpoint.engine in ENGINES_WITH_KEYS else ""
    # The other engines batch in one server, which has all cores of the endpoint, as for one request.
    if endpoint.engine == "llama.cpp":
        division = llama_cpp.chosen_division(endpoint.concurrency, cpu_count(), share)
    else:
        division = llama_cpp.division(1, cpu_count(), share)
    ports = _free_ports(division.servers)
    command, name = _command(endpoint, folder, vocabulary, ports, division)
    environment = {**os.environ, llama_cpp.KEY_VARIABLE: key, "VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1"}
    if endpoint.engine == "vllm":
        mine = gpus.place(endpoint, gpus.seen(), share, number)
        command += mine.options(endpoint.tensor_parallel)
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(mine.gpus)} if mine.gpus else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    if endpoint.engine == "transformers":
        # Its list of models fails where no Hub cache was ever made; the model itself is a local folder.
        hub = assets.cache_folder() / "hub"
        hub.mkdir(parents=True, exist_ok=True)
        environment |= {"HF_HUB_CACHE": str(hub), "OMP_NUM_THREADS": str(division.threads)}
    if endpoint.environment:  # what its program builds at run time, it builds with its own tools
        environment["PATH"] = f"{_programs(endpoint.environment)}{os.pathsep}{environment.get('PATH', '')}"
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "realm.serving.child", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    first, *more = (f"http://127.0.0.1:{port}/v1" for port in ports)
    address = Address(first, name, key, tuple(more))
    seconds = endpoint.start_seconds or (START_SECONDS_OF_VLLM if endpoint.engine == "vllm" else START_SECONDS)
    try:
        _wait_healthy(guard, address, log, stop or threading.Event(), seconds)
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
        # A model of ours is written beside its folder, once.
        gguf = folder if folder.is_file() else export_gguf(folder, vocabulary, folder / "model-q8_0.gguf")
        name = (folder.stem if folder.is_file() else folder.name).replace(",", "-")  # a comma would part two names
        options = {
            "--model": gguf,
            "--name": name,
            "--slots": division.slots,
            "--context-length": endpoint.context_length,
            "--threads": division.threads,
            **({"--program": division.program} if division.program else {}),
        }
        words = [str(word) for pair in options.items() for word in pair]
        return [sys.executable, "-m", "realm.serving.llama_cpp", *words, "--ports", *map(str, ports)], name
    if endpoint.engine == "transformers":
        program = program_of(endpoint)
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
        program_of(endpoint),
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


def program_of(endpoint: Endpoint) -> str:
    """The engine's program: in the endpoint's environment, else beside this interpreter or on the path.

    Raises EndpointError with the command that makes such an environment.
    """
    name = endpoint.engine
    if endpoint.environment:
        beside, found = _programs(endpoint.environment) / name, None
    else:
        beside, found = Path(sys.executable).with_name(name), shutil.which(name)
    found = str(beside) if beside.exists() else found
    if not found:
        where = f"{beside} is missing" if endpoint.environment else f"the program {name!r} is not installed"
        raise EndpointError(
            "failed",
            f"engine {name}: {where}; `./run_all.sh --serving-env` makes an environment that has vllm, "
            "and the endpoint's key `environment` names its folder, .venv-serving",
        )
    return found


def _programs(environment: str) -> Path:
    return REPOSITORY / Path(environment).expanduser() / "bin"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all held at once, or one could come twice
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_healthy(guard: subprocess.Popen, address: Address, log: Path, stop: threading.Event, seconds: float) -> None:
    # Past any proxy of the environment: it would get the key, and its loopback is another machine's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    header = {"Authorization": f"Bearer {address.key}"}
    waiting = [urllib.request.Request(f"{url}/models", headers=header) for url in (address.base_url, *address.more)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stop.is_set():
        if guard.poll() is not None:
            raise EndpointError("unreachable", f"{address.model}: the server ended at start: {_reason(log)}; see {log}")
        try:
            while waiting:
                with opener.open(waiting[0], timeout=5):
                    waiting.pop(0)
            return
        except (urllib.error.URLError, OSError):
            stop.wait(0.2)
    if stop.is_set():
        raise EndpointError("unreachable", f"{address.model}: its start was interrupted")
    raise EndpointError(
        "unreachable", f"{address.model}: no sign of health in {seconds:g} s (start_seconds); see {log}"
    )


def _reason(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return (llama_cpp.complaint(text) or (text.splitlines() or ["no output"])[-1])[:200]
