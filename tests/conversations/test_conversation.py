from __future__ import annotations

import pytest

from realm.conversations.conversation import CONTEXT, PLACE, SESSION


@pytest.mark.parametrize(
    "identifier", ["s", "s_0", "s_3", "s_0/1", "2024/05/12/talk_7", "chat/0", "ü_1/2", "a1b2c3d4e5_12"]
)
def test_an_id_tells_neither_the_session_nor_the_place_in_it(talk, identifier):
    whole = talk("q", "a", id=identifier)
    assert (whole.session, whole.opens_session) == (identifier, True)


def test_meta_tells_the_session_and_the_place_in_it(talk):
    first, second = (talk("q", "a", id="x", meta={SESSION: "s", PLACE: place}) for place in (0, 4))
    assert (first.session, second.session) == ("s", "s")
    assert (first.opens_session, second.opens_session) == (True, False)


def test_who_begins_with_an_answer_opens_nothing(talk):
    assert not talk("a", "q", first="assistant").opens_session
    assert not talk("a", "q", first="assistant", meta={PLACE: 4, CONTEXT: 1}).opens_session


def test_a_system_turn_before_it_does_not_keep_a_human_turn_from_opening(talk):
    assert talk("q", "a", system="be brief").opens_session
    assert not talk(system="be brief").opens_session


@pytest.mark.parametrize("session", [7, 0, ["s"], {"s": 1}])
def test_a_session_named_by_no_text_becomes_text(talk, session):
    assert talk("x", id="s_1", meta={SESSION: session}).session == str(session)


@pytest.mark.parametrize("session", [None, ""])
def test_a_session_without_a_name_is_named_by_its_id(talk, session):
    assert talk("x", id="s_1", meta={SESSION: session}).session == "s_1"
