"""A cut answer that is gone on with, against the running llama.cpp: both halves are what one piece is."""

import asyncio

import pytest

from realm.conversations.conversation import Message
from realm.core.profile import Endpoint
from realm.serving.local import connect

ENDPOINT = Endpoint(
    engine="llama.cpp", model="smollm2-135m", temperature=0.0, max_new_tokens=12, context_length=512, concurrency=1
)
QUESTIONS = ["Name the planets of the sun, one a line.", "Count from one to thirty in figures.", "What is rain?"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(first piece, rest, in one piece) of each question."""
    folder = tmp_path_factory.mktemp("go-on")

    async def inside():
        async with connect(ENDPOINT, "responder", folder, folder) as client:
            assert client.goes_on
            found = []
            for question in QUESTIONS:
                asked = [Message("user", question)]
                first = await client.complete(asked, 1)
                rest = await client.complete([*asked, Message("assistant", first.text)], 1)
                found.append((first, rest, await client.complete(asked, 1, max_new_tokens=24)))
            return found

    return asyncio.run(inside())


def test_the_server_goes_on_where_the_answer_was_cut(answers):
    for first, rest, whole in answers:
        assert first.cut
        assert (first.joined(rest).text, first.joined(rest).finish) == (whole.text, whole.finish)


def test_the_tokens_of_both_pieces_are_counted(answers):
    for first, rest, whole in answers:
        assert first.joined(rest).completion_tokens == whole.completion_tokens > first.completion_tokens
        assert rest.prompt_tokens == first.prompt_tokens + first.completion_tokens
