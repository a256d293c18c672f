"""Fixtures that more than one file uses: two small tokenizers of different kinds, a builder of conversations, stubs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from stub_server import StubServer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from realm.conversations.conversation import Conversation, Message
from realm.simulation import engine

# The same examples every time: a red run can be repeated, and a slow machine is no failure.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("tests")

# Minutes each: begun last, they would keep one process at work while the others are done.
LONGEST = ("test_browser.py", "test_slurm.py", "test_smoke_run.py", "test_killed_run.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; otherwise as they were."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
# No line break: like SentencePiece, the second tokenizer must spell it in bytes.
SENTENCES = [
    "user assistant system Human: Assistant: what does this code do? Tell me more, please.",
    "A curious person talks with an assistant who gives long and helpful answers about everything.",
    "def add(a, b): return a + b",
    "hello there, how are you today? I am fine, and the weather is fine too.",
]


def talk(*contents: str, first: str = "user", system: str | None = None, **fields: Any) -> Conversation:
    """Contents of alternating turns -> a conversation. ``fields``: id (default "talk"), meta."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    messages = [Message(roles[i % 2], content) for i, content in enumerate(contents)]
    opening = [Message("system", system)] if system is not None else []
    return Conversation(fields.pop("id", "talk"), (*opening, *messages), **fields)


@pytest.fixture(scope="session", name="talk")
def talk_fixture() -> Callable[..., Conversation]:
    return talk


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, the kind of GPT-2, Llama 3 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _wrapped(tokenizer)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over ▁-marked text with byte fallback, the kind of LLaMA and Llama 2: a ▁ opens every stretch of text."""
    marks = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    learner.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL_TOKENS, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.pre_tokenizer = marks
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    return sentencepiece_tokenizer()


@pytest.fixture(scope="session", params=[byte_level_tokenizer, sentencepiece_tokenizer], ids=["byte-level", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of the two in turn."""
    return request.param()


@pytest.fixture
def servers() -> Iterator[tuple[StubServer, StubServer]]:
    """One that plays the user, one that answers."""
    with StubServer() as user, StubServer() as responder:
        yield user, responder


@pytest.fixture
def no_pauses(monkeypatch):
    """A simulation asks again nearly at once."""
    monkeypatch.setattr(engine, "PAUSES", (0.02,))
