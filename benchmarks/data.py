"""Reading, and label masks: one pass over a conversation against tokenizing every prefix again.

The per-prefix way is what training code for chat models commonly does: to find where a turn ends, everything
up to there is tokenized, so a conversation of n rounds costs n times its length. Re-implemented here plainly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from realm import assets
from realm.cleaning import alternate, no_reserved_tokens
from realm.conversation import Conversation, Message, read_conversations
from realm.template import IGNORED, Encoder, chat_format
from realm.training import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "data.csv"
REPETITIONS = 3
CONVERSATIONS = 200
MAX_LENGTH = 2_048
ROUNDS = (4, 16, 64, 256)
PER_PREFIX_ROUNDS = 64


def per_prefix(encoder: Encoder, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) of the user's side, the common way: the length of each prefix says where a turn lies."""
    tokens = lambda text: encoder.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    text, spans = encoder.format.render(conversation.messages, encoder.system)
    ids = np.array(tokens(text))
    labels = np.full(len(ids), IGNORED)
    for message, (start, end) in zip(conversation.messages, spans, strict=True):
        if message.role == encoder.supervise:
            first, last = len(tokens(text[:start])), len(tokens(text[:end]))
            labels[first:last] = ids[first:last]
    return ids[: encoder.max_length], labels[: encoder.max_length]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def masks(encoder: Encoder, conversations: Sequence[Conversation]) -> dict[str, Callable[[], object]]:
    ways = {
        "one pass": lambda: [encoder.encode(c) for c in conversations],
        "per prefix": lambda: [per_prefix(encoder, c) for c in conversations],
    }
    if max(c.rounds for c in conversations) > PER_PREFIX_ROUNDS:
        del ways["per prefix"]  # minutes a repetition, and no figure asks for it
    return ways


def same_masks(encoder: Encoder, conversations: Sequence[Conversation]) -> bool:
    pairs = ((encoder.encode(c), per_prefix(encoder, c)) for c in conversations)
    return all(np.array_equal(e.input_ids, ids) and np.array_equal(e.labels, labels) for e, (ids, labels) in pairs)


def of_rounds(conversations: Sequence[Conversation], rounds: int) -> Conversation:
    """Real short turns, as many as asked for."""
    short = [m for c in conversations for m in c.messages if len(m.content) < 300]
    asked = [m.content for m in short if m.role == "user"]
    said = [m.content for m in short if m.role == "assistant"]
    pick = lambda texts, i: texts[i % len(texts)]  # noqa: E731
    turns = [Message(r, pick(t, i)) for i in range(rounds) for r, t in (("user", asked), ("assistant", said))]
    return Conversation(f"rounds-{rounds}", tuple(turns))


def main() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    chat = chat_format("chatml", tokenizer)
    clean = no_reserved_tokens(chat.reserved)
    everything = list(read_conversations(assets.data("sharegpt")))
    alternating = [kept for c in everything for kept in alternate(c).kept if clean(kept).kept]
    encoder = Encoder(tokenizer, chat, "user", MAX_LENGTH)
    sample = [c for c in alternating[:: len(alternating) // (2 * CONVERSATIONS)] if not encoder.encode(c).cut]
    sample = sample[:CONVERSATIONS]
    if not same_masks(encoder, sample):
        raise SystemExit("the two ways give different masks: nothing to compare")

    endless = Encoder(tokenizer, chat, "user", None)
    contests = {"real": masks(encoder, sample)}
    contests |= {f"{n} rounds": masks(endless, [of_rounds(alternating, n)]) for n in ROUNDS}
    rows = []
    for repetition in range(REPETITIONS):
        rows.append({"repetition": repetition, "contest": "read", "way": "stream", "seconds": seconds(read_all)})
        for contest, ways in contests.items():
            for way, work in ways.items():
                rows.append({"repetition": repetition, "contest": contest, "way": way, "seconds": seconds(work)})
    table = pd.DataFrame(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False)

    middle = lambda contest, way: median(table[(table.contest == contest) & (table.way == way)].seconds)  # noqa: E731
    times = [middle(f"{n} rounds", "one pass") for n in ROUNDS]
    exponent = np.polyfit(np.log(ROUNDS), np.log(times), 1)[0]
    print(f"masks_ratio={middle('real', 'per prefix') / middle('real', 'one pass'):.3g}")
    print(f"masks_ratio_64_rounds={middle('64 rounds', 'per prefix') / middle('64 rounds', 'one pass'):.3g}")
    print(f"masks_exponent={exponent:.3g}")
    print(f"read_seconds={middle('read', 'stream'):.3g}")


def read_all() -> None:
    for _ in read_conversations(assets.data("sharegpt")):
        pass


if __name__ == "__main__":
    main()
