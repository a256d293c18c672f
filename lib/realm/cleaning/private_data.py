"""E-mail addresses, phone and card numbers, keys and public IP addresses, replaced by typed placeholders."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import phonenumbers

from realm.cleaning.funnel import Outcome, keep
from realm.conversations.conversation import Conversation, Message

# Markdown's escapes of underscores (\\_) occur in addresses and keys. Names that RFC 2606 reserves are nobody's.
EMAIL = re.compile(
    r"(?<![\w.+%-])(?=[.+%-]*\w)(?:[\w.+%-]|\\_){1,64}@"
    r"(?!(?:[A-Za-z0-9-]{1,63}\.)*?(?:example(?:\.com|\.net|\.org)?|test|invalid|localhost)(?![\w-]|\.\w))"
    r"(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----).){40,}-----END [A-Z ]*PRIVATE KEY-----", re.S)
# The forms of keys of OpenAI, GitHub, GitLab, AWS, Google, Slack, Hugging Face and Stripe; JSON Web Tokens.
KEY_STARTS = ("sk-", "sk_", "sk\\_", "gh", "github", "glpat-", "AKIA", "AIza", "xox", "hf_", "hf\\_", "eyJ")
# A key holds a digit, names such as sk-fading-circle-container do not; how far it is looked for is bounded.
API_KEY = re.compile(
    r"\b(?:sk-(?=[\w-]{0,60}\d)[\w-]{20,}|sk\\?_(?:live|test)\\?_(?=\w{0,60}\d)\w{16,}|gh[pousr]\\?_[A-Za-z0-9]{30,}"
    r"|github\\?_pat\\?_(?:\w|\\_){22,}|glpat-(?:[\w-]|\\_){20,}|AKIA[0-9A-Z]{16}\b|AIza(?:[\w-]|\\_){35}(?![\w-])"
    r"|xox[abprs]-(?=[\w-]{0,60}\d)[\w-]{10,}|hf\\?_[A-Za-z]{30,}"
    r"|(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.(?:[\w-]|\\_){10,})"
)
# The host of a URL too, but no other part of its path; begins with a digit, which makes the scan fast.
ADDRESS = re.compile(r"\d(?<![\w.,=#$-]\d)(?<![^/]/\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w=%-]|[.,]\d)")
# One scan finds every run of digits long enough to be another number; the rest is decided on these.
DIGITS = re.compile(r"(?<![\w.,/=#$-])(?:\+|\(|\b)\d[\d .()-]{5,22}\d(?![\w/=%-]|[.,]\d)")
PHONE_FORM = re.compile(r"\+\d|\(\d{2,4}\)[ .-]?\d|\d{3}[ .-]\d{3,4}[ .-]\d{3,4}\Z")
PHONE_REGION = "US"  # for numbers without a country code
IP = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z")
# Payment cards as they are printed: in one run, in fours, or 4-6-5.
CARD = re.compile(r"[3-6](?:\d{12,15}|\d{3}([ -])\d{4}\1\d{4}\1\d{1,4}|\d{3}([ -])\d{6}\2\d{5})")
SMALL = 32  # versions, headings and the resolvers that everybody names (8.8.8.8) are of smaller parts than this
Finder = Callable[[str], Iterator[tuple[int, int, str]]]


def _matches(kind: str, pattern: re.Pattern[str], starts: tuple[str, ...]) -> Finder:
    """A pattern that is tried only where one of its ``starts`` occurs: most texts hold none."""

    def find(text: str) -> Iterator[tuple[int, int, str]]:
        if any(s in text for s in starts):
            yield from ((*m.span(), kind) for m in pattern.finditer(text))

    return find


def _addresses(text: str) -> Iterator[tuple[int, int, str]]:
    for match in ADDRESS.finditer(text):
        if _is_public(match.group()):
            yield (*match.span(), "IP_ADDRESS")


def _numbers(text: str) -> Iterator[tuple[int, int, str]]:
    for match in DIGITS.finditer(text):
        kind = _number_kind(match.group())
        if kind:
            yield (*match.span(), kind)


def _number_kind(text: str) -> str:
    if IP.match(text):
        return ""
    digits = re.sub(r"\D", "", text)
    if CARD.fullmatch(text) and _luhn(digits):
        return "CARD_NUMBER"
    return "PHONE" if PHONE_FORM.search(text) and _is_phone(text) else ""


def _is_public(text: str) -> bool:
    try:
        return max(map(int, text.split("."))) >= SMALL and ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1, annex B)."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


def _is_phone(text: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, PHONE_REGION))
    except phonenumbers.NumberParseException:
        return False


FINDERS: tuple[Finder, ...] = (
    _matches("PRIVATE_KEY", PRIVATE_KEY, ("PRIVATE KEY-----",)),
    _matches("API_KEY", API_KEY, KEY_STARTS),
    _matches("EMAIL", EMAIL, ("@",)),
    _addresses,
    _numbers,
)


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with ``[EMAIL]``, ``[PHONE]``, ``[CARD_NUMBER]``, ``[IP_ADDRESS]``, ``[API_KEY]`` and
    ``[PRIVATE_KEY]`` in place of what they name, and how many of each."""
    found: Counter[str] = Counter()
    for find in FINDERS:
        parts, position = [], 0
        for start, end, kind in find(text):
            parts += [text[position:start], f"[{kind}]"]
            position = end
            found[kind] += 1
        text = "".join(parts) + text[position:] if parts else text
    return text, found


def without_private_data(conversation: Conversation) -> Outcome:
    """Private data in either side's turns replaced by placeholders and counted by kind."""
    found: Counter[str] = Counter()
    messages = []
    for message in conversation.messages:
        content, of_one = redact(message.content)
        found += of_one
        messages.append(Message(message.role, content) if of_one else message)
    if not found:
        return keep(conversation)
    return Outcome([replace(conversation, messages=tuple(messages))], "private data replaced", found)
