"""The laptop's server: llama.cpp with the weights of a merged model, or with any GGUF file as it is.

It keeps each conversation's KV cache, so a round reads only what is new. ``python -m realm.serving.llama_cpp --model
FILE --name NAME --ports N N`` serves the OpenAI protocol on the loopback address, by one server a port; the key
comes from the environment. With ``--program`` it is a ``llama-server`` that serves: one built for this machine is
faster than the packaged one, and may have a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "REALM_SERVER_API_KEY"
PROGRAM_VARIABLE = "REALM_LLAMA_SERVER"
BUNDLED = "bundled"
LEAST_BATCH = 4  # requests at once that make a server of its own worth while
SAMPLERS = "top_p;temperature"  # what the protocol has, and nothing else


@dataclass(frozen=True)
class Division:
    """How an endpoint divides its cores: so many servers, with so many threads and requests at once each.

    ``program``: the ``llama-server`` that they are, None for the bundled.
    """

    servers: int
    threads: int
    slots: int
    program: str | None = None


def division(concurrency: int, cores: int, share: int) -> Division:
    """For ``cores`` that ``share`` endpoints use at a time.

    A server's threads wait for each other after every operation, and for the one that samples; servers do not wait.
    So there are as many as there are cores, while each has requests enough for a batch. The servers of all endpoints
    together may outnumber the cores: while one endpoint waits for the other's answers, its cores are of use. No more
    slots than requests at once: llama.cpp computes neighbouring slots in one batch, so idle ones between them cost
    speed; a history that loses its slot is kept in memory and comes back.
    """
    servers = max(1, min(cores, concurrency // LEAST_BATCH))
    return Division(servers, max(1, cores // (servers * share)), -(-concurrency // servers))


def chosen_division(concurrency: int, cores: int, share: int) -> Division:
    """The same where a ``llama-server`` may be in place of the bundled one: that is one server, since each would hold
    weights of its own on a GPU. Raises as ``native_program`` does."""
    program = native_program()
    if program is None:
        return division(concurrency, cores, share)
    return Division(1, max(1, cores // share), concurrency, program)


def native_program() -> str | None:
    """The ``llama-server`` to use: the one that ``$REALM_LLAMA_SERVER`` names, else one on the path; None: the bundled.

    The variable's value ``bundled`` passes over the path's. Raises EndpointError where it names no program.
    """
    named = os.environ.get(PROGRAM_VARIABLE)
    if named == BUNDLED:
        return None
    found = shutil.which(Path(named).expanduser() if named else "llama-server")
    if named and not found:
        from realm.serving.client import EndpointError  # slow to import; the server has no need of it

        fix = f"correct it, unset it, or set it to {BUNDLED}"
        raise EndpointError("failed", f"{PROGRAM_VARIABLE}={named}: no program there; {fix}")
    return found


def complaint(log: str) -> str:
    """Of a server's log, why llama.cpp could not load the model, in its own words; empty where it does not say."""
    said = re.findall(r"error loading model: (.+)", log)
    return said[-1].strip() if said else ""


def serve(model: Path, ports: list[int], name: str, slots: int, context_length: int, threads: int) -> None:
    """Serve until killed, by one server a port; the file's pages are in memory once."""
    servers = [_server(model, port, name, slots, context_length, threads) for port in ports]
    print(f"serving {name} at {', '.join(s.listening_address for s in servers)}", flush=True)
    threading.Event().wait()


def _server(model: Path, port: int, name: str, slots: int, context_length: int, threads: int):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context_length
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cont_batching = parameters.use_jinja = True
    parameters.sampling.samplers = SAMPLERS
    parameters.ui = False
    if key := os.environ.get(KEY_VARIABLE):
        parameters.api_keys = [key]
    return xllamacpp.Server(parameters)


def serve_by(program: str, model: Path, port: int, name: str, slots: int, context_length: int, threads: int) -> int:
    """Serve until killed, by a ``llama-server``; its exit code where it ends by itself, with a line on why."""
    options = {
        "--model": model,
        "--alias": name,
        "--host": "127.0.0.1",
        "--port": port,
        "--parallel": slots,
        "--ctx-size": slots * context_length,
        "--threads": threads,
        "--threads-batch": threads,
        "--samplers": SAMPLERS,
    }
    command = [program, *(str(word) for pair in options.items() for word in pair), "--cont-batching", "--jinja"]
    # A key among the options would show in the list of processes.
    environment = {**os.environ, "LLAMA_API_KEY": os.environ.get(KEY_VARIABLE, "")}
    print(f"serving {name} by {program}", flush=True)
    # The signal goes to the server too. Whoever waits for us must find it gone, or it would not be killed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode
    except OSError as error:
        done = f"cannot be started ({error.strerror})"
    how = done if isinstance(done, str) else f"ended by {signal.Signals(-done).name}" if done < 0 else f"ended ({done})"
    print(f"{program} {how}; set {PROGRAM_VARIABLE} to another llama-server, or to {BUNDLED}", flush=True)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve a GGUF model on the loopback address.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ports", type=int, required=True, nargs="+")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--program", help="a llama-server, instead of the bundled one; it has the first port")
    given = parser.parse_args()
    shape = (given.name, given.slots, given.context_length, given.threads)
    if given.program:
        return serve_by(given.program, given.model, given.ports[0], *shape)
    serve(given.model, given.ports, *shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
