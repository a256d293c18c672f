import pandas as pd
import pytest

from realm.cleaning.presets import steps
from realm.core.metrics import Metrics
from realm.dialogue.encoder import Encoder
from realm.dialogue.format import chat_format
from realm.evaluation import published
from realm.evaluation.mt_bench import CATEGORIES

SHOWN = [
    "platolm-7b",
    "ultralm-13b",
    "vicuna-7b-v1.3",
    "llama-2-7b-chat-hf",
    "baize-v2-13b",
    "vicuna-7b",
    "baize-v2-7b",
]


def test_160_scores_of_80_questions_in_two_turns():
    scores = published.mt_bench_scores()
    assert list(scores.columns) == ["question_id", "category", "turn", "score"]
    assert len(scores) == 160
    assert sorted(scores.question_id.unique()) == list(range(81, 161))
    assert (scores.groupby("question_id").turn.apply(sorted).apply(tuple) == (1, 2)).all()
    assert scores.score.between(1, 10).all()
    assert (scores.groupby("category").size() == 20).all()
    assert set(scores.category) == set(CATEGORIES)


def test_the_table_of_those_scores():
    table = published.mt_bench_table(seed=1).set_index("group")
    assert table.score["overall"] == 6.328125
    assert table.ci_low["overall"] < 6.328125 < table.ci_high["overall"]


def test_realm_stands_between_its_published_neighbours():
    peers = published.mt_bench_peers()
    assert peers.score.is_monotonic_decreasing
    by_model = peers.set_index("model").score
    assert by_model["llama-2-7b-chat"] == 6.27
    assert by_model["llama-2-7b-chat"] < 6.328125 < by_model["vicuna-13b-v1.3"]


def test_the_alpaca_table_holds_the_seven_rows():
    table = published.alpaca_eval()
    assert sorted(table.model) == sorted(SHOWN)
    assert table.win_rate.is_monotonic_decreasing
    assert table.win_rate.between(0, 100).all() and (table.standard_error > 0).all()
    assert table.set_index("model").win_rate["platolm-7b"] > table.set_index("model").win_rate["llama-2-7b-chat-hf"]


def test_the_second_alpaca_table_is_length_controlled_and_lists_the_paper():
    table = published.alpaca_eval(2).set_index("model")
    assert table.length_controlled_winrate.is_monotonic_decreasing
    assert table.length_controlled_winrate["platolm-7b"] == pytest.approx(10.5434, abs=1e-4)
    assert table.win_rate["platolm-7b"] == pytest.approx(6.3208, abs=1e-4)


def test_the_published_metrics_and_the_lead_in_words():
    metrics = Metrics()
    published.add_mt_bench(metrics, seed=20230823)
    published.add_alpaca_eval(metrics)
    assert {m.source for m in metrics} == {"published"}
    assert metrics["mt_bench_published_overall"].value == 6.328125
    assert metrics["mt_bench_published_lead"].value == pytest.approx(0.058125)
    assert metrics["alpaca_eval_2_published_win_rate"].value == pytest.approx(10.5434, abs=1e-4)
    first = metrics["alpaca_eval_published_win_rate"]
    assert first.ci_low < first.value < first.ci_high and first.n == 803
    text = published.lead_in_words(metrics)
    for part in ("6.33", "6.27", "**0.06**", "160 scores", "5.59 to 7.06", "0.2", "cannot be told apart"):
        assert part in text


def test_every_published_block_names_its_source():
    blocks = published.everything()
    assert blocks.keys() >= {"cleaning_funnel", "corpus_statistics", "mt_bench", "alpaca_eval"}
    assert all(len(block["source"]) > 10 for block in blocks.values())


def test_the_funnel_falls_and_every_step_of_it_has_one_of_ours(byte_level):
    funnel = published.funnel()
    assert funnel.sessions.iloc[0] == 90_664
    # One step of the source splits and gains four sessions, by its own count.
    assert (funnel.sessions.diff().dropna() <= 4).all()
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", 64)
    rules = steps("paper", encoder, near_duplicate_threshold=0.7, replace_private_data=False)
    ours = [step.name for step in rules]
    assert set(funnel.ours) - {"read"} <= set(ours)


def test_the_corpus_table_is_consistent():
    corpora = published.corpora()
    computed = corpora.messages * corpora.tokens_per_message / corpora.conversations
    assert computed.to_list() == pytest.approx(corpora.tokens_per_conversation.to_list(), rel=1e-2)
    assert isinstance(corpora, pd.DataFrame) and len(corpora) == 8
