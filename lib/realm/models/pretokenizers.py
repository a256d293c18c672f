r"""The words that llama.cpp cuts text into before byte-level BPE, cut by the ``tokenizers`` library.

A GGUF file names its cut in ``tokenizer.ggml.pre``. transformers' import knows a few of the names, takes GPT-2's cut
for the others, and for the ones it knows takes what the model was published with. ``cut_as_llama_cpp`` sets that
right: the tokenizer then gives the ids that llama.cpp's server gives for the same file. Where llama.cpp cuts otherwise
than the published tokenizer (``gpt-4o``, ``tekken`` and more: it tells no case beyond ASCII), so does this module.

Source: llama.cpp, src/llama-vocab.cpp (names, regexes, which of them ignore merges) and src/unicode.cpp (how the
regexes are read), as in xllamacpp 2026.10.11549. Tests compare every name with that server.

llama.cpp applies the regexes of a name in turn, each to the pieces that the one before left. A piece's end is the
end of the text for the next one, and what no regex matches stays together; ``Split(..., "isolated")`` in a
``Sequence`` is the same. The regexes here say what llama.cpp makes of its own: ``\p{Lu}`` is any letter to it, ``\d``
is ASCII, contractions fold no letter beyond ASCII, ``$`` is the end of the piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from realm.core.errors import OneLineError

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model, as far as it is known here
UNNAMED = "default"  # what llama.cpp takes for a byte-level file without tokenizer.ggml.pre
SPACE = "▁"  # how SentencePiece writes a blank


class PreTokenizerError(OneLineError, ValueError):
    """A tokenizer that cannot be made equal to llama.cpp's; the message names it and what is known."""


@dataclass(frozen=True)
class Rule:
    """How one name cuts.

    ``cuts`` are regexes, each applied to the pieces of the one before. With ``ignore_merges`` a piece that is in the
    vocabulary is one token, whatever the merges would make of it.
    """

    cuts: tuple[str, ...]
    ignore_merges: bool = False


# ------------------------------------------------------------------ parts of the regexes

ANY_SIGN = r"[^\r\n\p{L}\p{N}]?"  # one sign or blank that goes with the word after it
SIGNS = r" ?[^\s\p{L}\p{N}]+"
LINES = r"\s*[\r\n]+"
BLANKS = r"\s+(?!\S)|\s+"  # the last blank goes with the word after it
ENGLISH = r"'(?:[sStTmMdD]|[lL][lL]|[vVrR][eE])"
DIGIT, TO_THREE = r"\p{N}", r"\p{N}{1,3}"
# Threes counted from a number's end. What stands before the number stays with its first digits: so does llama.cpp.
THREES_FROM_END = r"\P{N}*+(?:\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))|\z)"
MARKED = rf"{ANY_SIGN}[\p{{L}}\p{{M}}]+"
GPT2 = rf"'(?:[stmd]|ll|[vr]e)| ?\p{{L}}+| ?\p{{N}}+|{SIGNS}|{BLANKS}"


def _words(digits: str, letters: str = rf"{ANY_SIGN}\p{{L}}+", signs: str = SIGNS + r"[\r\n]*", first: str = "") -> str:
    """GPT-4's scheme; ``first`` is an alternative tried before all others."""
    return "|".join(filter(None, (first, letters, digits, signs, LINES, BLANKS)))


def _cased(letter: str, ending: str) -> str:
    """Words that end before a capital of ASCII; ``letter`` is the inside of a class."""
    upper, lower = f"[{letter}&&[^a-z]]", f"[{letter}&&[^A-Z]]"
    return f"{ANY_SIGN}{upper}*{lower}+{ending}|{ANY_SIGN}{upper}+{lower}*{ending}"


GPT4, QWEN2 = _words(TO_THREE, first=ENGLISH), _words(DIGIT, first=ENGLISH)
SLASHED, MAYBE_ENGLISH = SIGNS + r"[\r\n/]*", f"(?:{ENGLISH})?"
CHINESE_JAPANESE = r"[\u4e00-\u9fa5\u3040-\u30ff]+"
EAST_ASIAN = r"[\u0800-\u9fa5\uac00-\ud7ff&&\S]+"  # llama.cpp takes blanks beyond ASCII out before it looks
SENTENCE = r" ?[^\s(|).,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c]+"


def _deepseek(signs: str, lines: str) -> str:
    """A sign goes with the ASCII letters after it."""
    letters = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    return rf"{letters}| ?[\p{{P}}\p{{S}}]+{signs}|{lines}|{BLANKS}"


# ------------------------------------------------------------------ the names

_NAMES = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
    "modern-bert mpt olmo jais trillion granite-docling exaone4": Rule((GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Rule((DIGIT, GPT2)),
    "default": Rule((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}")),
    "falcon": Rule((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9]{3}")),
    "chameleon": Rule(
        ("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", DIGIT, r"[\p{P}!-/:-@\[-`{-~]", GPT2)
    ),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5": Rule((GPT4,), True),
    "dbrx smaug-bpe chatglm-bpe": Rule((GPT4,)),
    "minicpm5": Rule((TO_THREE, GPT4), True),
    "k2-horizon": Rule((_words(TO_THREE, rf"{ANY_SIGN}[\p{{L}}\p{{M}}\u200c\u200d]+", first=ENGLISH),)),
    "jais-2": Rule(
        (GPT4.removesuffix(BLANKS) + "".join(rf"\s{{{2**n}}}(?!\S)|" for n in range(9, 1, -1)) + r"\s{1,2}(?!\S)|\s",)
    ),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 "
    "llada-moe": Rule((QWEN2,)),
    "laguna": Rule((r"\n+", QWEN2)),
    "ufakzeka": Rule((_words(DIGIT),)),
    "seed-coder": Rule((_words(DIGIT, signs=r" ?[^\s\p{L}\p{N}\r\n]+", first=ENGLISH),)),
    "qwen35": Rule((_words(DIGIT, MARKED, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", ENGLISH),)),
    "exaone-moe": Rule(
        (_words(DIGIT, rf"{ANY_SIGN}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+", SIGNS + r"[\r\n/]?", ENGLISH),)
    ),
    "tekken": Rule((_words(DIGIT, _cased(r"\p{L}", ""), SLASHED),), True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Rule((_words(TO_THREE, _cased(r"\p{L}", MAYBE_ENGLISH), SLASHED),)),
    "granite-embed-multi-97m": Rule((_words(TO_THREE, _cased(r"\p{L}\p{M}", MAYBE_ENGLISH), SLASHED),), True),
    "tiny_aya cohere2moe": Rule((THREES_FROM_END, _words(TO_THREE, MARKED + MAYBE_ENGLISH, SLASHED))),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Rule((TO_THREE, CHINESE_JAPANESE, _deepseek(r"[\r\n]*", LINES))),
    "spark2_5": Rule((TO_THREE, CHINESE_JAPANESE, _deepseek("", r"[\r\n]"), DIGIT)),
    "poro-chat bloom gpt3-finnish": Rule((SENTENCE,)),
    "viking": Rule((SENTENCE, DIGIT)),
    "superbpe": Rule((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")),
}
RULES: dict[str, Rule] = {name: rule for names, rule in _NAMES.items() for name in names.split()}


# ------------------------------------------------------------------ setting a tokenizer right


def cut_as_llama_cpp(
    tokenizer: PreTrainedTokenizerBase, kind: str, name: str | None, add_space_prefix: bool = True
) -> None:
    """Make a tokenizer that transformers read from a GGUF file split text as llama.cpp does.

    ``kind`` is the file's ``tokenizer.ggml.model``, ``name`` its ``tokenizer.ggml.pre`` (None where it has none),
    ``add_space_prefix`` its ``tokenizer.ggml.add_space_prefix``, which counts for SentencePiece only. Vocabulary,
    merges and added tokens stay as they are, and so does what is put around a text (``add_bos_token``).

    Raises PreTokenizerError for a kind or a name that is not known, and for a tokenizer that is not of that kind.
    """
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise PreTokenizerError(
            f"tokenizer model {kind!r} (tokenizer.ggml.model) is not known; known are {BYTE_LEVEL}, {SENTENCEPIECE}"
        )
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.BPE) or backend.model.byte_fallback != (kind == SENTENCEPIECE):
        raise PreTokenizerError(f"the file says tokenizer model {kind!r}, but transformers made another kind of it")
    if kind == SENTENCEPIECE:
        _set_sentencepiece(backend, add_space_prefix)
    else:
        _set_byte_level(backend, rule(name))


def rule(name: str | None) -> Rule:
    """The rule of a ``tokenizer.ggml.pre``; PreTokenizerError if it is not known."""
    try:
        return RULES[name or UNNAMED]
    except KeyError:
        raise PreTokenizerError(
            f"pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known; known are {', '.join(sorted(RULES))}"
        ) from None


def pre_tokenizer(cuts: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """Cut by each regex in turn, then spell bytes by letters."""
    # Digits and ByteLevel's own regex do the same as a Split would, faster, and are what others recognize.
    own = cuts[-1] == GPT2
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True)
        if cut == DIGIT
        else pre_tokenizers.Split(Regex(cut), behavior="isolated")
        for cut in (cuts[:-1] if own else cuts)
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def _set_byte_level(backend: Tokenizer, rule: Rule) -> None:
    backend.normalizer = None  # llama.cpp has none, though Qwen's published tokenizers compose (NFC)
    backend.pre_tokenizer = pre_tokenizer(rule.cuts)
    backend.model.ignore_merges = rule.ignore_merges


def _set_sentencepiece(backend: Tokenizer, add_space_prefix: bool) -> None:
    """llama.cpp puts a blank before each text between special tokens, also before one that begins with a blank.

    transformers' Metaspace does so for the first text only, unless that begins with a blank, and whatever the file
    says.
    """
    blanks = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *blanks] if add_space_prefix else blanks)
    backend.pre_tokenizer = None
    spelled = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*spelled, decoders.Strip(" ", left=1)] if add_space_prefix else spelled)
