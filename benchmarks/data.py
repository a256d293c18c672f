"""Reading, label masks and the whole of notebook 01's work.

Masks: one pass over a conversation against tokenizing every prefix again. The per-prefix way is what training
code for chat models commonly does, the authors' datasets.py among them: to find where a human turn begins and
ends, everything up to there is tokenized, so a conversation of n rounds costs n times its length. Re-implemented
here plainly, each call as they make it: one text at a time, to a tensor, padding counted off.

Ours is timed in two ways: with tiktoken, as it runs, and with the tokenizers library, as it runs where a
vocabulary is not byte-level BPE. Its store of turns starts empty in every repetition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from realm.cleaning.duplicates import CLUSTER
from realm.cleaning.funnel import run_funnel
from realm.cleaning.presets import steps
from realm.conversations.conversation import Conversation, Message
from realm.conversations.readers import ReadReport, read_conversations
from realm.conversations.sessions import unknown_ends
from realm.conversations.splits import split_sides
from realm.core.profile import load_profile
from realm.dialogue.encoder import IGNORED, Encoder
from realm.dialogue.format import chat_format, load_tokenizer
from realm.dialogue.tokens import Turns
from realm.models import assets

RESULTS = Path(__file__).parent / "results" / "data.csv"
REPETITIONS = 3
CONVERSATIONS = 400
MAX_LENGTH = 2_048
ROUNDS = (4, 16, 64, 256)
PER_PREFIX_ROUNDS = 64


def per_prefix(encoder: Encoder, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) of the user's side, the common way: the length of each prefix says where a turn lies."""
    tokenizer = encoder.tokenizer
    tokens = lambda text: tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]  # noqa: E731
    length = lambda text: int(tokens(text).ne(-1).sum())  # noqa: E731
    text, spans = encoder.format.render(conversation.messages, encoder.system)
    ids = tokens(text)
    labels = ids.clone().fill_(IGNORED)
    for message, (start, end) in zip(conversation.messages, spans, strict=True):
        if message.role == encoder.supervise:
            first, last = length(text[:start]), length(text[:end])
            labels[first:last] = ids[first:last]
    return ids[: encoder.max_length].numpy(), labels[: encoder.max_length].numpy()


def one_pass(encoder: Encoder, conversations: Sequence[Conversation], fast: bool) -> list:
    turns = Turns(encoder.tokenizer)
    if not fast:
        turns.without_tiktoken()
    return list(replace(encoder, turns=turns).encode_all(conversations))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def masks(encoder: Encoder, conversations: Sequence[Conversation]) -> dict[str, Callable[[], object]]:
    ways = {
        "one pass": lambda: one_pass(encoder, conversations, fast=True),
        "one pass, tokenizers library": lambda: one_pass(encoder, conversations, fast=False),
        "per prefix": lambda: [per_prefix(encoder, c) for c in conversations],
    }
    if max(c.rounds for c in conversations) > PER_PREFIX_ROUNDS:
        del ways["per prefix"]  # minutes a repetition, and no figure asks for it
    return ways


def require_same_masks(encoder: Encoder, conversations: Sequence[Conversation]) -> None:
    theirs = [per_prefix(encoder, c) for c in conversations]
    for fast in (True, False):
        for row, (ids, labels) in zip(one_pass(encoder, conversations, fast), theirs, strict=True):
            if not (np.array_equal(row.input_ids, ids) and np.array_equal(row.labels, labels)):
                raise SystemExit(f"{row.id}: the ways give different masks: nothing to compare")


def of_rounds(conversations: Sequence[Conversation], rounds: int) -> Conversation:
    """Real short turns, as many as asked for."""
    short = [m for c in conversations for m in c.messages if len(m.content) < 300]
    asked = [m.content for m in short if m.role == "user"]
    said = [m.content for m in short if m.role == "assistant"]
    pick = lambda texts, i: texts[i % len(texts)]  # noqa: E731
    turns = [Message(r, pick(t, i)) for i in range(rounds) for r, t in (("user", asked), ("assistant", said))]
    return Conversation(f"rounds-{rounds}", tuple(turns))


def read_all() -> tuple[list[Conversation], ReadReport]:
    report = ReadReport()
    return list(read_conversations(assets.data("sharegpt"), report=report)), report


def whole_pipeline(max_length: int) -> tuple[int, list[Conversation]]:
    """Read, clean, near-deduplicate, split at ``max_length``, into sides, encode: (rows, segments)."""
    config = load_profile("cpu").data_inspection
    conversations, report = read_all()
    tokenizer = load_tokenizer("smollm2-135m")
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "user", max_length)
    funnel = steps(
        "fixed",
        encoder,
        cut_after=unknown_ends(report, conversations),
        near_duplicate_threshold=config.near_duplicate_threshold,
        replace_private_data=True,
    )
    segments, _ = run_funnel(conversations, funnel)
    sides = split_sides(segments, config.shares, 0, CLUSTER)
    return sum(1 for _, members in sides.items() for _ in encoder.encode_all(members)), segments


def main() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    chat = chat_format("chatml", tokenizer)
    encoder = Encoder(tokenizer, chat, "user", MAX_LENGTH)
    records = len(read_all()[0])
    _, segments = whole_pipeline(MAX_LENGTH)
    fitting = [row.id for row in encoder.encode_all(segments) if not row.cut]
    wanted = set(fitting[:: max(1, len(fitting) // CONVERSATIONS)])
    sample = [c for c in segments if c.id in wanted]
    require_same_masks(encoder, sample)

    endless = replace(encoder, max_length=None)
    contests = {"real": masks(encoder, sample)}
    contests |= {f"{n} rounds": masks(endless, [of_rounds(segments, n)]) for n in ROUNDS}
    contests["read"] = {"stream": read_all}
    contests["pipeline"] = {"max_length 512": lambda: whole_pipeline(512)}
    rows = []
    for repetition in range(REPETITIONS):
        for contest, ways in contests.items():
            for way, work in ways.items():
                rows.append({"repetition": repetition, "contest": contest, "way": way, "seconds": seconds(work)})
    table = pd.DataFrame(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False)
    report_medians(table, records)


def report_medians(table: pd.DataFrame, records: int) -> None:
    middle = lambda contest, way: median(table[(table.contest == contest) & (table.way == way)].seconds)  # noqa: E731
    ratio = lambda contest, way: middle(contest, "per prefix") / middle(contest, way)  # noqa: E731
    times = [middle(f"{n} rounds", "one pass") for n in ROUNDS]
    whole = middle("pipeline", "max_length 512")
    print(f"masks_ratio_without_tiktoken={ratio('real', 'one pass, tokenizers library'):.3g}")
    print(f"pipeline_conversations_per_second={records / whole:.3g}")
    print(f"masks_ratio={ratio('real', 'one pass'):.3g}")
    print(f"masks_ratio_64_rounds={ratio('64 rounds', 'one pass'):.3g}")
    print(f"masks_exponent={np.polyfit(np.log(ROUNDS), np.log(times), 1)[0]:.3g}")
    print(f"read_seconds={middle('read', 'stream'):.3g}")
    print(f"pipeline_seconds={whole:.3g}")


if __name__ == "__main__":
    main()
