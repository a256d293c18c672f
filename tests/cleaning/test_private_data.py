from __future__ import annotations

import string
from collections import Counter

import pytest
from growth import LINEAR_AT_MOST, growth
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.private_data import API_KEY, redact, without_private_data

# Put together at run time, so that no scanner takes this file for a leak; "aB3" stands for random characters.
FILL = "aB3" * 20
KEYS = {
    "OpenAI": "sk" + "-" + FILL[:48],
    "OpenAI project": "sk" + "-proj-" + FILL[:40],
    "GitHub": "ghp" + "_" + FILL[:36],
    "GitHub fine-grained": "github" + "_pat_" + FILL[:40],
    "GitLab": "glpat" + "-" + FILL[:20],
    "AWS": "AK" + "IA" + "AB3D" * 4,
    "Google": "AI" + "za" + FILL[:35],
    "Slack": "xox" + "b-" + FILL[:30],
    "Hugging Face": "hf" + "_" + "aBcD" * 9,
    "Stripe": "sk" + "_live_" + FILL[:24],
    "JSON Web Token": "ey" + "J" + FILL[:20] + ".ey" + "J" + FILL[:20] + "." + FILL[:30],
}
KEYS |= {f"{name}, escaped": key.replace("_", "\\_") for name, key in KEYS.items() if "_" in key}
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\n" + FILL + "\n" + FILL + "\n-----END RSA " + "PRIVATE KEY-----"
FOUND = [
    ("write to jane.doe+list@mail.example.co.uk.", "write to [EMAIL].", "EMAIL"),
    ("<mailto:a@b.org>", "<mailto:[EMAIL]>", "EMAIL"),
    ("write to jane\\_doe\\_2@b.org", "write to [EMAIL]", "EMAIL"),  # as Markdown escapes it
    ("me@example.org.uk or", "[EMAIL] or", "EMAIL"),
    ("me@my-test.org", "[EMAIL]", "EMAIL"),
    ("call +1 (650) 253-0000 today", "call [PHONE] today", "PHONE"),
    ("call (650) 253-0000, please", "call [PHONE], please", "PHONE"),
    ("650-253-0000", "[PHONE]", "PHONE"),
    ("650.253.0000", "[PHONE]", "PHONE"),
    ("tel:+442083661177", "tel:[PHONE]", "PHONE"),
    ("card 4111 1111 1111 1111 exp", "card [CARD_NUMBER] exp", "CARD_NUMBER"),
    ("4111-1111-1111-1111", "[CARD_NUMBER]", "CARD_NUMBER"),
    ("378282246310005", "[CARD_NUMBER]", "CARD_NUMBER"),
    ("3782 822463 10005", "[CARD_NUMBER]", "CARD_NUMBER"),
    ("ping 93.184.216.34.", "ping [IP_ADDRESS].", "IP_ADDRESS"),
    ("93.184.216.34:53", "[IP_ADDRESS]:53", "IP_ADDRESS"),
    ("http://93.184.216.34/index.html", "http://[IP_ADDRESS]/index.html", "IP_ADDRESS"),
    ("ftp://me@93.184.216.34", "ftp://me@[IP_ADDRESS]", "IP_ADDRESS"),
    ("93.184.216.0/24", "[IP_ADDRESS]/24", "IP_ADDRESS"),
    (f"key:\n{PEM}\nend", "key:\n[PRIVATE_KEY]\nend", "PRIVATE_KEY"),
]
LEFT = {
    "date": "on 2023-08-23 12:30:00, or 23.08.2023, or 08/23/2023",
    "version": "v1.2.3.4, torch-2.13.0, python==3.11.9.1, pkg-1.2.3.4.tar",
    "path": "/download/93.184.216.34/setup",
    "years": "1990-1995, 2019 - 2023, 1914–1918",
    "ISBN": "ISBN 978-3-16-148410-0 and 0-306-40615-2",
    "local address": "127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.9 0.0.0.0 255.255.255.0 http://127.0.0.1:8000/",
    "no address": "999.1.1.1 or 1.2.3.4.5",
    "decimal": "3.14159265358979 and 0.6502530000 and 1,650,253,000",
    "price": "$1,234,567.89 or 6,502,530.00 €",
    "timestamp": "1692748800 and 1692748800123",
    "hash": "7f06e089ef660956e4ad388382dab2157eb0e8a1",
    "math": "(12) 34 + (56) 78 = 910; 100 200 3000; 6502530000 * 2",
    "code": "02-3234-153-1160",
    "hexadecimal": "0x6502530000",
    "no card": "4111 1111 1111 1112",
    "digits of a card in other groups": "41 11 11 11 11 11 11 11, 411-11111-11111-111, 4111 1111-1111 1111",
    "reserved addresses": "me@example.com, a@mail.example.org, x@host.test, y@b.invalid, z@example",
    "dots for an address": "postgresql://me:...@db.server.org",
    "small version": "gem 7.0.4.2, Version 1.0.0.0, clause 9.6.2.2",
    "resolver": "8.8.8.8, 8.8.4.4, 1.1.1.1 and 9.9.9.9",
    "placeholder of a key": "sk" + "_test_your_api_key_here",
    "class name": "sk" + "-fading-circle-container-large",
    "at sign": "a@localhost, @property, me @ home",
    "public key": PEM.replace("PRIVATE", "PUBLIC"),
}


@pytest.mark.parametrize(("text", "clean", "kind"), FOUND, ids=[clean.strip()[:30] for _, clean, _ in FOUND])
def test_private_data_become_typed_placeholders(text, clean, kind):
    assert redact(text) == (clean, Counter({kind: 1}))


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_of_known_forms_go(key):
    assert redact(f'token = "{key}"\n') == ('token = "[API_KEY]"\n', Counter(API_KEY=1))


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT.keys())
def test_other_numbers_and_names_stay(text):
    assert redact(text) == (text, Counter())


def test_both_sides_are_cleaned_and_counted_by_kind(talk):
    outcome = without_private_data(talk("I am a@b.org", "Hello a@b.org at 93.184.216.34", "thanks"))
    (left,) = outcome.kept
    assert [m.content for m in left.messages] == ["I am [EMAIL]", "Hello [EMAIL] at [IP_ADDRESS]", "thanks"]
    assert outcome.found == {"EMAIL": 2, "IP_ADDRESS": 1}
    assert outcome.reason == "private data replaced"


def test_what_holds_none_is_kept_as_it_is(talk):
    outcome = without_private_data(talk("q", "a"))
    assert (outcome.kept, outcome.reason, outcome.found) == ([talk("q", "a")], "", Counter())


PARTS = st.sampled_from(
    [t for t, _, _ in FOUND] + [*KEYS.values(), *LEFT.values(), " ", "\n", "-", ".", "8", "a", "@", "/"]
)


@given(st.lists(PARTS, max_size=6).map("".join))
def test_redacting_twice_is_redacting_once(text):
    once, _ = redact(text)
    assert redact(once) == (once, Counter())


@given(st.lists(st.tuples(PARTS, st.sampled_from([" ", "\n"])), max_size=6))
def test_counts_are_those_of_the_placeholders(parts):
    text, found = redact("".join(a + b for a, b in parts))
    assert found == Counter({kind: text.count(f"[{kind}]") for kind in found})


@given(st.text(st.characters(exclude_categories=["Nd", "Cs"], exclude_characters="@-_"), max_size=80))
def test_text_without_digits_and_marks_stays(text):
    assert "PRIVATE KEY-----" not in text
    assert redact(text) == (text, Counter())


JUNK = [
    "7",
    ".",
    "a",
    "1.",
    "1 ",
    "a@",
    "@a.",
    "(",
    "+",
    "-",
    "93.184.216.34 ",
    "650-253-0000 ",
    "sk" + "-",
    "xox" + "b-",
]


@pytest.mark.parametrize("unit", [*JUNK, "ey" + "J-", "-----BEGIN " + "PRIVATE KEY-----", "ey" + "J" + "a" * 12 + "."])
def test_work_on_long_repetitive_text_is_linear(unit):
    def make(size):
        return unit * (size // len(unit))

    clean, _ = redact(make(100_000))
    assert len(clean) <= 3 * 100_000
    assert growth(redact, make) < LINEAR_AT_MOST


def test_the_forms_above_are_forms():
    assert all(API_KEY.fullmatch(key) for key in KEYS.values())
    assert set(string.digits) & set("".join(KEYS.values()))
