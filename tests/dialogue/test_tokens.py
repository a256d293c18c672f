from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import SPECIAL_TOKENS, byte_level_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from realm.dialogue.encoder import Encoder
from realm.dialogue.format import chat_format
from realm.dialogue.tokens import Frame, TokensError, Turns, byte_level_bpe
from realm.models import assets

FRAME = Frame("<|im_start|>", "user\n", "<|im_end|>")
PIECES = st.sampled_from(
    [
        *("  ", "\n", "\n\n\n", " \t ", "it's", "'LL", "I'd've", "2023", "3.14", "hello", " the", "x"),
        *("\U0001f469\u200d\U0001f4bb", "\u00e9", "e\u0301", "日本", "def add(a, b):", "<filename>", "<s"),
        *("\x07", "\x85", "\u200b", "\u2028", "\xa0"),
    ]
)
TEXT = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))


def whole(tokenizer: PreTrainedTokenizerFast, contents: list[str], frame: Frame = FRAME) -> list[int]:
    """What the tokenizer gives on the rendered conversation, in one piece."""
    text = "".join(f"{frame.begin}{frame.prefix}{content}{frame.end}" for content in contents)
    return tokenizer(text, add_special_tokens=False).input_ids


def by_turns(turns: Turns, contents: list[str], frame: Frame = FRAME) -> list[int]:
    begin, end = (turns.between(token, False, False).tolist() for token in (frame.begin, frame.end))
    return [i for ids, _ in turns.of([(frame, c) for c in contents]) for i in (*begin, *ids.tolist(), *end)]


def spelled(tokenizer: PreTrainedTokenizerFast, change) -> PreTrainedTokenizerFast:
    """The tokenizer with its description changed by ``change(model)``."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec["model"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))


@pytest.fixture(scope="module")
def with_file_token() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<filename>"])
    return tokenizer


@pytest.fixture(scope="module")
def kinds(with_file_token, sentencepiece) -> list[Turns]:
    """tiktoken's way, the tokenizer's own way on the same vocabulary, and a vocabulary of another kind."""
    fast, slow, pieces = Turns(with_file_token), Turns(with_file_token), Turns(sentencepiece)
    slow._bpe = None
    assert fast._bpe is not None and pieces._bpe is None
    return [fast, slow, pieces]


# ---------------------------------------------------------------- the same ids


@given(st.lists(TEXT, min_size=1, max_size=4))
@example(["\n", "\n\nx", "", " ", "   x   "])
@example(["a <filename> b", "<filename>", "\n<filename>\n"])
def test_turns_give_the_ids_of_the_whole_conversation(kinds, contents):
    for turns in kinds:
        assert by_turns(turns, contents) == whole(turns.tokenizer, contents)


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_both_ways_agree_on_ids_and_header(kinds, contents):
    fast, slow, _ = kinds
    for frame in (FRAME, Frame("<s>", "", "</s>")):
        turns = [(frame, c) for c in contents]
        for (a, header), (b, other) in zip(fast._fast(turns), slow._slow(turns), strict=True):
            assert (a.tolist(), header) == (b.tolist(), other)
            assert a.dtype == b.dtype == np.int32


def test_the_packaged_model_agrees_too():
    folder = assets.cache_folder() / "models"
    found = sorted(folder.glob("smollm2-135m-*/tokenizer.json"))
    if not found:
        pytest.skip("smollm2-135m is not in the cache")
    turns = Turns(AutoTokenizer.from_pretrained(found[0].parent))
    contents = [
        "\n\nIt's 2024,  isn't it?\n\n\n",
        "def f(x):\n        return x  # \U0001f600",
        "<filename>a.py\n",
        "日本 ñ\u0301",
    ]
    assert turns._bpe is not None
    assert by_turns(turns, contents) == whole(turns.tokenizer, contents)
    slow = turns._slow([(FRAME, c) for c in contents])
    assert [h for _, h in slow] == [h for _, h in turns.of([(FRAME, c) for c in contents])]


def test_text_that_spells_an_added_token_goes_to_the_tokenizer(with_file_token):
    bpe = Turns(with_file_token)._bpe
    assert [found is None for found in bpe.turns([(FRAME, "see <filename> now"), (FRAME, "see <file name>")])] == [
        True,
        False,
    ]


@pytest.mark.parametrize("added", ["<new>", "he"])
def test_a_token_added_afterwards_is_seen(added):
    tokenizer = byte_level_tokenizer()
    text = [f"x{added}llo the {added}"]
    before = whole(tokenizer, text)
    assert by_turns(Turns(tokenizer), text) == before
    tokenizer.add_tokens([added])
    assert whole(tokenizer, text) != before
    assert by_turns(Turns(tokenizer), text) == whole(tokenizer, text)


def test_a_known_word_added_as_a_token_is_seen():
    tokenizer = byte_level_tokenizer()
    words = sorted((w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii()), key=len)
    longer = words[-1]
    word = next(w for w in words if len(w) > 1 and w in longer)
    before, size = by_turns(Turns(tokenizer), [longer]), len(tokenizer)
    tokenizer.add_tokens([word])
    assert len(tokenizer) == size
    assert by_turns(Turns(tokenizer), [longer]) == whole(tokenizer, [longer]) != before


def test_a_vocabulary_that_lacks_a_byte_falls_back_where_the_byte_stands(byte_level):
    def drop(model):
        model["vocab"].pop("É")  # the byte C3 as byte-level vocabularies spell it
        model["vocab"].pop("Ã")
        model["merges"] = [m for m in model["merges"] if not set("ÉÃ") & set("".join(m))]

    tokenizer = spelled(byte_level, drop)
    turns = Turns(tokenizer)
    assert turns._bpe is not None
    assert turns._bpe.turns([(FRAME, "plain"), (FRAME, "caf\u00e9")])[1] is None
    assert by_turns(turns, ["plain", "caf\u00e9 x"]) == whole(tokenizer, ["plain", "caf\u00e9 x"])


# ---------------------------------------------------------------- vocabularies that ranks do not describe


def letters(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with these merges over all bytes and the structure tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(a + b for a, b in merges)])
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


WORDS = ["abc", "aabbcc", "abcabc", "bcbc", "cabca", "aaab"]


@pytest.mark.parametrize(
    "merges",
    [
        [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")],  # two merges make the same token
        [("b", "c"), ("a", "b"), ("ab", "c")],  # abc never comes about, though a and bc together spell it
        [("ab", "c"), ("a", "b")],  # made of a part that comes later
    ],
    ids=["made twice", "never made", "made too early"],
)
def test_merges_that_ranks_do_not_tell_go_to_the_tokenizer(merges):
    tokenizer = letters(*merges)
    assert byte_level_bpe(tokenizer, (0, 0)) is None
    assert by_turns(Turns(tokenizer), WORDS) == whole(tokenizer, WORDS)


def test_plain_merges_go_to_tiktoken():
    tokenizer = letters(("a", "b"), ("ab", "c"), ("c", "a"))
    assert byte_level_bpe(tokenizer, (0, 0)) is not None
    assert by_turns(Turns(tokenizer), WORDS) == whole(tokenizer, WORDS)


@given(st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", "ab", "bc", "abc", "ca"])] * 2), max_size=6, unique=True))
def test_any_merges_give_the_tokenizers_ids(drawn):
    made, merges = {"a", "b", "c"}, []
    for a, b in drawn:
        if a in made and b in made:
            merges.append((a, b))
            made.add(a + b)
    tokenizer = letters(*merges)
    assert by_turns(Turns(tokenizer), WORDS) == whole(tokenizer, WORDS)


# ---------------------------------------------------------------- header, store, refusal


@pytest.mark.parametrize("slow", [False, True])
def test_a_token_across_header_and_content_counts_as_header(slow):
    tokenizer = letters(("Ċ", "Ċ"))  # two line breaks in one token
    turns = Turns(tokenizer)
    turns._bpe = None if slow else turns._bpe
    (plain, of_plain), (across, of_across) = turns.of([(FRAME, "x"), (FRAME, "\n\nx")])
    assert (of_plain, len(plain)) == (len("user\n"), len("user\nx"))
    assert (of_across, len(across)) == (len("user\n"), len("user\n\nx"))
    assert tokenizer.decode(across[of_across:]) == "\nx"


def test_what_was_read_is_remembered_and_forgotten_beyond_the_limit(with_file_token, monkeypatch):
    turns = Turns(with_file_token)
    asked: list[str] = []
    read = turns._fast
    monkeypatch.setattr(turns, "_fast", lambda missing: asked.extend(c for _, c in missing) or read(missing))
    monkeypatch.setattr("realm.dialogue.tokens.MAX_TOKENS_HELD", 3)
    first = turns.of([(FRAME, "one"), (FRAME, "one")])
    again = turns.of([(FRAME, "one")])
    assert asked == ["one"]
    assert again[0][0] is first[0][0] is first[1][0]
    mixed = turns.of([(FRAME, "two"), (FRAME, "one")])  # over the limit: the store starts anew, the answer is whole
    assert asked == ["one", "two"]
    assert mixed[1][0].tolist() == first[0][0].tolist()
    turns.of([(FRAME, "one")])
    assert asked == ["one", "two", "one"]


def test_more_turns_than_one_task_come_back_in_order(with_file_token, monkeypatch):
    monkeypatch.setattr("realm.dialogue.tokens.TURNS_PER_TASK", 2)
    monkeypatch.setattr("realm.dialogue.tokens.WORTH_THREADS", 0)
    turns = Turns(with_file_token)
    contents = [f"turn {i} <filename>" if i % 3 else f"turn {i}" for i in range(11)]
    assert by_turns(turns, contents) == whole(with_file_token, contents)
    assert turns.of([]) == []


def test_long_runs_are_read_in_reasonable_time(with_file_token):
    junk = [letter * 100_000 + "x" for letter in (" ", "a", "!", "1", "\n")]
    assert by_turns(Turns(with_file_token), junk) == whole(with_file_token, junk)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(TokensError, match="fast tokenizer"):
        Turns(Slow())


def test_encoders_share_one_store(byte_level, talk):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", None)
    encoder.encode(talk("only once"))
    held = len(encoder.turns._held)
    Encoder(byte_level, encoder.format, "assistant", None, turns=encoder.turns).encode(talk("only once"))
    assert len(encoder.turns._held) == held
