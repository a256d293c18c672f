from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.funnel import EXAMPLES_PER_REASON, Outcome, Step, each, keep, run_funnel
from realm.conversations.conversation import SESSION, Conversation


def shout(conversation: Conversation) -> Outcome:
    loud = tuple(replace(m, content=m.content.upper()) for m in conversation.messages)
    return Outcome([replace(conversation, messages=loud)], "made loud", Counter(LETTERS=3))


def no_long_ids(conversation: Conversation) -> Outcome:
    return keep(conversation) if len(conversation.id) < 4 else Outcome([], "long id")


def halved(conversation: Conversation) -> Outcome:
    parts = [
        replace(conversation, id=f"{conversation.id}/{i}", messages=(m,)) for i, m in enumerate(conversation.messages)
    ]
    return Outcome([replace(p, meta={"session": conversation.session}) for p in parts], "split")


def test_a_step_reports_changes_drops_sessions_examples_and_findings(talk):
    made = [talk("q", f"a{i}", id=f"s_{i}", meta={SESSION: "s"}) for i in range(5)] + [talk("q", "a", id="long_0")]
    left, (loud, short) = run_funnel(made, [Step("loud", each(shout)), Step("short", each(no_long_ids))])
    assert (loud.segments_in, loud.segments_out, loud.changed) == (6, 6, 6)
    assert (loud.sessions_in, loud.sessions_out) == (2, 2)
    assert loud.found == {"LETTERS": 18}
    assert (short.segments_out, short.sessions_out, short.changed) == (5, 1, 0)
    assert short.reasons == {"long id": 1}
    assert [c.id for c in left] == [f"s_{i}" for i in range(5)]
    assert loud.seconds >= 0


def test_a_record_that_names_no_session_counts_as_one_whatever_its_id(talk):
    _, (report,) = run_funnel([talk("q", id="x")] * 3, [Step("all", each(keep))])
    assert (report.sessions_in, report.sessions_out) == (3, 3)


def test_examples_show_before_and_after(talk):
    made = [talk("q", id=f"s_{i}") for i in range(5)]
    _, (report,) = run_funnel(made, [Step("loud", each(shout))])
    assert len(report.examples) == EXAMPLES_PER_REASON
    assert [e.before for e in report.examples] == made[:EXAMPLES_PER_REASON]
    assert all(e.after[0].turns("user") == ["Q"] and e.reason == "made loud" for e in report.examples)


def test_an_example_of_what_went_has_nothing_after(talk):
    _, (report,) = run_funnel([talk("q", id="long_0")], [Step("short", each(no_long_ids))])
    assert [(e.before.id, e.after) for e in report.examples] == [("long_0", [])]


def test_a_row_names_both_counts_and_why(talk):
    _, (report,) = run_funnel([talk("a", "b", id="s_0")], [Step("half", each(halved))])
    row = report.row()
    row.pop("seconds")
    assert row == {
        "step": "half",
        "conversations in": 1,
        "conversations out": 1,
        "segments in": 1,
        "segments out": 2,
        "changed": 1,
        "why": "split: 1",
    }


def test_what_was_found_stands_in_the_row_with_thousands_marked(talk):
    _, (report,) = run_funnel([talk("q", id=str(i)) for i in range(1_000)], [Step("loud", each(shout))])
    assert report.row()["why"] == "made loud: 1,000, LETTERS: 3,000"


@given(
    st.lists(st.sampled_from(["a", "bb", "long", "longer"]), max_size=20), st.permutations([shout, no_long_ids, halved])
)
def test_each_step_takes_what_the_last_one_left(ids, rules):
    made = [Conversation(i, ()) for i in ids]
    left, reports = run_funnel(made, [Step(rule.__name__, each(rule)) for rule in rules])
    expected = len(made)
    for report in reports:
        assert report.segments_in == expected
        expected = report.segments_out
    assert expected == len(left)


def test_a_step_that_loses_count_is_an_error(talk):
    with pytest.raises(ValueError, match="zip"):
        run_funnel([talk("q"), talk("r")], [Step("broken", lambda conversations: [Outcome([])])])


def test_no_steps_and_no_conversations(talk):
    assert run_funnel([talk("q")], []) == ([talk("q")], [])
    assert run_funnel(iter(()), [Step("loud", each(shout))])[0] == []
