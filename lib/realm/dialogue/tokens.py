"""Text to token ids, one turn at a time, each turn once.

Begin and end tokens of a chat template are special: a tokenizer cuts the text at them, so what stands between
two of them gives the same tokens alone as in the whole conversation (``encoder.Encoder`` checks that).
A turn is therefore tokenized once, whether for its length, for one side's mask or for the other's.

Byte-level BPE vocabularies of GPT-2's kind are read by tiktoken, several times faster than the tokenizers
library for the same ids (tests and benchmarks/data.py compare them); anything else goes to the tokenizer itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tiktoken
from joblib import cpu_count
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from realm.core.errors import OneLineError

MAX_TOKENS_HELD = 60_000_000  # 4 bytes each; beyond that the store starts anew
TURNS_PER_TASK = 64
WORTH_THREADS = 100_000  # characters; below, starting threads takes longer than they save
# How GPT-2 cuts text into words before merging; possessive, so that long runs of blanks stay linear.
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The same with every digit cut out first: text ends before a digit, so blanks there stay together.
DIGITS_FIRST_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"


class TokensError(OneLineError, ValueError):
    """A tokenizer that cannot be used turn by turn; the message names the fix."""


@dataclass(frozen=True)
class Frame:
    """What stands around the content of a turn: special token, plain prefix, content, special token."""

    begin: str
    prefix: str
    end: str


class Turns:
    """The tokens of turns, remembered. Safe to share between encoders of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Raises TokensError for a tokenizer without character offsets (a slow one)."""
        if not tokenizer.is_fast:
            raise TokensError("the label mask needs a fast tokenizer, which knows its character offsets")
        self.tokenizer = tokenizer
        self._bpe = byte_level_bpe(tokenizer, (len(tokenizer), len(tokenizer.added_tokens_decoder)))
        self._held: dict[tuple[Frame, str], tuple[np.ndarray, int]] = {}
        self._tokens_held = 0
        self._contexts: dict[tuple[str, bool, bool], np.ndarray] = {}

    def without_tiktoken(self) -> None:
        """Leave everything to the tokenizer itself: what benchmarks and tests compare with."""
        self._bpe = None

    def between(self, text: str, after_special: bool, before_special: bool) -> np.ndarray:
        """Ids of a short constant text that begins or ends with a special token, without that token."""
        key = (text, after_special, before_special)
        if key not in self._contexts:
            ids = np.asarray(self._encode([text])[0].ids, dtype=np.int32)
            self._contexts[key] = ids[int(after_special) : len(ids) - int(before_special)]
        return self._contexts[key]

    def of(self, turns: Sequence[tuple[Frame, str]]) -> list[tuple[np.ndarray, int]]:
        """For each (frame, content): ids between the special tokens, int32, and how many of them are header.

        A token that straddles prefix and content counts as header.
        """
        missing = list(dict.fromkeys(turn for turn in turns if turn not in self._held))
        known = {turn: self._held[turn] for turn in turns if turn in self._held}
        if missing:
            if self._tokens_held > MAX_TOKENS_HELD:
                self._held.clear()
                self._tokens_held = 0
            found = self._fast(missing) if self._bpe else self._slow(missing)
            for turn, tokens in zip(missing, found, strict=True):
                self._held[turn] = known[turn] = tokens
                self._tokens_held += len(tokens[0])
        return [known[turn] for turn in turns]

    def _fast(self, turns: list[tuple[Frame, str]]) -> list[tuple[np.ndarray, int]]:
        """By tiktoken, on all cores: it lets go of the interpreter's lock while it works."""
        if sum(len(content) for _, content in turns) < WORTH_THREADS:
            found = self._bpe.turns(turns)
        else:
            chunks = [turns[i : i + TURNS_PER_TASK] for i in range(0, len(turns), TURNS_PER_TASK)]
            with ThreadPoolExecutor(cpu_count()) as pool:
                found = [tokens for chunk in pool.map(self._bpe.turns, chunks) for tokens in chunk]
        left = [i for i, tokens in enumerate(found) if tokens is None]
        for i, tokens in zip(left, self._slow([turns[i] for i in left]), strict=True):
            found[i] = tokens
        return found

    def _slow(self, turns: list[tuple[Frame, str]]) -> list[tuple[np.ndarray, int]]:
        encodings = self._encode([f"{f.begin}{f.prefix}{content}{f.end}" for f, content in turns])
        return [_without_frame(e, frame) for e, (frame, _) in zip(encodings, turns, strict=True)]

    def _encode(self, texts: list[str]):
        return self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False) if texts else []


def _without_frame(encoding, frame: Frame) -> tuple[np.ndarray, int]:
    ids = np.asarray(encoding.ids, dtype=np.int32)
    opens = len(frame.begin) + len(frame.prefix)
    header = 1
    while frame.prefix and header < len(ids) - 1 and encoding.token_to_chars(header)[0] < opens:
        header += 1
    return ids[1:-1], header - 1


class ByteLevelBPE:
    """A tokenizer's vocabulary and merges in tiktoken, for text that holds no added token."""

    def __init__(self, words: str, vocabulary: dict[str, int], merges: list[tuple[str, str]], added: list[str]):
        letters = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}
        # tiktoken merges by rank, so the rank is the merge's place, and ids come from a table afterwards.
        tokens = [*letters, *(a + b for a, b in merges)]
        spelled = [b"".join(letters[letter] for letter in token) for token in tokens]
        self._core = tiktoken.Encoding(
            "from tokenizer.json",
            pat_str=words,
            mergeable_ranks={text: rank for rank, text in enumerate(spelled)},
            special_tokens={},
        )
        self._ids = np.array([vocabulary.get(token, -1) for token in tokens], dtype=np.int32)
        self._bytes = [len(text) for text in spelled]
        self._added = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")

    def turns(self, turns: list[tuple[Frame, str]]) -> list[tuple[np.ndarray, int] | None]:
        """Ids and header tokens of each turn; None where only the tokenizer itself knows the answer."""
        return [self._turn(frame.prefix, content) for frame, content in turns]

    def _turn(self, prefix: str, content: str) -> tuple[np.ndarray, int] | None:
        text = prefix + content
        if self._added.search(text):
            return None
        ranks = self._core.encode_to_numpy(text, disallowed_special=())
        ids = self._ids[ranks]
        if (ids < 0).any():  # a byte that the vocabulary lacks: the tokenizer drops it in its own way
            return None
        header, left = 0, len(prefix.encode())
        while left > 0:
            left -= self._bytes[ranks[header]]
            header += 1
        return ids, header


@lru_cache(maxsize=4)
def byte_level_bpe(tokenizer: PreTrainedTokenizerBase, size: tuple[int, int]) -> ByteLevelBPE | None:
    """The tokenizer as tiktoken reads it, or None if it is not plain byte-level BPE of GPT-2's kind.

    ``size``: how many tokens it has and how many of them were added, so that one that was given a token since,
    be it a word it already knew, is read anew.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, words = spec["model"], _words(spec["pre_tokenizer"])
    plain = (
        model["type"] == "BPE"
        and spec["normalizer"] is None
        and words is not None
        and not any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
    )
    if not plain:
        return None
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    if not _ranks_tell_merges(model["vocab"], merges):
        return None
    return ByteLevelBPE(words, model["vocab"], merges, [t["content"] for t in spec["added_tokens"]])


def _words(pre_tokenizer: dict | None) -> str | None:
    """tiktoken's pattern for what a pre-tokenizer does, or None if it is neither GPT-2's nor that after digits."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    *before, last = steps or [{"type": "None"}]
    if last["type"] != "ByteLevel" or not last["use_regex"] or last["add_prefix_space"]:
        return None
    if not before:
        return GPT2_WORDS
    return DIGITS_FIRST_WORDS if before == [{"type": "Digits", "individual_digits": True}] else None


def _ranks_tell_merges(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> bool:
    """Whether merging by the rank of the result, as tiktoken does, is merging by the rank of the pair.

    It is if every token is made by one merge, of parts made before it, and is what its own letters merge to:
    then no other pair that spells it ever stands side by side.
    """
    made = set(bytes_to_unicode().values())
    for a, b in merges:
        if a not in made or b not in made or a + b in made:
            return False
        made.add(a + b)
    alone = Tokenizer(models.BPE(vocabulary, merges)).encode_batch([a + b for a, b in merges])
    return all(len(encoding.ids) == 1 for encoding in alone)
