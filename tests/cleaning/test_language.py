from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.funnel import Outcome
from realm.cleaning.language import english, human_language
from realm.conversations.conversation import Conversation, Message

ENGLISH = [
    "What’s the “best” café in town, and does it really cost £5 — or more? 😀",
    "Can you explain to me how a naïve Bayes classifier works, step by step?",
    "Please write a short letter to my landlord about the broken heating.",
    "give me five names for a small bakery near the sea",
]
FOREIGN = {
    "ko": "오늘 서울의 날씨는 어떤가요? 우산을 가져가야 할까요?",
    "zh": "请告诉我今天的天气怎么样，我想和朋友一起出去玩。",
    "ja": "今日の天気はどうですか。傘を持って行ったほうがいいですか。",
    "ru": "Какая сегодня погода и нужно ли мне брать с собой зонт?",
    "fr": "Quelle est la capitale de la France et pourquoi est-elle importante pour son histoire ?",
    "es": "¿Cuál es la capital de España y por qué es tan importante para su historia?",
    "de": "Wie wird das Wetter morgen in Berlin, und soll ich einen Schirm mitnehmen?",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_with_any_punctuation_stays(talk, text):
    assert human_language(talk(text, "a")) == "en"
    assert english(talk(text, "a")) == Outcome([talk(text, "a")])


@pytest.mark.parametrize(("code", "text"), FOREIGN.items())
def test_other_languages_go_and_are_named(talk, code, text):
    assert english(talk(text, "Here is a long answer in English.")) == Outcome([], f"human turns in {code}")


@pytest.mark.parametrize("text", ["fix this", "continue", "?", "", "bonjour monsieur", "ok 👍", "x = 5", "£ 5", "é"])
def test_turns_of_a_few_words_are_too_little_to_tell(talk, text):
    assert human_language(talk(text, "a")) == ""
    assert english(talk(text, "a")).kept


@pytest.mark.parametrize(
    "text",
    [
        "generate some tiktok video ideas",
        "AX1500 router vs AXT1800 router",
        "tabular form of data vs info",
        "npm install @acme/react-popover and how do i uninstall",
        "Email campaign\n" + "continue\n" * 30,
    ],
)
def test_short_english_full_of_names_and_terms_is_english(talk, text):
    assert human_language(talk(text, "a")) == "en"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("de", "Schreibe mir ein kurzes Gedicht"),
        ("fr", "donne moi une recette de poulet"),
        ("it", "scrivi una poesia sul mare"),
    ],
)
def test_five_foreign_words_are_enough(talk, code, text):
    assert human_language(talk(text, "a")) == code


def test_a_turn_said_many_times_counts_once(talk):
    asked = [FOREIGN["de"], "a", *["please go on", "b"] * 40]
    assert human_language(talk(*asked)) == "de"


def test_answers_do_not_decide(talk):
    assert english(talk(ENGLISH[2], FOREIGN["ko"])).kept
    assert not english(talk(FOREIGN["ko"], ENGLISH[2])).kept


@pytest.mark.parametrize("quoted", ["```\n{}\n```", "`{}`", "```\n{}"])
@pytest.mark.parametrize("code", ["fr", "ko"])
def test_code_does_not_decide(talk, quoted, code):
    asked = "What does this piece of code do, and why is it slow?\n" + quoted.format(FOREIGN[code].replace("\n", " "))
    assert human_language(talk(asked, "a")) == "en"


def test_addresses_do_not_decide(talk):
    address = "https://exemple.fr/quelle/est/la/capitale/de/la/france/et/pourquoi"
    assert human_language(talk(f"{address} nom@exemple.fr", "a")) == ""
    assert human_language(talk(f"{address} what is written on this page?", "a")) == "en"


@pytest.mark.parametrize("request_text", ["Translate into English:", "A TRANSLATION please:", "please translate this:"])
def test_translation_tasks_stay_and_are_told(talk, request_text):
    outcome = english(talk(f"{request_text} {FOREIGN['ru']} {FOREIGN['ru']}", "a"))
    assert (len(outcome.kept), outcome.reason) == (1, "kept: asks for a translation")


def test_an_answer_that_speaks_of_translating_saves_nothing(talk):
    assert not english(talk(FOREIGN["de"], "I translate that for you.")).kept


def test_pasted_material_comes_after_the_words_that_tell(talk):
    assert human_language(talk(ENGLISH[2] * 5 + FOREIGN["fr"] * 200, "a")) == "en"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=4))
def test_any_text_has_an_answer_and_the_same_twice(contents):
    conversation = Conversation("c", tuple(Message("user", t) for t in contents))
    assert english(conversation) == english(conversation)
    assert len(human_language(conversation)) in (0, 2)
