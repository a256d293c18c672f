"""Each row of the table of services: it works, or is one line with the service's own words, its kind and the fix."""

import asyncio
import re

import pytest
from service_table import OUTCOMES, TABLE, WORKS, markdown
from simulation_stage import Stage
from stub_server import StubServer

from realm.conversations.conversation import Message
from realm.core.files import REPOSITORY
from realm.serving.client import Address, Client
from realm.serving.faults import EndpointError
from realm.simulation.endings import SimulationError
from realm.simulation.plan import plan

KEY = "sk-not-a-real-key-0123456789"
HELLO = [Message("system", "Be brief."), Message("user", "Hello?")]
SERVICES = {
    "OpenAI chat", "OpenAI reasoning models", "Azure", "vLLM", "SGLang", "llama.cpp", "TGI", "Ollama", "LM Studio",
    "DeepSeek", "Qwen", "Mistral", "OpenRouter", "a moderated gateway", "a gateway without a model list",
}  # fmt: skip


async def answer_of(row, server):
    client = Client(Address(server.url, "stub", KEY), server.endpoint(**row.endpoint), "responder")
    try:
        if row.models:
            await client.check()
            server.requests.clear()
        first = await client.complete(HELLO, 1)
        asked = len(server.completions)
        await client.complete(HELLO, 2)
        return first, asked, len(server.completions) - asked
    finally:
        await client.close()


def test_the_table_holds_the_services_that_people_use():
    assert {row.service for row in TABLE} >= SERVICES
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_the_docs_hold_the_table_as_it_is_tested():
    assert (REPOSITORY / "docs/services.md").read_text(encoding="utf-8").endswith(markdown())


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.kind not in (WORKS, "refused", "no_credit")], ids=lambda r: r.name
)
def test_the_simulation_does_what_the_table_says(row, tmp_path):
    answered = row.kind != "unreachable"  # else nothing ever comes from it
    with StubServer() as user, StubServer(row.reply) as responder:
        responder.script = ["Fine."] * answered
        stage = Stage((user, responder), tmp_path, max_rounds=2, patience_seconds=0.2, **row.endpoint)
        if not answered:
            with pytest.raises(SimulationError, match="nothing else came from it") as caught:
                stage.run(plan(1, 0, []))
            assert row.says in str(caught.value) and stage.ended == {}
            return
        [talk] = stage.run(plan(1, 0, []))
    [why] = stage.reasons
    named = re.search(r"`([a-z]+_[a-z]+)`", OUTCOMES[row.kind])
    assert talk.meta["end_reason"] == why.reason == (named[1] if named else "responder_failed")
    assert row.says in why.words and len(talk.messages) == 3
    paid = row.reply({"messages": []}).status == 200 and "error" not in row.reply({"messages": []}).payload
    assert stage.usage["assistant"].requests == 1 + paid  # what came all the same is counted


@pytest.mark.parametrize("row", [r for r in TABLE if r.kind == WORKS], ids=lambda r: r.name)
def test_it_works(row, capsys):
    with StubServer(row.reply, row.models) as server:
        reply, asked, again = asyncio.run(answer_of(row, server))
    assert (reply.text, reply.reasoning, reply.finish) == (row.text, row.reasoning, row.finish)
    assert (asked, again) == (row.asked, 1)  # what was learned is kept
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(row.learned) == asked - 1
    for line, learned in zip(told, row.learned, strict=True):
        assert line.startswith("responder (stub at ") and f"as by {learned} in the profile" in line


@pytest.mark.parametrize("row", [r for r in TABLE if r.kind != WORKS], ids=lambda r: r.name)
def test_it_is_one_line_with_its_own_words(row, capsys):
    with StubServer(row.reply) as server, pytest.raises(EndpointError) as caught:
        asyncio.run(answer_of(row, server))
    error = caught.value
    assert error.kind == row.kind
    assert row.says in str(error) and row.key in str(error) and "\n" not in str(error)
    assert row.says in error.reason and server.url not in error.reason
    assert KEY not in str(error)
    assert len(server.completions) == row.asked
    assert not capsys.readouterr().err
