"""Every pre-tokenizer name against llama.cpp itself, on tiny models made here; and what setting one leaves alone."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from realm.models import assets, pretokenizers
from realm.models.pretokenizers import RULES, PreTokenizerError, cut_as_llama_cpp, pre_tokenizer

CONTROL, UNKNOWN, BYTE, NORMAL = 3, 2, 6, 1  # tokenizer.ggml.token_type
ONLY_WHOLE = ("zqx", "Ġzqx")  # words that no merge leads to
END = "<|end|>"

# ------------------------------------------------------------------ texts


def _texts() -> list[str]:
    words = [
        "a",
        "1",
        ".",
        "É",
        "日",
        "ひ",
        "한",
        "ไ",
        "👍🏽",
        "$",
        "~",
        "e\u0301",
        "हि",
        "'s",
        "’",
        "٣",
        "½",
        "_",
        "Ab",
    ]
    gaps = ["", " ", "  ", "\n", "\n\n", "\r\n\n  ", "\r", "\t", "\u00a0", "\u3000", "\x85", "\u200c", "\x1c"]
    texts = [a + gap + b for a, b, gap in product(words[:12], words, gaps[:4])]
    texts += [gap + word + gap for word, gap in product(words, gaps)]
    texts += [
        before + "1234567"[:n] + after for n in range(1, 8) for before in ("", "x", " ", "\n\n", "½") for after in ".a "
    ]
    endings = ["s", "t", "d", "m", "ll", "re", "ve", "S", "T", "D", "M", "LL", "RE", "VE", "Ll", "ſ", "sx", "x"]
    texts += [before + mark + end for end in endings for before in ("it", "IT ", "1", "é") for mark in ("'", "’")]
    texts += [" " * n + end for n in (3, 4, 7, 17, 40, 300, 513) for end in ("", "x", "1", "\n")]
    texts += [
        "camelCase ABCdef XMLParser HTTPServer2 ÀÉÎõü éCOLE Дом дОМ",
        "cafe\u0301 naïve ı İ ﬁ ǅ ꞔ 𝐀𝟏 𐐀𐐨",
        "日本語のテキスト、です。英語mix123です「かぎ」 한국어 텍스트ㅏㅏ ไทยก็ดี မြန်မာ हिन्दी العربية ١٢٣ ㄅㄆ",
        "1,234,567.89 12345678901 0x1F 12_3 123é १२३४ Ⅷ①² ½¾",
        "a~b ~foo ~~ !foo #bar @baz .x -y “q” ‘x’ – — … x=$1+2<=3^4~`5|6`",
        "one، two۔ three। four… five。six，seven、eight! nine| (ten) ",
        "foo/bar//\n/baz/ \r\n/ http://e.org/a_b?c=1&d=2#e <sentinel:12> IMGIMGABCZ",
        "def f(x):\n    return x  # note\n\n\tif x:\n\t\tpass\r\n\r\n",
    ]
    rng = random.Random(1)
    texts += ["".join(rng.choice(words + gaps) for _ in range(rng.randint(3, 12))) for _ in range(300)]
    old = [c for c in map(chr, range(0xA0, 0x30000, 97)) if unicodedata.ucd_3_2_0.category(c)[0] not in "C"]
    texts += [f"a{c}1 {c}A{c}.{c}\n{c} " for c in old]  # known to every Unicode that any of the libraries has
    texts += [unicodedata.normalize(form, text) for text in texts if not text.isascii() for form in ("NFC", "NFD")]
    return list(dict.fromkeys(filter(None, texts)))


LEARNED = _texts()
TEXTS = [*LEARNED, "zqx", "a zqx.", "zqxzqx zqx", " " * 300 + "x"]
TOGETHER = [f"\n{END[:5]}\n".join(TEXTS[i : i + 40]) for i in range(0, len(TEXTS), 40)]  # one request for many
FEWER = TOGETHER[::-8]  # enough to tell which rule a further name of it has
FIRST_NAMES = {rule: name for name, rule in reversed(RULES.items())}

# ------------------------------------------------------------------ tiny models


def _trained(texts: list[str], tokenizer: Tokenizer, **options: object) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id and merges of a BPE trained on uncut texts, so that merges cross every place of a cut."""
    trainer = trainers.BpeTrainer(min_frequency=1, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="session")
def byte_level() -> tuple[list[str], list[tuple[str, str]]]:
    uncut = Tokenizer(models.BPE())
    uncut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens, merges = _trained(LEARNED, uncut, vocab_size=5000, initial_alphabet=list(bytes_to_unicode().values()))
    return [*tokens, *ONLY_WHOLE, END], merges


def _write(
    path: Path, kind: str, name: str | None, tokens: list[str], types: list[int], **tokenizer_keys: object
) -> Path:
    """A LLaMA of two layers of noise; keys are written as ``tokenizer.ggml.KEY``."""
    gguf = pytest.importorskip("gguf")
    hidden, wide, layers, heads = 32, 64, 2, 2
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(kind)
    if name is not None:
        writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in tokenizer_keys.items():
        getattr(writer, f"add_{key}")(value)
    noise = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{part}": (hidden, hidden) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{part}": (wide, hidden) for part in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{i}.ffn_down": (hidden, wide), f"blk.{i}.attn_norm": (hidden,), f"blk.{i}.ffn_norm": (hidden,)}
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", noise.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_byte_level(folder: Path, name: str | None, byte_level: tuple[list[str], list[tuple[str, str]]]) -> Path:
    tokens, merges = byte_level
    end = len(tokens) - 1
    types = [NORMAL] * end + [CONTROL]
    spelled = [" ".join(merge) for merge in merges]
    keys = {"token_merges": spelled, "bos_token_id": end, "eos_token_id": end}
    return _write(folder / "tiny.gguf", "gpt2", name, tokens, types, **keys)


def _imported(path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


# ------------------------------------------------------------------ llama.cpp

SERVE = """
import os, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.hostnames, parameters.ui, parameters.warmup = ["127.0.0.1"], False, False
parameters.n_ctx, parameters.n_parallel = 256, 1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print("serving", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def _server(model: Path) -> Iterator[Callable[..., list[int]]]:
    """llama.cpp's tokenizer for a model file: text to ids."""
    pytest.importorskip("xllamacpp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVE, str(model), str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env={**os.environ, "no_proxy": "*"}, **pipes) as process:
        try:
            address = next((line.split()[1] for line in process.stdout if line.startswith("serving")), None)
            assert address, f"llama.cpp did not take {model}"

            def tokenize(text: str, parse_special: bool = False) -> list[int]:
                asked = {"content": text, "add_special": False, "parse_special": parse_special}
                request = urllib.request.Request(
                    f"{address}/tokenize", json.dumps(asked).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)["tokens"]

            yield tokenize
        finally:
            process.stdin.close()
            process.wait(10)


def _ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], parse_special: bool = False) -> list[list[int]]:
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = not parse_special
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


@pytest.fixture(scope="session")
def imported(byte_level, tmp_path_factory) -> PreTrainedTokenizerFast:
    """As transformers reads it, for all names: each one set undoes the one before."""
    return _imported(_write_byte_level(tmp_path_factory.mktemp("imported"), "default", byte_level))


@pytest.mark.parametrize("name", [*RULES, None])
def test_ids_are_those_of_llama_cpp(name, byte_level, imported, tmp_path):
    path = _write_byte_level(tmp_path, name, byte_level)
    cut_as_llama_cpp(imported, "gpt2", name)
    texts = TOGETHER if name in FIRST_NAMES.values() else FEWER
    with _server(path) as tokenize:
        theirs = [tokenize(text) for text in texts]
    assert _ids(imported, texts) == theirs


@pytest.mark.parametrize("texts", [TOGETHER, FEWER], ids=["all", "fewer"])
def test_the_texts_tell_the_rules_apart(texts, byte_level):
    """Otherwise the comparison above would let a wrong rule pass."""
    tokens, merges = byte_level
    vocabulary = {token: i for i, token in enumerate(tokens)}
    seen = {}
    for rule in FIRST_NAMES:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule.ignore_merges))
        tokenizer.pre_tokenizer = pre_tokenizer(rule.cuts)
        ids = str([encoding.ids for encoding in tokenizer.encode_batch(texts)])
        assert seen.setdefault(ids, rule) == rule


def test_smollm2_as_its_file_is_served():
    file = assets.fetch("smollm2-135m")
    tokenizer = _imported(file)
    cut_as_llama_cpp(tokenizer, "gpt2", "smollm")
    assert _ids(tokenizer, ["\n\n1."]) == [[1116, 33, 30]]
    with _server(file) as tokenize:
        assert _ids(tokenizer, TOGETHER) == [tokenize(text) for text in TOGETHER]
        chat = "<|im_start|>user\nlist 12 of\n\n1. it<|im_end|>\n"
        assert _ids(tokenizer, [chat], parse_special=True) == [tokenize(chat, parse_special=True)]


# ------------------------------------------------------------------ SentencePiece


def _sentencepiece(path: Path, prefix: bool) -> Path:
    blanks = Tokenizer(models.BPE())
    blanks.normalizer = normalizers.Replace(" ", "▁")
    pieces, merges = _trained(LEARNED, blanks, vocab_size=1500, limit_alphabet=200)
    made = list(dict.fromkeys(a + b for a, b in merges))
    rest = [piece for piece in pieces if piece not in set(made)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made, *rest]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(made) + len(rest))
    scores = [0.0] * 259 + [-float(i) for i in range(len(made) + len(rest))]
    keys = {"token_scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
    return _write(path / "tiny.gguf", "llama", "default", tokens, types, add_space_prefix=prefix, **keys)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_is_that_of_llama_cpp(prefix, tmp_path):
    path = _sentencepiece(tmp_path, prefix)
    tokenizer = _imported(path)
    cut_as_llama_cpp(tokenizer, "llama", "default", prefix)
    marked = ["<s>a</s> b", "</s>", "a</s>\n<s> b", "<s>  a"]
    with _server(path) as tokenize:
        assert _ids(tokenizer, TEXTS) == [tokenize(text) for text in TEXTS]
        assert _ids(tokenizer, marked, parse_special=True) == [tokenize(text, parse_special=True) for text in marked]
    # A prefix that the tokenizer adds it also takes away again.
    assert tokenizer.decode(tokenizer("it is  so", add_special_tokens=False).input_ids) == "it is  so"


# ------------------------------------------------------------------ without a server


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\n1. it", ["ĊĊ", "1", ".", "Ġit"]),
        ("  12 x", ["ĠĠ", "1", "2", "Ġx"]),
        ("it's\t3'S", ["it", "'s", "ĉ", "3", "'", "S"]),
        (" 7\n", ["Ġ", "7", "Ċ"]),
    ],
)
def test_smollm_cuts_digits_first(text, words):
    cut = pre_tokenizer(RULES["smollm"].cuts).pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


@pytest.mark.parametrize("rule", FIRST_NAMES, ids=FIRST_NAMES.get)
def test_no_rule_loses_text(rule):
    letters = bytes_to_unicode()
    cut = pre_tokenizer(rule.cuts)
    for text in TOGETHER:
        assert "".join(word for word, _ in cut.pre_tokenize_str(text)) == "".join(letters[b] for b in text.encode())


@pytest.mark.parametrize("rule", FIRST_NAMES, ids=FIRST_NAMES.get)
def test_long_runs_take_no_longer_than_others(rule):
    """Twenty thousand of a kind in a row: what backtracks for each of them would not come to an end."""
    cut = pre_tokenizer(rule.cuts)
    for run in (" ", "\n", "a", "A", "é", "!", "日", "\t ", "a\u0301"):
        cut.pre_tokenize_str(run * 20_000 + "x")


def _made(byte_level: tuple[list[str], list[tuple[str, str]]]) -> PreTrainedTokenizerFast:
    tokens, merges = byte_level
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def test_only_words_and_merges_change(byte_level, tmp_path):
    tokenizer = _made(byte_level)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    cut_as_llama_cpp(tokenizer, "gpt2", "llama-bpe")
    assert (tokenizer.get_vocab(), tokenizer.added_tokens_decoder) == (vocabulary, added)
    ids = _ids(tokenizer, TEXTS)
    assert [tokenizer.decode(of, clean_up_tokenization_spaces=False) for of in ids] == TEXTS
    assert tokenizer.convert_ids_to_tokens(_ids(tokenizer, [" zqx"])[0]) == ["Ġzqx"]
    tokenizer.save_pretrained(tmp_path)
    assert _ids(AutoTokenizer.from_pretrained(tmp_path), TEXTS) == ids
    cut_as_llama_cpp(tokenizer, "gpt2", "dbrx")
    assert len(_ids(tokenizer, [" zqx"])[0]) > 1


def test_no_name_is_default(byte_level):
    unnamed, named = _made(byte_level), _made(byte_level)
    cut_as_llama_cpp(unnamed, "gpt2", None)
    cut_as_llama_cpp(named, "gpt2", "default")
    assert unnamed.backend_tokenizer.to_str() == named.backend_tokenizer.to_str()


def test_unknown_names_are_named(byte_level):
    tokenizer = _made(byte_level)
    with pytest.raises(PreTokenizerError, match=r"'gemma4'.*known are .*smollm"):
        cut_as_llama_cpp(tokenizer, "gpt2", "gemma4")
    with pytest.raises(PreTokenizerError, match=r"'rwkv'.*known are gpt2, llama"):
        cut_as_llama_cpp(tokenizer, "rwkv", "default")
    with pytest.raises(PreTokenizerError, match="another kind"):
        cut_as_llama_cpp(tokenizer, "llama", "default")
    assert issubclass(pretokenizers.PreTokenizerError, ValueError)
