"""How people say what they ask: length, lexical diversity, capitals, punctuation, typos, politeness, questions.

Two kinds of functions: ``MARKS`` tell something of one text, a share or a number, NaN where it has nothing to tell of;
``mattr``, ``hdd`` and ``mtld`` tell of a list of words, the pooled turns of many conversations. The lists of words are
English, and ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.stats import hypergeom

WORD = re.compile(r"\w+")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|\S*[/_\\@<>{}=]\S*", re.DOTALL)
PLAIN_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,}(?![\w'’-])")  # lower case: others are names and abbreviations
SENTENCE_END = re.compile(r"[.?!…][\"')\]”’]*\s*\Z")
MARK = re.compile(r"[^\w\s]")
POLITE = re.compile(
    r"\b(?:please|pls|plz|thanks?|thank you|thx|kindly|sorry|excuse me|appreciate|grateful|"
    r"(?:could|would|can|may|might) (?:you|i|we)|would you mind|i would like|i'd like)\b",
    re.IGNORECASE,
)
ASKS = "what why how who whom whose which when where is are was were do does did can could will would should has have"
ORDERS = """
act add analyze answer apply arrange ask assume build calculate change check choose classify code combine come compare
complete compose convert correct count create define delete describe design determine develop discuss draft draw
elaborate enumerate estimate evaluate expand explain extend extract find fix format generate give go help identify
illustrate imagine implement improve include insert integrate introduce keep let list look make modify name optimize
organize outline paraphrase perform pick plan play predict prepare present pretend produce propose prove provide put
read recommend refactor remove rephrase replace reply respond rewrite say search select send shorten show simplify
simulate solve sort split start state suggest summarize take talk tell test think translate try turn update use
verify visualize write
"""
FIRST_ASK, FIRST_ORDER = frozenset(ASKS.split()), frozenset(ORDERS.split())
WINDOW, DRAWN, FACTOR, SHORTEST = 50, 42, 0.72, 10  # words; words; type-token ratio; words of a factor at least


def words_of(text: str) -> list[str]:
    return [w.lower() for w in WORD.findall(text)]


# ---------------------------------------------------------------- of one text


def length(text: str) -> float:
    """Words."""
    return float(len(WORD.findall(text)))


def opens_with_capital(text: str) -> float:
    """1 or 0: whether the first letter is a capital; NaN without a letter that has the choice."""
    first = next((c for c in text if c.isalpha() and c.upper() != c.lower()), "")
    return float(first.isupper()) if first else math.nan


def ends_with_mark(text: str) -> float:
    """1 or 0: whether the text closes as a sentence does."""
    return float(bool(SENTENCE_END.search(text))) if text.strip() else math.nan


def punctuation(text: str) -> float:
    """Marks a word, code and addresses left out."""
    prose = CODE.sub(" ", text)
    words = len(WORD.findall(prose))
    return len(MARK.findall(prose)) / words if words else math.nan


def typos(text: str) -> float:
    """Share of plain lower-case words of three letters or more that the dictionary does not know, code left out.

    The dictionary is pyspellchecker's English one. Rare words count too, so the share tells by comparison alone.
    """
    words = PLAIN_WORD.findall(CODE.sub(" ", text))
    known = _dictionary()
    return sum(w not in known for w in words) / len(words) if words else math.nan


@cache
def _dictionary() -> frozenset[str]:
    from spellchecker import SpellChecker  # a third of a second to load

    return frozenset(SpellChecker(language="en").word_frequency.words())


def polite(text: str) -> float:
    """1 or 0: whether a word or phrase of courtesy stands in it (after Danescu-Niculescu-Mizil et al. 2013)."""
    return float(bool(POLITE.search(text)))


def question(text: str) -> float:
    """1 or 0: whether it asks, by a question mark in prose or by its first word."""
    first = WORD.search(text)
    return float("?" in CODE.sub(" ", text) or bool(first and first[0].lower() in FIRST_ASK))


def order(text: str) -> float:
    """1 or 0: whether it opens with a verb in the imperative, after a "please" or not."""
    words = [w.lower() for w in WORD.findall(text[:200])]
    words = words[1:] if words[:1] in (["please"], ["pls"], ["plz"]) else words
    return float(bool(words) and words[0] in FIRST_ORDER)


# Key of a metric -> (words for a reader, function of a text).
MARKS: dict[str, tuple[str, Callable[[str], float]]] = {
    "mean_words": ("words a turn", length),
    "capitals": ("turns that open with a capital", opens_with_capital),
    "sentence_ends": ("turns that close with . ? or !", ends_with_mark),
    "punctuation": ("marks a word", punctuation),
    "typos": ("words that no dictionary knows", typos),
    "polite": ("turns with a word of courtesy", polite),
    "questions": ("turns that ask a question", question),
    "orders": ("turns that open with an order", order),
}


def mean_over(texts: Sequence[str], of: Callable[[str], float]) -> float:
    """Mean over the texts of one conversation, NaN left out; NaN if nothing is left."""
    values = [v for t in texts if not math.isnan(v := of(t))]
    return float(np.mean(values)) if values else math.nan


# ---------------------------------------------------------------- of many words


def mattr(words: Sequence[str], window: int = WINDOW) -> float:
    """Moving-average type-token ratio (Covington and McFall 2010): distinct words in each run of ``window``, averaged.

    A shorter text is one run; NaN without words.
    """
    if len(words) <= window:
        return len(set(words)) / len(words) if words else math.nan
    inside = Counter(words[:window])
    total = types = len(inside)
    for gone, come in zip(words, words[window:], strict=False):
        inside[come] += 1
        types += inside[come] == 1
        inside[gone] -= 1
        types -= inside[gone] == 0
        total += types
    return total / (len(words) - window + 1) / window


def hdd(words: Sequence[str], drawn: int = DRAWN) -> float:
    """HD-D (McCarthy and Jarvis 2010): distinct words expected among ``drawn`` drawn without replacement, over
    ``drawn``. NaN for fewer words than that."""
    if len(words) < drawn:
        return math.nan
    counts, of = np.unique(list(Counter(words).values()), return_counts=True)
    absent = hypergeom.pmf(0, len(words), counts, drawn)
    return float((of * (1 - absent)).sum() / drawn)


def mtld(words: Sequence[str]) -> float:
    """MTLD (McCarthy and Jarvis 2010): mean length in words of the runs over which the type-token ratio falls to 0.72,
    forwards and backwards. NaN without words."""
    return (_mtld(words) + _mtld(words[::-1])) / 2 if words else math.nan


def _mtld(words: Sequence[str]) -> float:
    factors, seen, size = 0.0, set(), 0
    for word in words:
        seen.add(word)
        size += 1
        if size >= SHORTEST and len(seen) / size < FACTOR:
            factors, seen, size = factors + 1, set(), 0
    if size:
        factors += (1 - len(seen) / size) / (1 - FACTOR)
    return len(words) / factors if factors else float(len(words))


LEXICAL: dict[str, tuple[str, Callable[[Sequence[str]], float]]] = {
    "mattr": (f"distinct among {WINDOW} words in a row (MATTR)", mattr),
    "hdd": (f"distinct among {DRAWN} words drawn (HD-D)", hdd),
    "mtld": ("words until they repeat (MTLD)", mtld),
}
