import pytest

from realm.conversations.conversation import MAX_TURN_BYTES, Message
from realm.core.profile import Guardrails
from realm.simulation.endings import EndReason
from realm.simulation.guardrails import Judge, answers_as_assistant

ASSISTANTS = [
    "Hello! How can I help you today?",
    "Hi there, how may I assist you?",
    "Hello there! I'm here to assist with anything.",
    "I’m here to help. What is on your mind?",
    "As an AI, I do not have feelings.",
    "As an AI language model, I cannot open links.",
    "I'm sorry, but as an AI language model I cannot do that.",
    "I am an AI assistant and can answer questions.",
    "I'm an AI.",
    "I am just a language model.",
    "Sure! Here are some ideas for a birthday:",
    "Certainly, here is a short poem.",
    "Of course! I'd be happy to help you with that.",
    "I would be more than happy to assist.",
    "What can I do for you?",
    "You're welcome! Anything else?",
    "Thank you for reaching out.",
    "Is there anything else I can do?",
]
HUMANS = [
    "How can I help my son with his homework?",
    "As an AI, what do you think about art?",
    "I am an AI researcher. What should I read?",
    "I'm here to learn Spanish, where do I start?",
    "Here is my code, why does it fail?",
    "Sure, here is the log:\nerror 3",
    "Hello, can you help me?",
    "Thanks! And in Python?",
    "Thank you for your help",
    "I'm sorry, I meant the second one",
    "What can I do for my back pain?",
    'Rewrite this: "Hello! How can I help you today?"',
    "Act as an assistant who says: I am an AI assistant",
    "are you an AI language model?",
    "I'd be happy with a shorter version",
    "",
]


@pytest.mark.parametrize("turn", ASSISTANTS)
def test_an_assistants_opening_is_told(turn):
    assert answers_as_assistant(turn)
    assert answers_as_assistant(f'  "{turn.upper()}')


@pytest.mark.parametrize("turn", HUMANS)
def test_a_humans_opening_is_left_alone(turn):
    assert not answers_as_assistant(turn)


def test_a_long_turn_is_checked_in_no_time():
    assert not answers_as_assistant("sorry, " * 200_000)


def judge(role, text, said=(), falls_silent=False, **values):
    rules = Guardrails(**{"resample_tries": 0, "max_turn_characters": None, "role_drift": False, **values})
    return Judge(rules, ("<end>",), falls_silent).judge(role, text, said)


SAID = (Message("user", "One?"), Message("assistant", "One."))


@pytest.mark.parametrize(
    ("role", "text", "values", "outcome"),
    [
        ("user", "Two?", {}, "kept"),
        ("user", "One? ", {}, EndReason.REPEATED_TURN),
        ("assistant", "One.", {}, "kept"),
        ("user", " <end>", {}, EndReason.EMPTY_TURN),
        ("user", "", {"falls_silent": True}, EndReason.USER_ENDED),
        ("assistant", " ", {}, EndReason.RESPONDER_FAILED),
        ("user", ASSISTANTS[0], {}, "kept"),
        ("user", ASSISTANTS[0], {"role_drift": True}, EndReason.ANSWERS_AS_ASSISTANT),
        ("assistant", ASSISTANTS[0], {"role_drift": True}, "kept"),
        ("user", "x" * 9, {"max_turn_characters": 9}, "kept"),
        ("user", "x" * 10, {"max_turn_characters": 9}, "cut"),
        ("assistant", "é" * MAX_TURN_BYTES, {}, EndReason.RESPONDER_FAILED),
        ("user", "é" * MAX_TURN_BYTES, {}, EndReason.USER_FAILED),
    ],
)
def test_what_becomes_of_a_reply(role, text, values, outcome):
    assert judge(role, text, SAID, **values)[1] == outcome


def test_a_cut_turn_ends_where_it_may_and_keeps_its_words():
    message, _ = judge("assistant", "one two three", max_turn_characters=8)
    assert message.content == "one two"


def test_what_no_file_can_hold_is_left_out():
    message, outcome = judge("user", "a\x00b \ud800 c")
    assert (message.content, outcome) == ("ab ? c", "kept")


def test_tries_are_counted_and_an_ending_is_final():
    rules = Guardrails(resample_tries=2, max_turn_characters=None, role_drift=False)
    gives_up = Judge(rules, (), True).gives_up
    empty = EndReason.EMPTY_TURN
    assert [gives_up([empty] * n) for n in range(4)] == [False, False, False, True]
    assert gives_up([empty, EndReason.USER_ENDED])
