"""RealChat three ways: conversations an hour, and how time grows with rounds.

- ``authors``: the way the authors' code works. One conversation at a time, ``generate`` in process, the whole
  history read again for every turn. Re-implemented here.
- ``transformers serve``: our engine before ``transformers serve --continuous-batching``.
- ``ours``: our engine before its default server, llama.cpp.

Both sides are the packaged base model in every way, the user played by role, so that one model in process, or one
endpoint with all cores, speaks for both. transformers computes in the float32 of the weights, llama.cpp on the Q8_0
that the engine makes of them. Half of the conversations are free, half begin with a real first round of ShareGPT.
Sampling and its seeds are alike in all ways; the words are not, since each library draws in its own manner, so new
tokens a second stand beside conversations. An empty or repeated human turn is asked for again by our engine, which
pays for it, and kept by the authors' way. A conversation that ends before its last round costs its time and is not
counted.

Every run has a fresh server, with nothing in its cache. Its start and first answer are not timed, nor is the loading
of the model in process. The authors' way holds few conversations, others in each repetition: one after the other, so
that a rate needs no more of them.

Prompt tokens computed are those sent without those that the server says it had read before. transformers serve does
not say: for it the number is of all that were sent, more than it may have computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from realm.conversations.conversation import Conversation, Message
from realm.conversations.readers import read_conversations
from realm.core.profile import Budget, Endpoint, Guardrails
from realm.core.seeds import turn_seed
from realm.dialogue.format import chat_format, load_tokenizer
from realm.models import assets
from realm.serving.client import Address, Client, Reply
from realm.serving.local import reach
from realm.simulation.endings import EndReason
from realm.simulation.engine import RESPONDER_SYSTEM_PROMPT, Simulation
from realm.simulation.journal import Journal
from realm.simulation.limits import speaker
from realm.simulation.plan import Start, plan
from realm.simulation.simulators import ROLEPLAY
from realm.simulation.standing import end_reasons

RESULTS = Path(__file__).parent / "results" / "simulation.csv"
MODEL = "smollm2-135m"
SEED = 20230823
REPETITIONS = 3
CONVERSATIONS = 24  # at once, as many as profile cpu holds: batches make a server fast
ONE_BY_ONE = 2  # conversations of the authors' way in each repetition
ROUNDS, NEW_TOKENS = 3, 64
GROWTH, GROWTH_CONVERSATIONS, GROWTH_NEW_TOKENS = (2, 4, 8), 8, 24  # eight rounds of this length fit into the context
CONTEXT = 2_048
TEMPERATURE = 1.0
SEED_CHARACTERS = 600
ENGINES = {"transformers serve": "transformers", "ours": "llama.cpp"}
RULES = Guardrails(resample_tries=10, max_turn_characters=None, role_drift=False)
BUDGET = Budget(requests=None, tokens=None, dollars=None, user_price=None, responder_price=None)

Figures = dict[str, float]


def starts_of(count: int) -> list[Start]:
    """Free and seeded conversations in turn."""
    short = (c for c in read_conversations(assets.data("sharegpt")) if opens_short(c))
    both = plan(count - count // 2, count // 2, list(itertools.islice(short, count // 2)))
    free, seeded = ([s for s in both if s.mode == mode] for mode in ("free", "seeded"))
    return [s for pair in itertools.zip_longest(free, seeded) for s in pair if s]


def opens_short(conversation: Conversation) -> bool:
    first = conversation.messages[:2]
    texts = [m.content for m in first]
    plain = all(text and len(text) <= SEED_CHARACTERS and "<|" not in text for text in texts)
    return plain and [m.role for m in first] == ["user", "assistant"]


# ---------------------------------------------------------------- the authors' way


class OneByOne:
    """Holds conversations one after the other with a model in this process."""

    def __init__(self) -> None:
        folder = assets.model(MODEL)
        self.tokenizer = load_tokenizer(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self._answer([Message("user", "Hello")], 2)  # the first call is slower

    def hold(self, starts: Sequence[Start], rounds: int, new_tokens: int, seed: int) -> Figures:
        sent = made = 0
        started = time.perf_counter()
        for start in starts:
            said = list(start.opening)
            while len(said) < 2 * rounds:
                role, system = speaker(said), Message("system", RESPONDER_SYSTEM_PROMPT)
                request = ROLEPLAY.messages(said) if role == "user" else [system, *said]
                torch.manual_seed(turn_seed(start.id, len(said), seed))
                text, prompt, new = self._answer(request, new_tokens)
                said.append(Message(role, text))
                sent, made = sent + prompt, made + new
        return figures(len(starts), time.perf_counter() - started, made, sent, sent)

    def _answer(self, request: Sequence[Message], new_tokens: int) -> tuple[str, int, int]:
        """(text, tokens of the prompt, tokens made)."""
        prompt = self.tokenizer.apply_chat_template(
            [asdict(m) for m in request], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        whole = self.model.generate(
            **prompt, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=new_tokens
        )
        length = prompt["input_ids"].shape[1]
        new = whole[0, length:]
        return self.tokenizer.decode(new, skip_special_tokens=True).strip(), length, len(new)


def figures(conversations: int, seconds: float, made: int, sent: int, computed: int) -> Figures:
    return {
        "conversations": conversations,
        "seconds": seconds,
        "new_tokens": made,
        "prompt_tokens_sent": sent,
        "prompt_tokens_computed": computed,
    }


# ---------------------------------------------------------------- our engine before a server


class Counting(Client):
    """Adds up the tokens that its server says it had read before."""

    cached = 0

    async def complete(self, messages: Sequence[Message], seed: int, **options: Any) -> Reply:
        reply = await super().complete(messages, seed, **options)
        self.cached += reply.cached_tokens or 0
        return reply


def by_engine(engine: str, starts: Sequence[Start], rounds: int, new_tokens: int, seed: int) -> Figures:
    block = Endpoint(
        engine=engine,
        model=MODEL,
        temperature=TEMPERATURE,
        max_new_tokens=new_tokens,
        context_length=CONTEXT,
        concurrency=CONVERSATIONS,  # one side of each speaks at a time
    )
    with tempfile.TemporaryDirectory() as name, reach(block, "server", Path(name), Path(name)) as address:
        return asyncio.run(hold(address, block, starts, rounds, seed, Path(name)))


async def hold(
    address: Address, block: Endpoint, starts: Sequence[Start], rounds: int, seed: int, folder: Path
) -> Figures:
    tokenizer = load_tokenizer(MODEL)
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    user, responder = (Counting(address, block, role) for role in ("user", "responder"))
    with contextlib.closing(Journal(folder / "journal.sqlite")) as journal:
        engine = Simulation(
            ROLEPLAY, user, responder, journal, rounds, seed, count, chat_format("chatml", tokenizer), RULES, BUDGET
        )
        try:
            await responder.complete([Message("user", "Hello")], 0, max_new_tokens=2)
            started = time.perf_counter()
            talks = await engine.run(starts)
            seconds = time.perf_counter() - started
        finally:
            for client in (user, responder):
                await client.close()
        used = journal.usage().values()
    sent, made = sum(u.prompt_tokens for u in used), sum(u.new_tokens for u in used)
    whole = end_reasons(talks)[EndReason.MAX_ROUNDS]
    return figures(whole, seconds, made, sent, sent - user.cached - responder.cached)


# ---------------------------------------------------------------- all of them


def contests(starts: Sequence[Start], authors: OneByOne, repetition: int) -> dict[tuple[str, int], Callable]:
    """(way, rounds) -> the work of one repetition. Growth is of our way, with short turns in free conversations:
    a seed would spare a round, and more of two than of eight."""
    seed = SEED + repetition
    few = [starts[(ONE_BY_ONE * repetition + i) % len(starts)] for i in range(ONE_BY_ONE)]
    works = {("authors", ROUNDS): lambda: authors.hold(few, ROUNDS, NEW_TOKENS, seed)}
    for way, engine in ENGINES.items():
        works[way, ROUNDS] = lambda engine=engine: by_engine(engine, starts, ROUNDS, NEW_TOKENS, seed)
    free = plan(GROWTH_CONVERSATIONS, 0, [])
    for rounds in GROWTH:
        works["ours, short turns", rounds] = lambda rounds=rounds: by_engine(
            ENGINES["ours"], free, rounds, GROWTH_NEW_TOKENS, seed
        )
    return works


def main() -> None:
    starts, authors = starts_of(CONVERSATIONS), OneByOne()
    rows = []
    for repetition in range(REPETITIONS):
        for (way, rounds), work in contests(starts, authors, repetition).items():
            rows.append({"repetition": repetition, "way": way, "rounds": rounds, **work()})
            print(rows[-1], file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS, index=False)
    report_medians(table)


def report_medians(table: pd.DataFrame) -> None:
    table = table.assign(
        conversations_per_hour=3_600 * table.conversations / table.seconds,
        new_tokens_per_second=table.new_tokens / table.seconds,
        prompt_tokens_computed_per_conversation=table.prompt_tokens_computed / table.conversations,
    )
    of = lambda way, rounds: table[(table.way == way) & (table.rounds == rounds)]  # noqa: E731
    hourly = {way: median(of(way, ROUNDS).conversations_per_hour) for way in ("authors", *ENGINES)}
    for figure in ("conversations_per_hour", "new_tokens_per_second", "prompt_tokens_computed_per_conversation"):
        for way in hourly:
            print(f"{figure}_{way.replace(' ', '_')}={median(of(way, ROUNDS)[figure]):.3g}")
    times = [3_600 / median(of("ours, short turns", n).conversations_per_hour) for n in GROWTH]
    for rounds, seconds in zip(GROWTH, times, strict=True):
        print(f"seconds_per_conversation_{rounds}_rounds={seconds:.3g}")
    for peer in ("authors", "transformers serve"):
        print(f"conversations_ratio_{peer.replace(' ', '_')}={hourly['ours'] / hourly[peer]:.3g}")
    print(f"rounds_exponent={np.polyfit(np.log(GROWTH), np.log(times), 1)[0]:.3g}")


if __name__ == "__main__":
    main()
