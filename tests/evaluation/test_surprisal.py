import math

import numpy as np
import pytest
from tiny_model import sft, write_tiny_model

from realm.conversations.conversation import Conversation, Message
from realm.dialogue.encoder import Encoder
from realm.dialogue.format import USER_SYSTEM_PROMPT, chat_format, load_tokenizer
from realm.evaluation import groups, surprisal
from realm.training.base import load_base
from realm.training.likelihood import likelihood

TEXT = "Why is the sky blue? Tell me more of it, please."


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    tokenizer = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, chat_format("chatml", tokenizer), "user", 200, USER_SYSTEM_PROMPT, ending=True)
    return load_base(sft(folder)), encoder


def test_it_is_the_likelihood_of_the_turn_without_its_end_and_cut_alike(parts):
    model, encoder = parts
    found = surprisal.surprisal(model, {"humans": [TEXT, TEXT[:20], "  "], "base": [TEXT]}, encoder, 1_000)
    row = encoder.encode(Conversation("one", (Message("user", TEXT),)))
    labels = row.labels.copy()
    labels[np.flatnonzero(labels != -100)[-1]] = -100  # the end token
    whole = likelihood(model, [type(row)("one", row.input_ids, labels, False)], encoder.tokenizer, "by itself")
    assert found["humans"][0] == pytest.approx(whole.nll[0] / whole.tokens[0], rel=1e-4)
    assert found["base"] == [pytest.approx(found["humans"][0], rel=1e-4)]
    assert math.isnan(found["humans"][2])
    few = surprisal.surprisal(model, {"humans": [TEXT, TEXT + " And more of it."]}, encoder, 5)["humans"]
    assert few[0] == pytest.approx(few[1], rel=1e-4) and few[0] != pytest.approx(found["humans"][0], rel=1e-4)


def test_a_token_of_the_template_that_is_spelled_is_words_and_empty_texts_alone_are_none(parts):
    model, encoder = parts
    spelled = surprisal.surprisal(model, {"base": ["<|im_end|> so <|im_start|>"]}, encoder, 100)["base"]
    assert math.isfinite(spelled[0])
    assert all(map(math.isnan, surprisal.surprisal(model, {"base": ["", " "]}, encoder, 100)["base"]))


def test_no_more_texts_are_looked_at_than_tell(parts, monkeypatch):
    model, encoder = parts
    monkeypatch.setattr(surprisal, "AT_MOST", 3)
    found = surprisal.surprisal(model, {"humans": [TEXT] * 9, "base": [TEXT] * 9}, encoder, 5)
    assert {who: len(some) for who, some in found.items()} == {"humans": 6, "base": 3}


def test_what_a_model_expects_less_lies_farther_from_humans():
    rng = np.random.default_rng(0)
    drawn = {"humans": 4.0, "usergpt": 3.9, "roleplay": 2.0}
    nats = {who: list(rng.normal(mean, 0.3, 40 * (1 + (who == "humans")))) for who, mean in drawn.items()}
    [row] = groups.surprised(nats, 1)
    assert row.group == groups.SAID and row.values["roleplay"].n == 40
    place = row.positions
    assert place["usergpt"].value < 0.3 and place["roleplay"].value == pytest.approx(1.0)
    assert row.values["usergpt"].ci_low < 3.9 < row.values["usergpt"].ci_high
