"""What the simulation engine itself costs: ``python -m benchmarks.engine``.

Both sides are answered at once, in this process, by sentences that differ from turn to turn: what is left is the
engine's own work, the journal on disk, counting tokens, the guardrails. Conversations of three rounds, free ones, as
many at once as profile ``paper`` holds. Each size in a process of its own: milliseconds a turn, and how much more
memory is resident when all are held, with the conversations themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import psutil

from realm.core.profile import Budget, Guardrails, load_profile
from realm.dialogue.format import chat_format, load_tokenizer
from realm.serving.client import Client
from realm.serving.reply import Reply
from realm.simulation.engine import Simulation
from realm.simulation.journal import Journal
from realm.simulation.plan import plan
from realm.simulation.simulators import USERGPT

RESULTS = Path(__file__).parent / "results" / "engine.csv"
SIZES, REPETITIONS, ROUNDS, SEED, WORDS = (250, 1_000, 4_000), 3, 3, 20230823, 60
RULES = Guardrails(resample_tries=2, max_turn_characters=4_000, role_drift=True)
BUDGET = Budget(requests=None, tokens=None, dollars=None, user_price=None, responder_price=None)
VOCABULARY = [f"{a}{b}" for a in ("wor", "lan", "tem", "sil", "bra") for b in ("ding", "guage", "per", "ver", "nch")]


class Instant(Client):
    """A client whose service answers in no time; nothing else of it is another's."""

    def __init__(self, role: str):
        self.role, self.endpoint = role, load_profile("paper").simulation.responder

    async def complete(self, messages, seed, **options) -> Reply:
        await asyncio.sleep(0)  # as an answer from elsewhere, it lets others go first
        words = np.random.default_rng(seed).choice(VOCABULARY, WORDS)
        return Reply(" ".join(words) + ".", prompt_tokens=100, completion_tokens=WORDS)

    async def close(self) -> None:
        pass


async def held(count: int, folder: Path) -> dict[str, float]:
    tokenizer = load_tokenizer("smollm2-135m")
    tokens = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    with contextlib.closing(Journal(folder / "journal.sqlite")) as journal:
        sides = Instant("user"), Instant("responder")
        chat = chat_format("chatml", tokenizer)
        engine = Simulation(USERGPT, *sides, journal, ROUNDS, SEED, tokens, chat, RULES, BUDGET)
        await engine.run(plan(10, 0, []))  # threads, caches
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        talks = await engine.run(plan(count + 10, 0, []))
        seconds = time.perf_counter() - started
        grown = psutil.Process().memory_info().rss - before
    turns = sum(len(t.messages) for t in talks) - 10 * 2 * ROUNDS
    return {
        "conversations": count,
        "turns": turns,
        "milliseconds_a_turn": 1e3 * seconds / turns,
        "grown_mib": grown / 2**20,
    }


def main() -> None:
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(held(int(sys.argv[1]), Path(folder)))))
        return
    rows = []
    for repetition in range(REPETITIONS):
        for size in SIZES:
            command = [sys.executable, "-m", "benchmarks.engine", str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{size} conversations failed:\n{done.stderr[-2_000:]}")
            rows.append({"repetition": repetition, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).round(3)
    table.to_csv(RESULTS, index=False)
    middle = table.groupby("conversations")[["milliseconds_a_turn", "grown_mib"]].agg(median)
    print(middle.to_string())
    exponent = np.polyfit(np.log(SIZES), np.log(middle.milliseconds_a_turn * np.array(SIZES)), 1)[0]
    print(f"exponent_of_time={exponent:.3f}")


if __name__ == "__main__":
    main()
