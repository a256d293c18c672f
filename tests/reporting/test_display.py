"""What notebooks show: a chat, texts side by side, figures with words, how long a stage takes."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from realm.conversations.conversation import Conversation, Message
from realm.core.metrics import PUBLISHED, Metric
from realm.core.profile import ProfileError
from realm.reporting import display as show
from realm.reporting import figures

EVIL = "<script>alert(1)</script> costs $5 and $6"


def test_a_conversation_is_a_chat_escaped_and_no_formula(talk):
    page = show.conversation(talk(EVIL, "An answer.")).data
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert 'class="mathjax_ignore tex2jax_ignore"' in page
    assert page.index("margin-left:auto") < page.index("<b>human</b>") < page.index("margin-right:auto")


def test_a_long_turn_is_folded_and_nothing_of_it_is_lost(talk):
    page = show.conversation(talk("short", "a" * 400 + "b" * 300), limit=400).data
    assert page.count("<details>") == 1
    assert "a" * 400 + "…" in page and "…" + "b" * 300 in page and "more (300 characters)" in page


def test_turns_after_the_first_few_are_folded_as_one(talk):
    page = show.conversation(talk(*"abcdef"), turns=4).data
    assert page.count("<details>") == 1 and "and 2 more turns" in page
    assert page.index("and 2 more turns") < page.index(">e</span>")


def test_metadata_of_a_conversation_is_escaped_too():
    shown = Conversation("<b>id</b>", (Message("user", "hi"),), {"from": "<i>"})
    page = show.conversation(shown).data
    assert "<b>id</b>" not in page and "<i>" not in page


def test_texts_side_by_side_are_escaped_folded_and_no_formula():
    page = show.side_by_side({"<a>": [EVIL], "b": ["x" * 50]}, limit=40).data
    assert "<script>" not in page and "<a>" not in page
    assert page.count("<details>") == 2 and "mathjax_ignore" in page


def test_tables_are_escaped_whole_and_no_formulas():
    page = show.frame_html(show.table([{"text": EVIL + "x" * 300}]))
    assert "<script>" not in page and "x" * 300 in page and "mathjax_ignore" in page


def test_words_stand_on_the_left_of_a_table_and_numbers_on_the_right():
    page = show.frame_html(pd.DataFrame({"who": ["a", "b"], "n": [1, 2]}))
    assert page.count("text-align:left") == page.count("text-align:right") == 3  # a head and two rows
    assert "<th>" not in page  # rows are not numbered


def test_a_table_whose_rows_have_names_shows_them():
    page = show.frame_html(pd.DataFrame({"n": [1, 2]}, index=["one", "two"]))
    assert "<th>one</th>" in page and page.count("text-align:right") == 3


def test_a_table_without_rows_says_so():
    assert "No rows" in show.frame_html(show.table([]))
    assert "No rows" in show.side_by_side({"human": [], "UserGPT": []}).data


def test_numbers_of_a_table_are_short_and_what_rounding_left_of_zero_is_zero():
    page = show.frame_html(pd.DataFrame({"a": [0.7125001, 1.1e-16, float("nan")], "n": [12_000, 1, 2]}))
    assert ">0.7125<" in page and ">0<" in page and "e-16" not in page and "NaN" not in page and ">12000<" in page


def test_limits_stand_behind_their_value():
    frame = pd.DataFrame({"auc": [0.75, 0.5], "low": [0.7, None], "high": [0.8, None], "n": [3, 4]})
    told = show.merged(frame, auc=("low", "high"))
    assert told.to_dict("list") == {"auc": ["0.75 [0.7, 0.8]", "0.5"], "n": [3, 4]}


def test_metrics_are_folded_and_told_in_words():
    metrics = [Metric("user_turn_perplexity_after", 7.0, 6.0, 8.0, 20), Metric("x", 1, source=PUBLISHED)]
    page = show.metrics_table(metrics).data
    assert page.startswith("<details><summary") and "2 metrics" in page
    assert "perplexity of held-out human turns, UserGPT" in page and "user_turn_perplexity_after" in page
    assert "6 to 8" in page and "x (published)" in page
    assert show.metrics_table(metrics, folded=False).data.startswith("<details open>")


def test_a_figure_brings_its_words(tmp_path):
    numbers = pd.DataFrame({"step": ["one", "two"], "n": [1, 2]})
    figure, table = figures.bars(numbers, "step", "n", "count", 'How "many"')
    path = figures.save(figure, table, tmp_path, "01_many")
    bundle = show.figure(path)._repr_mimebundle_()
    assert bundle["text/plain"].startswith('How "many"')
    assert '<img alt="How &quot;many&quot;' in bundle["text/html"]
    assert 'src="data:image/png;base64,iVBOR' in bundle["text/html"]


def test_a_figure_without_a_note_has_its_name(tmp_path):
    path = figures.save(plt.figure(), pd.DataFrame({"a": [1]}), tmp_path, "01_plain")
    assert 'alt="01_plain"' in show.figure(path)._repr_mimebundle_()["text/html"]


@pytest.fixture
def reference(tmp_path, monkeypatch):
    def write(**profiles):
        for profile, seconds in profiles.items():
            stage = {"seconds": seconds, "manifest": {"device": "CPU, 2 cores"}, "metrics": [], "profile": profile}
            (tmp_path / profile).write_text(json.dumps({"01_data": stage}))

    monkeypatch.setattr(show, "reference_metrics_path", lambda profile: tmp_path / profile)
    return write


@pytest.mark.parametrize(("seconds", "words"), [(41.3, "41 seconds"), (600.0, "10 minutes")])
def test_how_long_a_stage_takes_is_read_from_the_reference_run(reference, seconds, words):
    reference(cpu=seconds)
    assert f"under `cpu` took **{words}** (CPU, 2 cores)" in show.takes("01_data", "cpu").data


def test_a_profile_without_a_reference_run_is_told_of_that_of_cpu(reference):
    reference(cpu=50.0)
    assert "the reference run under `cpu` took" in show.takes("01_data", "smoke").data
    assert "No reference run" in show.takes("03_simulation", "smoke").data


def test_an_unknown_profile_is_an_error_of_one_line(reference):
    with pytest.raises(ProfileError, match="no such profile"):
        show.takes("01_data", "no-such-profile")
