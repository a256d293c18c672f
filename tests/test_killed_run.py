"""``./run_all.sh`` killed with signal 9, again and again, a harmless key changed in between: the same RealChat.

What is killed is the process that was started, by its number, in set-up, in the middle of requests, or while the
notebook goes on; whatever it had started has to end by itself. ``REALM_KILLS=20`` for more than a few moments.
And the README's way of shards, through the same entry.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from simulation_stage import SEEDS
from stub_server import echo_digest
from test_run_all import FITTING

from realm.conversations.writers import write_conversations
from realm.core.files import REPOSITORY
from realm.core.profile import load_profile

KILLS = int(os.environ.get("REALM_KILLS", "3"))
EXPORTS = ("realchat.jsonl", "realchat.parquet", "realchat_sharegpt.json", "README.md")
CONCURRENCY = 2
HARMLESS = itertools.cycle(
    [
        ("responder", "concurrency", 1),
        ("user", "timeout_seconds", 77.0),
        ("responder", "max_retries", 2),
        ("budget", "requests", 10_000),
        ("user", "requests_per_minute", 60_000),
        ("budget", "user_price", {"prompt": 0.0, "completion": 0.0}),
    ]
)


def values_of(servers):
    values = load_profile("smoke").model_dump(mode="json")
    sides = (s.endpoint(context_length=2048, concurrency=CONCURRENCY, max_retries=4) for s in servers)
    user, responder = (side.model_dump(mode="json") for side in sides)
    values["simulation"] |= {
        "user": user,
        "responder": responder,
        "free": 10,
        "seeded": 4,
        "max_rounds": 3,
        "beside": {},
    }
    values["teaching"] = None
    return values


def start(folder, values):
    """``./run_all.sh --only 03`` as a user would start it, in a session of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{scripts}:{os.environ['PATH']}"}
    environment["REALM_RUNS"] = str(folder / "runs")
    words = [REPOSITORY / "run_all.sh", "--profile", folder / "mine.yaml", "--only", "03"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def with_data(folder):
    run = folder / "runs" / "mine"
    for place in ("01_data", "02_usergpt_sft/merged"):
        (run / place).mkdir(parents=True)
    for side in ("train", "seeds", "test"):
        write_conversations(run / "01_data" / f"{side}.jsonl", SEEDS)
    (run / "02_usergpt_sft" / "merged" / "config.json").write_text("{}")
    return run / "03_simulation"


def finished(folder, values):
    process = start(folder, values)
    assert process.wait(300) == 0, (folder / "log").read_text()[-2_000:]


def asked(servers):
    return [r.body["seed"] for s in servers for r in s.completions if r.body["max_tokens"] > 1]


@pytest.fixture
def whole(servers, tmp_path):
    """What an uninterrupted run writes, and how much it asks."""
    folder = tmp_path / "whole"
    out = with_data(folder)
    finished(folder, values_of(servers))
    count = len(asked(servers))
    for server in servers:
        server.requests.clear()
    return {name: (out / name).read_bytes() for name in EXPORTS}, count


@FITTING
def test_kill_9_of_the_shell_entry_at_any_moment_loses_nothing(servers, whole, tmp_path):
    exports, count = whole
    folder, rng = tmp_path / "killed", random.Random(11)
    out = with_data(folder)
    for server in servers:
        server.seconds = 0.05
        server.reply = echo_digest
    # A tenth of the moments lies before the first request, the others are spread over all of them.
    moments = sorted(rng.randrange(-count // 10, count) for _ in range(KILLS))
    killed = 0
    for moment, (block, key, value) in zip(moments, HARMLESS, strict=False):
        values = values_of(servers)
        values["simulation"][block][key] = value
        process = start(folder, values)
        wait_for(process, servers, moment, rng)
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait(10) == -signal.SIGKILL
    finished(folder, values_of(servers))
    assert killed == KILLS
    assert {name: (out / name).read_bytes() for name in EXPORTS} == exports
    seeds = asked(servers)
    assert len(set(seeds)) == count
    assert len(seeds) - count <= killed * 2 * CONCURRENCY  # in flight when it was killed


def wait_for(process, servers, moment, rng):
    """Until so many requests were asked in all; for a negative one, a moment of set-up."""
    deadline = time.monotonic() + (rng.random() * 8 if moment < 0 else 240)
    while time.monotonic() < deadline and process.poll() is None:
        if moment >= 0 and len(asked(servers)) >= moment:
            time.sleep(rng.random() * 0.1)
            return
        time.sleep(0.005)


@FITTING
def test_shards_then_their_merge_then_stage_03_ask_nothing_twice(servers, tmp_path):
    folder = tmp_path / "sharded"
    out, values = with_data(folder), values_of(servers)
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    environment = {**os.environ, "REALM_RUNS": str(folder / "runs")}
    words = [sys.executable, "-m", "realm.simulation", "--profile", folder / "mine.yaml"]
    for more in (["--shard", "1/2"], ["--shard", "2/2"], ["--merge"]):
        subprocess.run([*words, *more], env=environment, check=True, capture_output=True)
    paid, exports = asked(servers), {name: (out / name).read_bytes() for name in EXPORTS}
    assert len(set(paid)) == len(paid)
    finished(folder, values)
    assert asked(servers) == paid
    assert {name: (out / name).read_bytes() for name in EXPORTS} == exports
