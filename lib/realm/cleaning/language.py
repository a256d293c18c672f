"""In which language a human writes, told from the words, not from the bytes: curly quotes and emoji are English too."""

from __future__ import annotations

import re
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from realm.cleaning.funnel import Outcome, keep
from realm.conversations.conversation import Conversation

# The languages of most web pages. Rarer ones are where short or technical English would be misplaced.
LANGUAGES = "ar cs da de el en es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh"
SAMPLE_PER_TURN = 300  # characters; the first lines tell the language, pasted material comes later
SAMPLE = 1_000
FEWEST_WORDS = 5  # below that, names and typing errors decide
# Nats by which another language must be likelier than English. Short foreign sentences lead by 35 and more,
# English ones of product names and technical terms seem foreign by less than this.
CLEAR_LEAD = 15
NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|[\w.+-]+@[\w.-]+", re.S)
LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
TRANSLATION = re.compile(r"\btranslat\w+", re.I)


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(LANGUAGES.split())
    return identifier


def human_language(conversation: Conversation) -> str:
    """ISO 639 code of the human turns' language, English unless another is clearly likelier; ``""`` where a few
    Latin words are too little to tell."""
    once = dict.fromkeys(text[: 4 * SAMPLE_PER_TURN] for text in conversation.turns("user"))  # "continue" counts once
    turns = (NOT_PROSE.sub(" ", text)[:SAMPLE_PER_TURN] for text in once)
    sample = ""
    for turn in turns:
        sample += turn + "\n"
        if len(sample) >= SAMPLE:
            break
    letters = sum(c.isalpha() and not c.isascii() for c in sample)
    if letters < FEWEST_WORDS and len(LATIN_WORD.findall(sample)) < FEWEST_WORDS:
        return ""
    (likeliest, score), *others = _identifier().rank(sample)
    english_score = next((s for language, s in others if language == "en"), score)
    return likeliest if score - english_score >= CLEAR_LEAD else "en"


def english(conversation: Conversation) -> Outcome:
    """Keep what a human asks in English, and what asks for a translation."""
    language = human_language(conversation)
    if language in ("en", ""):
        return keep(conversation)
    if any(TRANSLATION.search(t) for t in conversation.turns("user")):
        return Outcome([conversation], "kept: asks for a translation")
    return Outcome([], f"human turns in {language}")
