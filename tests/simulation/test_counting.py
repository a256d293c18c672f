"""Where a served model has a tokenizer of its own, its server says how long a conversation is."""

from __future__ import annotations

import asyncio

import pytest
from simulation_stage import SEEDS, Stage
from stub_server import StubServer

from realm.core.profile import Endpoint
from realm.models import assets
from realm.serving.client import Address
from realm.serving.counting import TokenCounter
from realm.simulation.endings import EndReason
from realm.simulation.plan import plan
from realm.simulation.run import own_tokenizer
from realm.simulation.standing import end_reasons


@pytest.mark.parametrize(("counted", "reason"), [(10_000, EndReason.CONTEXT_FULL), (None, EndReason.MAX_ROUNDS)])
def test_the_server_s_count_decides_and_ours_stands_in(tmp_path, counted, reason):
    async def counter(messages):
        assert messages[0].role == "system"  # the whole request is counted
        return counted

    with StubServer() as user, StubServer() as responder:
        stage = Stage((user, responder), tmp_path, counters={"assistant": counter}, context_length=4096)
        talks = stage.run(plan(2, 0, SEEDS))
    assert set(end_reasons(talks)) == {reason}
    assert bool(responder.completions) == (reason == EndReason.MAX_ROUNDS)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "stub"])
def test_a_server_that_does_not_count_is_no_error(url):
    with StubServer() as stub:

        async def count():
            counter = TokenCounter(Address(stub.url if url == "stub" else url, "m"))
            try:
                return await counter([])
            finally:
                await counter.close()

        assert asyncio.run(count()) is None


def test_only_a_gguf_with_another_tokenizer_is_counted_by_its_server(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "gguf_of", lambda name: tmp_path if name.endswith(("gguf", "135m", "1.5b")) else None)
    block = Endpoint(engine="llama.cpp", model="smollm2-135m", max_new_tokens=8)
    asked = lambda **values: own_tokenizer(block.model_copy(update=values), "smollm2-135m")  # noqa: E731
    assert asked(model="qwen2.5-coder-1.5b") and asked(model="x.gguf")
    assert not asked() and not asked(model="stage:04_realm_sft") and not asked(model="a/folder")
    assert not asked(model="qwen2.5-coder-1.5b", engine="api")
