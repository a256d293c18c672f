"""A served model stops where training taught it to, also where its base ends texts by another token."""

from __future__ import annotations

import asyncio
import json

import pytest
from tiny_model import SPECIAL, sft, write_tiny_model, write_vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

from realm.conversations.conversation import Conversation, Message
from realm.core.profile import Endpoint
from realm.dialogue.encoder import Encoder
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT, chat_format, load_tokenizer
from realm.serving.client import Client
from realm.serving.local import local_server
from realm.training.artefacts import save_servable
from realm.training.base import add_adapter, load_base
from realm.training.trainer import train

ANSWER = "Rain taps the window like a patient guest."
ASKED = [Message("system", ASSISTANT_SYSTEM_PROMPT), Message("user", "Write a line about rain.")]
LIMIT = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that learned one answer and its end; its base ends texts by SPECIAL[0], not by its template's token."""
    folder = write_tiny_model(tmp_path_factory.mktemp("base"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values |= {"eos_token": SPECIAL[0]} if name == "tokenizer_config.json" else {"eos_token_id": 0}
        (folder / name).write_text(json.dumps(values))
    tokenizer, config = load_tokenizer(str(folder)), sft(folder, supervise="assistant", epochs=12, lora_rank=16)
    assert tokenizer.eos_token == SPECIAL[0]
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "assistant", 400)
    talk = Conversation("t", (ASKED[1], Message("assistant", ANSWER)))
    rows = [encoder.encode(talk).without_tail()] * 32
    model = add_adapter(load_base(config), config, 1)
    out = tmp_path_factory.mktemp("trained")
    train(model, tokenizer, rows, config, out, 1)
    template = encoder.format.jinja(ASSISTANT_SYSTEM_PROMPT, flipped=False)
    merged = save_servable(model, tokenizer, config, out, template, encoder.format.ends["assistant"])["merged"]
    vocabulary = out / "vocabulary.gguf"
    write_vocabulary(vocabulary, AutoModelForCausalLM.from_pretrained(folder), end=SPECIAL[0])
    return merged, vocabulary


def reply(engine, merged, vocabulary, log):
    block = Endpoint(engine=engine, model="tiny", max_new_tokens=LIMIT, context_length=512, concurrency=1)

    async def ask(address):
        client = Client(address, block, "tiny")
        try:
            return await client.complete(ASKED, 1, temperature=0.0)
        finally:
            await client.close()

    with local_server(block, merged, vocabulary, log) as address:
        return asyncio.run(ask(address))


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_the_served_model_stops_at_the_end_of_its_turn(trained, engine, tmp_path):
    found = reply(engine, *trained, tmp_path / "log")
    assert found.text.strip() == ANSWER
    assert found.finish == "stop"
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    answer = tokenizer(ANSWER, add_special_tokens=False).input_ids
    assert found.completion_tokens <= len(answer) + 1 < LIMIT
    text, _ = chat_format("chatml", tokenizer).render(ASKED, None, reply_as="assistant")
    assert found.prompt_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)  # read as trained on
