"""The laptop's server: llama.cpp with the weights of a merged model.

It keeps each conversation's KV cache, so a round reads only what is new. ``python -m realm.serving.llama_cpp --model
FILE --name NAME --ports N N`` serves the OpenAI protocol on the loopback address, by one server a port; the key
comes from the environment.
"""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "REALM_SERVER_API_KEY"
LEAST_BATCH = 4  # requests at once that make a server of its own worth while


@dataclass(frozen=True)
class Division:
    """How an endpoint divides its cores: so many servers, with so many threads and requests at once each."""

    servers: int
    threads: int
    slots: int


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


def serve(model: Path, ports: list[int], name: str, slots: int, context_length: int, threads: int) -> None:
    """Serve until killed, by one server a port; the file's pages are in memory once."""
    servers = [_server(model, port, name, slots, context_length, threads) for port in ports]
    print(f"serving {name} at {', '.join(s.listening_address for s in servers)}", flush=True)
    threading.Event().wait()


def _server(model: Path, port: int, name: str, slots: int, context_length: int, threads: int):
    """Sampling is by top-p and temperature, what the protocol has, and nothing else."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context_length
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.sampling.samplers = "top_p;temperature"
    parameters.ui = False
    if key := os.environ.get(KEY_VARIABLE):
        parameters.api_keys = [key]
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a GGUF model on the loopback address.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ports", type=int, required=True, nargs="+")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    serve(given.model, given.ports, given.name, given.slots, given.context_length, given.threads)
