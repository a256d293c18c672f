import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import conversations, sft, write_tiny_model

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, SESSION, Message
from realm.core.errors import TooFewError
from realm.core.metrics import Metrics
from realm.dialogue.encoder import IGNORED, Encoder, with_ending
from realm.dialogue.format import chat_format, load_tokenizer
from realm.evaluation import user_turns
from realm.evaluation.termination import termination
from realm.evaluation.user_turns import TurnScores
from realm.training.base import load_base
from realm.training.likelihood import likelihood


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(folder):
    tokenizer = load_tokenizer(str(folder))
    return Encoder(tokenizer, chat_format("chatml", tokenizer), "user", 200, ending=True)


@pytest.fixture(scope="module")
def model(folder):
    return load_base(sft(folder))


@pytest.fixture
def talks():
    some = conversations(6, rounds=2)
    return [replace(c, meta={ENDS_SESSION: True}) if i % 2 else c for i, c in enumerate(some)]


def scores(row, number, nll, ending, end_logp=None, tokens=None) -> TurnScores:
    n = len(row)
    return TurnScores(
        np.array(row),
        np.array(number),
        np.array(number) == 0,
        np.array(nll, dtype=float),
        np.ones(n) if tokens is None else np.array(tokens, dtype=float),
        np.full(n, 4),
        np.zeros(n) if end_logp is None else np.array(end_logp, dtype=float),
        np.array(ending, dtype=bool),
        np.array(ending, dtype=bool),
    )


# ---------------------------------------------------------------- the learned ending


def test_only_a_known_end_after_an_answer_gets_an_ending(talk):
    known = replace(talk("q", "a"), meta={ENDS_SESSION: True})
    assert with_ending(known).messages == (*known.messages, Message("user", ""))
    assert with_ending(talk("q", "a")) == talk("q", "a")
    asked = replace(talk("q", "a", "q"), meta={ENDS_SESSION: True})
    assert with_ending(asked) == asked


def test_the_ending_supervises_the_end_token_alone(encoder, talk):
    known = replace(talk("q", "a"), meta={ENDS_SESSION: True})
    plain, ended = replace(encoder, ending=False).encode(known), encoder.encode(known)
    extra = ended.labels[len(plain.labels) :]
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert extra[extra != IGNORED].tolist() == [end]
    assert ended.supervised == plain.supervised + 1
    assert ended.input_ids[: len(plain.input_ids)].tolist() == plain.input_ids.tolist()


# ---------------------------------------------------------------- scoring


def test_scores_add_up_to_the_likelihood_of_the_rows(model, encoder, talks):
    found = user_turns.score_turns(model, talks, encoder, "test")
    whole = likelihood(model, list(encoder.encode_all(talks)), encoder.tokenizer, "test")
    assert np.bincount(found.row, found.nll) == pytest.approx(whole.nll, abs=1e-4)
    assert np.bincount(found.row, found.tokens).tolist() == whole.tokens.tolist()


def test_an_ending_is_scored_as_its_end_token(model, encoder, talks):
    found = user_turns.score_turns(model, talks, encoder, "test")
    assert found.over.sum() == found.silent.sum() == sum(bool(c.meta) for c in talks)
    assert found.nll[found.over] == pytest.approx(-found.end_logp[found.over], abs=1e-5)
    assert (found.tokens[found.over] == 1).all() and (found.bytes[found.over] == 0).all()


def test_a_session_that_goes_on_is_a_place_too_and_no_ending(model, encoder, talk):
    parts = [talk("q", "a", id=f"s_0/{i}", meta={SESSION: "s", PLACE: 2 * i}) for i in range(3)]
    drawn = [user_turns.held_out_segments([*parts, talk("q", id="t")], encoder, 2, seed) for seed in range(20)]
    seen = {c.id: c for chosen in drawn for c in chosen if c.session == "s"}
    assert sorted(seen) == ["s_0/0", "s_0/1", "s_0/2"]
    assert [bool(seen[name].meta.get(user_turns.GOES_ON)) for name in sorted(seen)] == [True, True, False]
    found = user_turns.score_turns(model, [seen[name] for name in sorted(seen)], encoder, "test")
    assert (found.row.tolist(), found.number.tolist()) == ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])
    assert found.silent.tolist() == [False, True, False, True, False]  # how the last one goes on is not known
    assert not found.over.any()


def test_the_chance_of_an_ending_is_that_of_the_plain_forward_pass(model, encoder, talks):
    one = talks[0]
    found = user_turns.score_turns(model, [one], encoder, "test")
    row = encoder.encode(one)
    starts = user_turns._turn_starts(row.labels)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(row.input_ids[None].astype(np.int64))).logits[0]
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = torch.log_softmax(logits.float(), -1)[starts - 1, end].numpy()
    assert found.end_logp == pytest.approx(expected, abs=1e-4)


def test_roleplay_scores_the_same_words_with_the_roles_swapped(model, encoder, talks):
    plain = user_turns.score_turns(model, talks, encoder, "plain")
    played = user_turns.score_turns(model, talks, encoder, "played", roleplay=True)
    assert played.bytes.tolist() == plain.bytes.tolist()
    assert played.number.tolist() == plain.number.tolist()
    assert played.nll.tolist() != plain.nll.tolist()
    swapped = user_turns.as_roleplay(talks[0])
    assert swapped.messages[0].role == "system"
    assert swapped.turns("assistant") == talks[0].turns("user")


def test_held_out_segments_are_one_a_session_and_never_cut(encoder, talk):
    encoder = replace(encoder, max_length=500)
    long = talk("word " * 500, "a", id="long_0")
    meta = lambda i, part: {SESSION: f"s{i}", PLACE: 2 * part}  # noqa: E731
    parts = [talk("q", "a", id=f"s{i}_0/{part}", meta=meta(i, part)) for i in range(5) for part in range(3)]
    chosen = user_turns.held_out_segments([*parts, long], encoder, 9, seed=1)
    assert sorted(c.session for c in chosen) == [f"s{i}" for i in range(5)]
    assert chosen == user_turns.held_out_segments([long, *parts[::-1]], encoder, 9, seed=1)
    assert len(user_turns.held_out_segments(parts, encoder, 2, seed=1)) == 2


def test_an_ending_that_stands_alone_is_trained_on_and_holds_no_turn_to_score(encoder, talk):
    asked = talk("q", id="s/0", meta={SESSION: "s"})
    alone = talk(
        "so it ends", first="assistant", id="s/1", meta={SESSION: "s", PLACE: 1, CONTEXT: 1, ENDS_SESSION: True}
    )
    assert encoder.encode(alone).supervised == 1
    made = [asked, alone, talk("q", id="t"), replace(alone, id="u/1", meta=alone.meta | {SESSION: "u"})]
    drawn = [user_turns.held_out_segments(made, encoder, 3, seed) for seed in range(20)]
    assert all(sorted(c.id for c in chosen) == ["s/0", "t"] for chosen in drawn)


# ---------------------------------------------------------------- comparing


def test_the_comparison_is_by_hand():
    base = scores([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [2, 4, 2, 4, 9], [0, 0, 0, 0, 1])
    ours = scores([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [1, 2, 1, 2, 9], [0, 0, 0, 0, 1])
    table = user_turns.comparison({"(a) base": base, "(e) ours": ours}, "(e) ours", seed=0)
    value = table.set_index(["model", "turns"]).perplexity
    assert value["(a) base", "all"] == pytest.approx(math.exp(12 / 4))
    assert value["(a) base", "first"] == pytest.approx(math.exp(2))
    assert value["(e) ours", "later"] == pytest.approx(math.exp(2))
    all_turns = table[(table.model == "(a) base") & (table.turns == "all")].iloc[0]
    assert all_turns.difference == pytest.approx(math.exp(1.5) - math.exp(3))
    assert all_turns.difference_low <= all_turns.difference <= all_turns.difference_high < 0
    assert all_turns.bits_per_byte == pytest.approx(12 / math.log(2) / 16)
    assert all_turns.n == 2


def test_comparisons_are_adjusted_for_their_number_and_their_verdicts_say_so():
    rng = np.random.default_rng(3)
    row, number = np.repeat(np.arange(60), 2), np.tile([0, 1], 60)
    ours = rng.normal(3.0, 0.3, 120)
    made = {"(a) base": ours + rng.normal(0.6, 0.2, 120), "(b) near": ours + rng.normal(0.0, 0.2, 120)}
    made = {name: scores(row, number, nll, [0] * 120) for name, nll in {**made, "(e) UserGPT": ours}.items()}
    table = user_turns.comparison(made, "(e) UserGPT", seed=0)
    assert table.p_holm[table.model == "(e) UserGPT"].isna().all()
    assert (table.p_holm[table.model == "(a) base"] < 1e-6).all()
    far, near = user_turns.verdicts(table, "(e) UserGPT")
    assert "UserGPT against (a) base" in far and "over 6 comparisons: **told apart**." in far
    assert "UserGPT against (b) near" in near and near.endswith("**not told apart**.")
    # One that barely excludes zero by itself does not among six.
    table.loc[table.model == "(b) near", ["difference", "difference_low", "difference_high", "p_holm"]] = (
        -1,
        -2,
        -0.1,
        0.2,
    )
    *_, near = user_turns.verdicts(table, "(e) UserGPT")
    assert "it **excludes** zero; p = 0.2 after Holm" in near and near.endswith("**not told apart**.")


def test_metrics_carry_letters_intervals_and_n():
    made = scores([0, 0, 1, 1], [0, 1, 0, 1], [2, 4, 3, 4], [0, 0, 0, 0])
    names = ("(a) base", "(b) play", "(c) other", "(d) all", "(e) ours")
    table = user_turns.comparison(dict.fromkeys(names, made), "(e) ours", seed=0)
    metrics = Metrics()
    user_turns.add_metrics(metrics, table, "(e) ours")
    by_name = {m.name: m for m in metrics}
    assert by_name["user_turn_perplexity_difference"].value == 0
    assert by_name["user_turn_perplexity_difference_both_sides"].n == 2
    assert "user_turn_perplexity_roleplay_first_turns" in by_name
    assert all(m.ci_low is not None for m in metrics)


# ---------------------------------------------------------------- endings


def ended_talks(count: int, sure: float) -> TurnScores:
    """Each conversation: an opening, a turn after an answer, and an ending the model is ``sure`` of."""
    row = np.repeat(np.arange(count), 3)
    number, ending = np.tile([0, 1, 2], count), np.tile([False, False, True], count)
    return scores(row, number, np.ones(3 * count), ending, np.where(ending, sure, -5.0))


def test_a_model_that_knows_the_end_beats_the_guesser():
    found = termination(ended_talks(20, sure=-0.1), seed=0)
    assert found.f1 == 1.0
    assert found.always == pytest.approx(2 / 3)
    assert found.gain_interval[0] > 0
    assert found.auc == 1.0 and found.auc_interval == (1.0, 1.0)
    assert (found.n, found.places, found.base_rate) == (20, 40, 0.5)


def test_a_model_that_knows_nothing_gains_nothing():
    found = termination(ended_talks(20, sure=-5.0), seed=0)
    assert found.gain == pytest.approx(0.0)
    assert found.auc == 0.5


def test_without_ends_there_is_nothing_to_tell():
    with pytest.raises(TooFewError, match=r"0 of \d known places are ends"):
        termination(scores([0, 0, 1, 1], [0, 1, 0, 1], [1] * 4, [0] * 4), seed=0)


def test_a_turn_after_context_is_no_place_where_a_session_could_have_ended(folder, encoder, talks):
    """Such a segment exists because the human went on: its beginning alone would tell."""
    told = replace(talks[0], messages=(Message("assistant", "so it ends."), *talks[0].messages), meta={CONTEXT: 1})
    base = load_base(sft(folder))
    plain, inside = (user_turns.score_turns(base, [c], encoder, "base") for c in (talks[0], told))
    assert plain.number.tolist() == inside.number.tolist()
    assert not inside.opens.any()
