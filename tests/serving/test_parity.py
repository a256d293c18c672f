"""The ids that training sees are those that the running server reads: real turns, whole conversations, both sides."""

from __future__ import annotations

import itertools
import json
import urllib.request
from dataclasses import replace

import pytest

from realm.conversations.conversation import Conversation, Message
from realm.conversations.readers import read_conversations
from realm.core.profile import Endpoint, load_profile
from realm.dialogue.encoder import encoder_of
from realm.models import assets
from realm.serving.local import local_server
from realm.training.artefacts import save_servable
from realm.training.base import add_adapter, load_base

TURNS, TALKS = 1_000, 60
BLOCK = Endpoint(engine="llama.cpp", model="served", max_new_tokens=8, context_length=2048, concurrency=1)
PROFILE = load_profile("smoke")
SIDES = {"user": "usergpt_sft", "assistant": "realm_sft"}


@pytest.fixture(scope="module")
def talks():
    """Real conversations, alternating from a human turn, none of which spells a token of the template."""
    good = []
    for talk in read_conversations(assets.data("sharegpt")):
        roles = [m.role for m in talk.messages]
        plain = not any("<|" in m.content or not m.content.strip() for m in talk.messages)
        if roles == ["user", "assistant"] * (len(roles) // 2) and roles and plain:
            good.append(Conversation(talk.id, tuple(Message(m.role, m.content.strip()) for m in talk.messages)))
        if len(good) == 600:
            return good


@pytest.fixture(scope="module", params=SIDES)
def served(request, tmp_path_factory):
    """A side, its training encoder, and a question to the running llama.cpp that serves a model saved for that side."""
    side, block = request.param, SIDES[request.param]
    encoder, config = encoder_of(PROFILE, block), getattr(PROFILE, block)
    out = tmp_path_factory.mktemp(side)
    template = encoder.format.jinja(encoder.system, flipped=side == "user")
    model = add_adapter(load_base(config), config, 0)
    merged = save_servable(model, encoder.tokenizer, config, out, template, encoder.format.ends[side])["merged"]
    with local_server(BLOCK, merged, assets.gguf_of(config.base_model), out / "log") as address:

        def ask(path, **body):
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {address.key}"}
            url = address.base_url.removesuffix("/v1") + path
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        yield side, encoder, ask


def test_a_thousand_real_turns_have_the_ids_of_the_server(served, talks):
    _, encoder, ask = served
    turns = list(itertools.islice((m.content for t in talks for m in t.messages), TURNS))
    assert len(turns) == TURNS
    ours = encoder.tokenizer(turns, add_special_tokens=False).input_ids
    theirs = [ask("/tokenize", content=t, add_special=False, parse_special=False)["tokens"] for t in turns]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) == 0
    assert any(c.isdigit() for t in turns for c in t)  # the kind of text that was read otherwise


@pytest.mark.parametrize("own_system", [False, True])
def test_whole_conversations_are_prompted_as_they_were_trained_on(served, talks, own_system):
    side, encoder, ask = served
    encoder = replace(encoder, max_length=None, ending=False)
    swap = {"user": "assistant", "assistant": "user"} if side == "user" else {}
    for talk in talks[:TALKS]:
        said = talk.messages if side == "user" else talk.messages[:-1]  # the next turn is this side's
        opening = (Message("system", "Answer in one line, 12 words."),) if own_system else ()
        sent = [{"role": swap.get(m.role, m.role), "content": m.content} for m in (*opening, *said)]
        prompt = ask("/apply-template", messages=sent)["prompt"]
        assert prompt == encoder.format.render((*opening, *said), encoder.system, reply_as=side)[0]
        theirs = ask("/tokenize", content=prompt, add_special=False, parse_special=True)["tokens"]
        trained = encoder.encode(Conversation("t", (*opening, *said, Message(side, "x")))).input_ids.tolist()
        assert theirs == trained[: len(theirs)]
        assert len(trained) - len(theirs) <= 3  # the answer, its end and what may follow it
