import asyncio
import contextlib
import sqlite3
from dataclasses import replace

import nbformat
import pytest
from simulation_stage import FREE, OFF, SEEDS, Stage, as_told, ended
from stub_server import BAD_KEY, NO_WAY, TOO_LONG, StubServer, answered, echo_digest

from realm.conversations.conversation import Conversation, Message
from realm.core.seeds import turn_seed
from realm.core.stopping import STOP_VARIABLE, Stopped
from realm.dialogue.format import USER_SYSTEM_PROMPT
from realm.pipeline.pages import write_page
from realm.reporting import display
from realm.serving.dialect import GO_ON
from realm.simulation.endings import EndReason, SimulationError
from realm.simulation.engine import RESPONDER_SYSTEM_PROMPT
from realm.simulation.journal import Journal, journal_path
from realm.simulation.plan import plan, plan_replay
from realm.simulation.simulators import REPLAY, ROLEPLAY, USERGPT
from realm.simulation.standing import end_reasons

pytestmark = pytest.mark.usefixtures("no_pauses")


def kept_turns(folder):
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        return set(journal.execute("SELECT conversation, position FROM turns"))


# ---------------------------------------------------------------- modes and roles


def test_a_free_conversation_is_opened_by_the_simulated_user(servers, tmp_path):
    [talk] = Stage(servers, tmp_path).run(plan(1, 0, []))
    assert [m.role for m in talk.messages] == ["user", "assistant"] * 3
    assert talk.meta == {"mode": "free", "end_reason": "max_rounds", "simulator": "usergpt"}
    assert servers[0].completions[0].said == [("system", USER_SYSTEM_PROMPT)]


def test_a_seeded_conversation_goes_on_from_the_seeds_first_round(servers, tmp_path):
    [talk] = Stage(servers, tmp_path).run(plan(0, 1, SEEDS))
    assert talk.messages[:2] == SEEDS[0].messages
    assert talk.meta["mode"] == "seeded"
    assert talk.rounds == 3
    assert len(servers[0].completions) == len(servers[1].completions) == 2


def test_a_longer_seed_gives_its_first_round_alone(servers):
    longer = Conversation("long", (*SEEDS[0].messages, Message("user", "And more?")))
    [start] = plan(0, 1, [longer])
    assert start.opening == SEEDS[0].messages


def test_the_user_side_sees_the_roles_swapped(servers, tmp_path):
    [talk] = Stage(servers, tmp_path, max_rounds=2).run(plan(0, 1, SEEDS))
    assert servers[0].completions[0].said == [
        ("system", USER_SYSTEM_PROMPT),
        ("assistant", "Question 0?"),
        ("user", "Answer 0."),
    ]
    assert talk.messages[2].content.startswith("words about")


def test_the_responder_sees_the_whole_conversation_under_its_own_prompt(servers, tmp_path):
    [talk] = Stage(servers, tmp_path).run(plan(1, 0, []))
    for i, request in enumerate(servers[1].completions):
        expected = [(m.role, m.content) for m in talk.messages[: 2 * i + 1]]
        assert request.said == [("system", RESPONDER_SYSTEM_PROMPT), *expected]


def test_a_role_playing_user_is_greeted_once_and_only_at_the_opening(servers, tmp_path):
    Stage(servers, tmp_path, simulator=ROLEPLAY, max_rounds=2).run(plan(1, 0, []))
    first, second = servers[0].completions
    assert first.said == [("system", ROLEPLAY.system), ("user", ROLEPLAY.opening)]
    assert [role for role, _ in second.said] == ["system", "user", "assistant", "user"]
    assert second.said[1] == ("user", ROLEPLAY.opening)
    assert ("user", ROLEPLAY.opening) not in servers[1].completions[0].said


def test_tokens_are_summed_by_speaker(servers, tmp_path):
    stage = Stage(servers, tmp_path)
    stage.run(plan(2, 0, []))
    assert stage.usage == {"user": (6, 42, 18), "assistant": (6, 42, 18)}  # six turns each, 7 tokens read and 3 written


# ---------------------------------------------------------------- ends


def test_end_max_rounds(servers, tmp_path):
    reason, said = ended(servers, tmp_path, max_rounds=2)
    assert (reason, len(said)) == ("max_rounds", 4)


def test_end_context_full_by_our_own_count(servers, tmp_path):
    servers[1].reply = lambda body: "word " * 100
    reason, said = ended(servers, tmp_path, context_length=128)
    assert (reason, len(said)) == ("context_full", 2)
    assert len(servers[0].completions) == 1  # nothing is sent that cannot fit


@pytest.mark.parametrize("simulator", [USERGPT, ROLEPLAY], ids=lambda s: s.name)
def test_what_is_sent_is_whole_and_fits_to_the_last_request(servers, tmp_path, simulator):
    servers[1].reply = lambda body: f"{len(body['messages'])} " + "word " * 9
    stage = Stage(servers, tmp_path, simulator=simulator, max_rounds=99, context_length=128)
    [talk] = stage.run(plan(1, 0, []))
    assert talk.meta["end_reason"] == "context_full" and talk.rounds > 2
    longest = []
    for server, system in zip(servers, (simulator.system, RESPONDER_SYSTEM_PROMPT), strict=True):
        assert all(r.said[0] == ("system", system) for r in server.completions)
        longest.append(max(sum(len(words.split()) for _, words in r.said) for r in server.completions))
    assert max(longest) < 128 - 16 < longest[0] + 15  # a reply of 16 tokens fits; a round more would not


def test_end_context_full_by_the_server(servers, tmp_path):
    servers[1].script = ["first answer", TOO_LONG]
    reason, said = ended(servers, tmp_path)
    assert (reason, len(said)) == ("context_full", 3)


def test_end_repeated_turn(servers, tmp_path):
    servers[0].script = ["The same?", "Another.", "The same? "]
    reason, said = ended(servers, tmp_path, max_rounds=9)
    assert (reason, said[0::2]) == ("repeated_turn", ["The same?", "Another."])


def test_end_empty_turn(servers, tmp_path):
    servers[0].script = ["Something?", "  \n"]
    reason, said = ended(servers, tmp_path)
    assert (reason, len(said)) == ("empty_turn", 2)


def test_end_user_ended(servers, tmp_path):
    servers[0].script = ["Something?", ""]
    silent = replace(USERGPT, falls_silent=True)
    reason, said = ended(servers, tmp_path, simulator=silent)
    assert (reason, len(said)) == ("user_ended", 2)


def test_silence_before_anything_was_said_is_no_ending(servers, tmp_path):
    servers[0].script = [""]
    silent = replace(USERGPT, falls_silent=True)
    assert ended(servers, tmp_path, simulator=silent) == ("empty_turn", [])


def test_end_user_failed(servers, tmp_path):
    servers[0].script = ["Something?", NO_WAY]
    reason, said = ended(servers, tmp_path)
    assert (reason, len(said)) == ("user_failed", 2)


def test_end_answers_as_assistant(servers, tmp_path):
    servers[0].script = ["Something?", "Hello! How can I help you today?"]
    reason, said = ended(servers, tmp_path, rules=OFF.model_copy(update={"role_drift": True}))
    assert (reason, len(said)) == ("answers_as_assistant", 2)


def test_end_budget_spent(servers, tmp_path):
    reason, said = ended(servers, tmp_path, budget=FREE.model_copy(update={"requests": 3}))
    assert (reason, len(said)) == ("budget_spent", 3)


@pytest.mark.parametrize("answer", [NO_WAY, " ", "<end>"])
def test_end_responder_failed(servers, tmp_path, answer):
    servers[1].script = ["fine", answer]
    reason, said = ended(servers, tmp_path)
    assert (reason, len(said)) == ("responder_failed", 3)


def test_end_content_filter(servers, tmp_path):
    servers[1].script = ["fine", answered("The first words of", "content_filter")]
    stage = Stage(servers, tmp_path)
    [talk] = stage.run(plan(1, 0, []))
    assert (talk.meta["end_reason"], len(talk.messages)) == ("content_filter", 3)  # half an answer is none
    assert stage.usage["assistant"].requests == 2 and "content filter" in stage.reasons[0].words


def test_end_reasoning_only(servers, tmp_path):
    servers[1].script = ["fine", answered(None, "length", reasoning_content="hm, let me see")]
    stage = Stage(servers, tmp_path)
    [talk] = stage.run(plan(1, 0, []))
    assert (talk.meta["end_reason"], len(talk.messages)) == ("reasoning_only", 3)
    assert "the limit of 16 tokens was used up by reasoning" in stage.reasons[0].words
    assert stage.usage["assistant"].requests == 2 and stage.usage["assistant"].new_tokens == 3 + 4
    assert stage.thoughts == {"assistant": (1, 4)}


# ---------------------------------------------------------------- whole turns only


def test_a_turn_that_was_cut_is_marked_and_no_other(servers, tmp_path):
    servers[0].script = [answered("And what about the", "length")]
    servers[1].script = ["Whole.", answered("First of all the", "length")]
    [talk] = Stage(servers, tmp_path, max_rounds=2).run(plan(1, 0, []))
    assert talk.meta["cut_turns"] == [0, 3]
    assert [talk.messages[i].content for i in (0, 3)] == ["And what about the", "First of all the"]
    assert Stage(servers, tmp_path, max_rounds=2).run(plan(1, 0, [])) == [talk]  # from the journal alone


def test_a_turn_that_a_guardrail_cut_is_marked_too(servers, tmp_path):
    servers[1].script = ["so " * 50]
    [talk] = Stage(servers, tmp_path, max_rounds=1, rules=OFF.model_copy(update={"max_turn_characters": 20})).run(
        plan(1, 0, [])
    )
    assert 1 in talk.meta["cut_turns"]


def test_end_turn_cut_and_the_journal_serves_both_ways(servers, tmp_path):
    servers[1].script = ["Whole.", answered("First of all the", "length")]
    marked = Stage(servers, tmp_path, max_rounds=3)
    [whole] = marked.run(plan(1, 0, []))
    assert (whole.rounds, whole.meta["cut_turns"]) == (3, [3])
    asked = len(servers[0].completions) + len(servers[1].completions)
    [ends] = Stage(servers, tmp_path, max_rounds=3, cut_turns="end").run(plan(1, 0, []))
    assert (ends.messages, ends.meta["end_reason"]) == (whole.messages[:4], "turn_cut")
    assert ends.meta["cut_turns"] == [3]
    assert Stage(servers, tmp_path, max_rounds=3).run(plan(1, 0, [])) == [whole]
    assert len(servers[0].completions) + len(servers[1].completions) == asked


def test_a_conversation_that_ended_with_a_cut_turn_asks_no_further(servers, tmp_path):
    servers[0].script = [answered("And what about the", "length")]
    [talk] = Stage(servers, tmp_path, cut_turns="end").run(plan(1, 0, []))
    assert (len(talk.messages), talk.meta["end_reason"]) == (1, "turn_cut")
    assert servers[1].completions == []
    # Under the other way it goes on from there.
    [longer] = Stage(servers, tmp_path, max_rounds=1).run(plan(1, 0, []))
    assert longer.messages[:1] == talk.messages and len(longer.messages) == 2
    assert len(servers[0].completions) == 1


def test_a_cut_turn_is_gone_on_with_once_by_engines_that_can(servers, tmp_path, monkeypatch):
    monkeypatch.setitem(GO_ON, "api", {"continue_final_message": True})
    servers[1].script = [answered("First of all the", "length"), answered(" end.", "stop")]
    servers[1].script += [answered("Then the", "length"), answered(" middle of", "length")]
    stage = Stage(servers, tmp_path, max_rounds=2, cut_turns="continue")
    [talk] = stage.run(plan(1, 0, []))
    assert talk.turns("assistant") == ["First of all the end.", "Then the middle of"]
    assert talk.meta["cut_turns"] == [3]
    begun = servers[1].completions[1]
    assert begun.said[-1] == ("assistant", "First of all the") and begun.body["continue_final_message"] is True
    assert "continue_final_message" not in servers[1].completions[0].body
    assert len(servers[1].completions) == 4 == stage.usage["assistant"].requests
    assert stage.usage["assistant"].new_tokens == 4 + 1 + 2 + 2  # of all four requests


@pytest.mark.parametrize("requests", [1, 2, 3, 7, 12])
def test_a_budget_counts_what_is_asked_to_go_on_with_a_cut_turn(servers, tmp_path, monkeypatch, requests):
    monkeypatch.setitem(GO_ON, "api", {"continue_final_message": True})
    servers[1].script = [answered("First of all the", "length")] * 40
    for budget in (requests, requests, requests + 5):  # spent, called again, and grown
        stage = Stage(
            servers, tmp_path, max_rounds=2, cut_turns="continue", budget=FREE.model_copy(update={"requests": budget})
        )
        stage.run(plan(6, 0, []))
        asked = sum(len(server.completions) for server in servers)
        assert asked == sum(side.requests for side in stage.usage.values()) == budget


def test_where_an_engine_cannot_go_on_a_cut_turn_is_marked(servers, tmp_path):
    servers[1].script = [answered("First of all the", "length")]
    [talk] = Stage(servers, tmp_path, max_rounds=1, cut_turns="continue").run(plan(1, 0, []))
    assert talk.meta["cut_turns"] == [1] and len(servers[1].completions) == 1


# ---------------------------------------------------------------- seeds with a system turn


def test_a_seeds_system_turn_is_the_conversations_own(servers, tmp_path):
    own = Conversation("seed", (Message("system", "Be brief."), *SEEDS[0].messages))
    [talk] = Stage(servers, tmp_path, max_rounds=2).run(plan(0, 1, [own]))
    assert talk.messages[:3] == own.messages and talk.rounds == 2
    assert servers[1].completions[0].said[:2] == [("system", "Be brief."), ("user", SEEDS[0].messages[0].content)]
    assert servers[0].completions[0].said[0] == ("system", USER_SYSTEM_PROMPT)
    assert "Be brief." not in str(servers[0].completions[0].said)


def test_a_replayed_conversation_keeps_its_system_turn(servers, tmp_path):
    own = Conversation("real", (Message("system", "Be brief."), *SEEDS[0].messages, Message("user", "And then?")))
    [talk] = Stage((None, servers[1]), tmp_path, simulator=REPLAY, max_rounds=5).run(plan_replay(1, [own]))
    assert talk.turns("user") == ["Question 0?", "And then?"] and talk.messages[0] == own.messages[0]
    assert all(r.said[0] == ("system", "Be brief.") for r in servers[1].completions)


def test_reasoning_is_no_part_of_a_turn_and_is_counted(servers, tmp_path):
    servers[0].script = ["<think>\nwhat would they ask\n</think>\n\nWhy is it so?"]
    servers[1].script = [answered("It is so.", reasoning_content="one two three")]
    stage = Stage(servers, tmp_path, max_rounds=1)
    [talk] = stage.run(plan(1, 0, []))
    assert [m.content for m in talk.messages] == ["Why is it so?", "It is so."]
    assert servers[1].completions[0].said[-1] == ("user", "Why is it so?")
    assert stage.thoughts == {"user": (1, 4), "assistant": (1, 3)}
    assert stage.usage["assistant"].new_tokens == 6  # a server that counts nothing


def test_silence_after_thinking_is_not_the_end_of_a_talk(servers, tmp_path):
    servers[0].script = ["Something?", "<think>I have all I wanted"]
    silent = replace(USERGPT, falls_silent=True)
    assert ended(servers, tmp_path, simulator=silent)[0] == "reasoning_only"


# ---------------------------------------------------------------- words of templates


def test_a_token_of_the_template_that_a_model_spells_is_left_out(servers, tmp_path):
    servers[0].script = ["What is <end> here?", " <user>Next?<end>"]
    servers[1].script = ["It ends<end> a turn."]
    [talk] = Stage(servers, tmp_path, max_rounds=2).run(plan(1, 0, []))
    assert [m.content for m in talk.messages][:3] == ["What is  here?", "It ends a turn.", "Next?"]


def test_a_token_inside_a_token_is_left_out_too(servers, tmp_path):
    servers[0].script = ["Why <e<end>nd> here?"]
    [talk] = Stage(servers, tmp_path, max_rounds=1).run(plan(1, 0, []))
    assert "<end>" not in talk.messages[0].content


def test_every_reason_has_a_test_and_is_counted():
    tested = {name.removeprefix("test_end_") for name in globals() if name.startswith("test_end_")}
    assert all(any(t.startswith(reason) for t in tested) for reason in EndReason)
    talks = [Conversation(str(i), (), {"end_reason": r}) for i, r in enumerate(["max_rounds", "empty_turn"] * 2)]
    assert end_reasons(talks) == {"max_rounds": 2, "empty_turn": 2}


# ---------------------------------------------------------------- journal


@pytest.fixture
def whole_story(servers, tmp_path):
    """What a run without interruption says."""
    return as_told(Stage(servers, tmp_path / "whole").run(STARTS))


STARTS = plan(3, 2, SEEDS)  # 3 free of 6 turns and 2 seeded of 4 more: 26 turns to ask for


def requests_of(servers):
    return [(request.body["seed"], tuple(request.said)) for server in servers for request in server.completions]


def test_an_endpoint_that_starts_to_refuse_and_then_works_again(whole_story, tmp_path):
    with StubServer() as user, StubServer() as responder:
        pair = (user, responder)
        user.script = [None] * 7 + [BAD_KEY]  # None: the usual reply
        with pytest.raises(SimulationError, match=r"key is refused.*turns are kept; run again to go on"):
            Stage(pair, tmp_path, concurrency=2).run(STARTS)
        kept = kept_turns(tmp_path)
        assert 0 < len(kept) < 26
        for server in pair:
            server.script.clear()
            server.requests.clear()
        again = Stage(pair, tmp_path, concurrency=2)
        talks = again.run(STARTS)
        assert again.resumed_turns == len(kept)
        assert len(requests_of(pair)) == 26 - len(kept)
    assert as_told(talks) == whole_story


def test_a_cancelled_run_goes_on_without_asking_again(whole_story, tmp_path):
    with StubServer() as user, StubServer() as responder:
        user.seconds = responder.seconds = 0.03
        asyncio.run(cancel_after_some_turns(Stage((user, responder), tmp_path, concurrency=2), tmp_path))
        kept = kept_turns(tmp_path)
        asked = {(turn_seed(c, position, 7)) for c, position in kept}
        user.requests.clear()
        responder.requests.clear()
        talks = Stage((user, responder), tmp_path).run(STARTS)
        second = [seed for seed, _ in requests_of((user, responder))]
        assert len(second) == 26 - len(kept)
        assert asked.isdisjoint(second)
    assert as_told(talks) == whole_story


def test_a_run_that_is_asked_to_stop_closes_its_turns_and_asks_for_no_more(whole_story, tmp_path, monkeypatch):
    wish = tmp_path / "stop"
    monkeypatch.setenv(STOP_VARIABLE, str(wish))
    with StubServer() as user, StubServer() as responder:
        pair = (user, responder)
        user.seconds = responder.seconds = 0.05
        user.reply = lambda body: (len(user.completions) == 4 and wish.touch()) or echo_digest(body)
        with pytest.raises(Stopped, match=r"asked to stop: 5 conversations are open, \d+ turns are kept; run again"):
            Stage(pair, tmp_path, concurrency=2).run(STARTS)
        kept, paid = kept_turns(tmp_path), requests_of(pair)
        assert len(kept) == len(paid) < 26  # what was in flight came to a turn
        wish.unlink()
        talks = Stage(pair, tmp_path, concurrency=2).run(STARTS)
        assert len(requests_of(pair)) == 26
    assert as_told(talks) == whole_story


async def cancel_after_some_turns(stage, folder, turns=8):
    task = asyncio.create_task(stage.simulate(STARTS))
    while not (folder / "journal.sqlite").exists() or len(kept_turns_or_none(folder)) < turns:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def kept_turns_or_none(folder):
    try:
        return kept_turns(folder)
    except sqlite3.OperationalError:
        return set()  # the tables are being made


def test_a_finished_run_asks_nothing(servers, tmp_path):
    first = Stage(servers, tmp_path).run(STARTS)
    asked = len(requests_of(servers))
    assert asked == 26
    assert as_told(Stage(servers, tmp_path).run(STARTS)) == as_told(first)
    assert len(requests_of(servers)) == asked


def test_more_conversations_can_be_added_to_a_journal(servers, tmp_path):
    Stage(servers, tmp_path).run(plan(2, 0, []))
    for server in servers:
        server.requests.clear()
    talks = Stage(servers, tmp_path).run(plan(3, 0, []))
    assert [c.id for c in talks] == ["free-00000", "free-00001", "free-00002"]
    assert len(requests_of(servers)) == 6


def test_seeds_and_words_do_not_depend_on_concurrency(tmp_path):
    told, asked = [], []
    for concurrency in (1, 8):
        with StubServer() as user, StubServer() as responder:
            stage = Stage((user, responder), tmp_path / str(concurrency), concurrency=concurrency)
            told.append(as_told(stage.run(STARTS)))
            asked.append(sorted(requests_of((user, responder))))
    assert told[0] == told[1]
    assert asked[0] == asked[1]
    assert len({seed for seed, _ in asked[0]}) == 26


def test_seeds_depend_on_conversation_turn_and_seed():
    assert turn_seed("free-00001", 3, 7) == turn_seed("free-00001", 3, 7)
    assert len({turn_seed("a", 0, 7), turn_seed("b", 0, 7), turn_seed("a", 1, 7), turn_seed("a", 0, 8)}) == 4
    assert 0 <= turn_seed("a", 0, 7) < 2**31


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be taken for one" * 9, None])
def test_a_broken_journal_is_one_clear_error(tmp_path, content):
    path = tmp_path / "journal.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SimulationError, match=r"journal\.sqlite: not a usable journal .* move it away") as caught:
        Journal(path)
    assert "\n" not in str(caught.value)


def test_other_settings_get_another_journal(tmp_path):
    one = journal_path(tmp_path, {"seed": 1, "profile": {"max_rounds": 2}})
    assert one == journal_path(tmp_path, {"profile": {"max_rounds": 2}, "seed": 1})
    assert one != journal_path(tmp_path, {"seed": 2, "profile": {"max_rounds": 2}})


# ---------------------------------------------------------------- what cannot start


def test_too_few_seeds_is_a_clear_error():
    unusable = [Conversation("a", (Message("assistant", "hi"), Message("user", "hi")))]
    with pytest.raises(SimulationError, match=r"simulation\.seeded: 9 asked for, 5 of 6 seeds have a first"):
        plan(0, 9, [*SEEDS, *unusable])


def test_ids_are_stable_and_distinct():
    starts = plan(2, 2, SEEDS)
    assert [s.id for s in starts] == ["free-00000", "free-00001", "seeded-00000-seed-0", "seeded-00001-seed-1"]
    assert plan(2, 2, SEEDS) == starts


def test_a_user_side_that_is_gone_ends_the_run_and_keeps_what_was_said(tmp_path):
    with StubServer() as responder:
        with StubServer() as user:
            pass
        with pytest.raises(SimulationError, match="nothing answers there"):
            Stage((user, responder), tmp_path).run(plan(1, 0, []))


# ---------------------------------------------------------------- showing it


HOSTILE = "<script>alert('x')</script>"


def test_a_script_in_a_conversation_is_escaped_when_shown():
    talk = Conversation(HOSTILE, (Message("user", HOSTILE), Message("assistant", HOSTILE)), {HOSTILE: HOSTILE})
    page = display.conversation(talk).data
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5
    table = display.side_by_side({HOSTILE: [HOSTILE]}).data
    assert "<script" not in table
    assert table.count("&lt;script&gt;") == 2


def test_a_script_in_a_conversation_is_text_in_the_executed_page(tmp_path):
    talk = Conversation(HOSTILE, (Message("user", HOSTILE), Message("assistant", HOSTILE)), {HOSTILE: HOSTILE})
    shown = [
        display.conversation(talk).data,
        display.side_by_side({HOSTILE: [HOSTILE]}).data,
        display.table([{HOSTILE: HOSTILE}])._repr_html_(),
    ]
    outputs = [nbformat.v4.new_output("execute_result", {"text/html": text}) for text in shown]
    path = tmp_path / "03_simulation.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show", outputs=outputs)]), path)
    page = write_page(path).read_text()
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(") == 9
