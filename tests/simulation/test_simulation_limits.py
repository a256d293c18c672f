"""What stops a simulation, or bends it: guardrails, budgets, replays, and endpoints that fail."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from simulation_stage import FREE, OFF, SEEDS, Stage, as_told, ended
from stub_server import (
    BAD_KEY,
    BROKEN,
    BUSY,
    EMPTY_CHOICES,
    NO_WAY,
    NULL_CONTENT,
    Fault,
    Raw,
    StubServer,
    Trickle,
    answered,
    echo_digest,
)

from realm.conversations.conversation import Conversation, Message
from realm.core.profile import Price, load_profile
from realm.core.seeds import turn_seed
from realm.simulation.breaker import FAILS_EVERYBODY, Breaker
from realm.simulation.budget import Ledger, dollars, estimate, share
from realm.simulation.endings import FAILED_ENDINGS_ASKED_AGAIN, EndReason
from realm.simulation.plan import plan, plan_replay
from realm.simulation.records import Usage
from realm.simulation.run import SimulationError
from realm.simulation.simulators import REPLAY, USERGPT
from realm.simulation.standing import end_reasons

pytestmark = pytest.mark.usefixtures("no_pauses")
PRICE = Price(prompt=1.0, completion=10.0)
STARTS = plan(6, 2, SEEDS)


def rules(**values):
    return OFF.model_copy(update=values)


def budget(**values):
    return FREE.model_copy(update=values)


# ---------------------------------------------------------------- guardrails


def test_an_empty_or_repeated_turn_is_asked_for_again_with_other_seeds(servers, tmp_path):
    servers[0].script = ["One?", " ", "One?", "Two?"]
    stage = Stage(servers, tmp_path, max_rounds=2, rules=rules(resample_tries=2))
    [talk] = stage.run(plan(1, 0, []))
    assert [m.content for m in talk.messages][0::2] == ["One?", "Two?"]
    seeds = [r.body["seed"] for r in servers[0].completions]
    assert seeds[1:] == [turn_seed("free-00000", 2, 7, attempt) for attempt in range(3)]
    assert len(set(seeds)) == 4
    assert stage.interventions == {"empty_turn": 1, "repeated_turn": 1}
    assert stage.usage["user"] == Usage(4, 28, 12)  # rejected answers are paid too


def test_tries_are_bounded(servers, tmp_path):
    servers[0].script = ["One?", " ", "One?", "", "never asked"]
    assert ended(servers, tmp_path, rules=rules(resample_tries=2))[0] == "empty_turn"
    assert len(servers[0].completions) == 4


def test_a_rejected_try_is_not_paid_again_after_a_restart(servers, tmp_path):
    servers[0].script = ["One?", " ", BAD_KEY]
    stage = Stage(servers, tmp_path, max_rounds=2, rules=rules(resample_tries=2))
    with pytest.raises(SimulationError, match="key is refused"):
        stage.run(plan(1, 0, []))
    servers[0].requests.clear()
    servers[0].script = ["Two?"]
    [talk] = stage.run(plan(1, 0, []))
    assert [r.body["seed"] for r in servers[0].completions] == [turn_seed("free-00000", 2, 7, 1)]
    assert talk.messages[2].content == "Two?"


def test_a_learned_ending_is_not_asked_for_again(servers, tmp_path):
    servers[0].script = ["One?", ""]
    silent = replace(USERGPT, falls_silent=True)
    assert ended(servers, tmp_path, simulator=silent, rules=rules(resample_tries=3))[0] == "user_ended"
    assert len(servers[0].completions) == 2


def test_what_a_guardrail_changed_is_told_with_the_words(servers, tmp_path):
    help_offered = "How can I help you today?"
    servers[0].script = [help_offered, "One?", help_offered, help_offered]
    stage = Stage(servers, tmp_path, rules=rules(resample_tries=1, role_drift=True))
    stage.run(plan(1, 0, []))
    [effect] = stage.effects
    assert effect == ("answers_as_assistant", 3, 1, 1) and effect.went_on == 0
    assert [(r.words, r.instead) for r in stage.rejected] == [(help_offered, "One?"), *[(help_offered, None)] * 2]
    servers[0].script = ["Two?", " ", "Three?"]
    stage = Stage(servers, tmp_path / "other", max_rounds=2, rules=rules(resample_tries=1))
    stage.run(plan(1, 0, []))
    assert stage.effects == [("empty_turn", 1, 1, 0)] and stage.effects[0].went_on == 1


def test_a_long_rejected_answer_is_kept_as_an_excerpt(servers, tmp_path):
    servers[1].reply = lambda body: "x" * 2_000_000
    stage = Stage(servers, tmp_path)
    stage.run(plan(1, 0, []))
    assert [len(r.words) for r in stage.rejected] == [500]


def test_a_long_turn_is_cut_and_counted_on_either_side(servers, tmp_path):
    servers[0].script, servers[1].script = ["why " * 50], ["so " * 50]
    stage = Stage(servers, tmp_path, max_rounds=1, rules=rules(max_turn_characters=20))
    [talk] = stage.run(plan(1, 0, []))
    assert [m.content for m in talk.messages] == ["why why why why why", "so so so so so so so"]
    assert stage.interventions == {"cut": 2}


def test_without_guardrails_nothing_is_touched(servers, tmp_path):
    servers[0].script = ["How can I help you today? " * 50]
    stage = Stage(servers, tmp_path, max_rounds=1)
    [talk] = stage.run(plan(1, 0, []))
    assert len(talk.messages[0].content) == 26 * 50 - 1
    assert stage.interventions == {}


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize(
    "limit",
    [{"requests": 11}, {"tokens": 110}, {"dollars": 11 * 37e-6, "user_price": PRICE, "responder_price": PRICE}],
    ids=["requests", "tokens", "dollars"],
)
def test_a_spent_budget_closes_every_conversation_and_a_larger_one_goes_on(servers, tmp_path, limit):
    with StubServer() as user, StubServer() as responder:
        whole = as_told(Stage((user, responder), tmp_path / "whole").run(STARTS))
    stage = Stage(servers, tmp_path / "poor", budget=budget(**limit), concurrency=1)
    talks = stage.run(STARTS)
    asked = sum(len(s.completions) for s in servers)
    assert 11 <= asked <= 12  # one more may be in flight when tokens run out
    assert {c.meta["end_reason"] for c in talks} == {"max_rounds", "budget_spent"}
    assert [c.id for c in talks] == [s["id"] for s in whole]
    again = Stage(servers, tmp_path / "poor")
    assert as_told(again.run(STARTS)) == whole
    assert sum(len(s.completions) for s in servers) == 44  # 6 free of 6 turns and 2 seeded of 4, none asked twice
    assert again.resumed_turns == asked
    assert sum(u.requests for u in again.usage.values()) == 44


def test_a_budget_spent_in_an_earlier_run_asks_nothing(servers, tmp_path):
    first = Stage(servers, tmp_path, budget=budget(requests=5)).run(STARTS)
    assert as_told(Stage(servers, tmp_path, budget=budget(requests=5)).run(STARTS)) == as_told(first)
    assert sum(len(s.completions) for s in servers) == 5


def test_few_conversations_are_cut_short_not_all(servers, tmp_path):
    talks = Stage(servers, tmp_path, budget=budget(requests=30), concurrency=2).run(plan(20, 0, []))
    whole = [c for c in talks if c.meta["end_reason"] == "max_rounds"]
    assert len(whole) >= 2
    assert sum(0 < len(c.messages) < 6 for c in talks) <= 4  # two on either side were running


def test_a_server_that_counts_no_tokens_is_counted_for(servers, tmp_path):
    bare = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "three words here"}}]}
    servers[1].reply = lambda body: Fault(200, payload=bare)
    stage = Stage(servers, tmp_path, max_rounds=1)
    stage.run(plan(1, 0, []))
    assert stage.usage["assistant"].new_tokens == 3
    assert stage.usage["assistant"].prompt_tokens > 3


def test_dollars_are_tokens_by_price():
    usage = {"user": Usage(1, 2_000_000, 100_000), "assistant": Usage(1, 1_000_000, 0)}
    assert dollars(FREE, usage) is None
    assert dollars(budget(responder_price=PRICE), usage) == 1.0
    assert dollars(budget(user_price=PRICE, responder_price=PRICE), usage) == 4.0
    assert str(Ledger(budget(user_price=PRICE), usage)) == "2 requests, 3,100,000 tokens, $3.00"
    assert str(Ledger(FREE, {})) == "0 requests, 0 tokens"


def test_shards_divide_the_budget():
    shared = share(budget(requests=10, dollars=1.0), 4)
    assert (shared.requests, shared.tokens, shared.dollars) == (2, None, 0.25)


def simulation_block(**values):
    block = load_profile("smoke").simulation
    sides = {s: getattr(block, s).model_copy(update={"max_new_tokens": 10, "context_length": 1000}) for s in SIDES}
    return block.model_copy(update={**sides, "max_rounds": 2, **values})


SIDES = ("user", "responder")


def test_the_estimate_adds_up_turn_by_turn():
    block = simulation_block(budget=budget(responder_price=Price(prompt=0.0, completion=1e6)))
    found = estimate(block, [0, 5])
    assert found.usage["user"] == Usage(2 + 1, (0 + 20) + 5, 30)
    assert found.usage["assistant"] == Usage(2 + 1, (10 + 30) + 15, 30)
    assert str(found) == "2 conversations with turns of full length: 6 requests, 140 tokens, $30.00"


def test_the_estimate_stops_where_the_context_does_and_a_replay_asks_no_user():
    assert (
        estimate(simulation_block(max_rounds=100), [0]).usage["user"].requests == 50
    )  # 990 tokens of room, 20 a round
    replay = estimate(simulation_block(user=None, simulator="replay"), [0])
    assert replay.usage["user"] == Usage()
    assert replay.usage["assistant"].requests == 2


def test_the_bar_shows_what_was_spent_and_what_is_left(servers, tmp_path, capsys):
    Stage(servers, tmp_path, budget=budget(responder_price=PRICE)).run(plan(3, 0, []))
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"simulation: 3 of 3 conversations, \d\d:\d\d; 18 requests, 180 tokens, \$0\.00", last)


# ---------------------------------------------------------------- replay


def test_a_replay_asks_the_responder_alone(tmp_path):
    said = tuple(Message(("user", "assistant")[i % 2], f"line {i}") for i in range(5))
    again = Conversation("again", (Message("user", "more"), Message("assistant", "a"), Message("user", "more")))
    starts = plan_replay(2, [Conversation("real", said), again])
    with StubServer() as responder:
        talks = ReplayStage(responder, tmp_path).run(starts)
        assert len(responder.completions) == 5
    assert talks[0].turns("user") == ["line 0", "line 2", "line 4"]
    assert talks[1].turns("user") == ["more", "more"]  # a human may repeat
    assert all(t.startswith("words about") for t in talks[0].turns("assistant"))
    told = {"mode": "replay", "end_reason": "user_ended", "simulator": "replay"}
    assert talks[0].meta == told | {"replay_of": "real", "session": "real"}


class ReplayStage(Stage):
    def __init__(self, responder, folder, **values):
        super().__init__((None, responder), folder, simulator=REPLAY, max_rounds=9, **values)


def test_too_few_conversations_to_replay_is_a_clear_error():
    with pytest.raises(SimulationError, match="6 to replay asked for, 5 of 5 conversations open with a human turn"):
        plan_replay(6, SEEDS)


# ---------------------------------------------------------------- the cookbook of faults

SLOW_DOWN = Fault(429, "slow down")
PASSING = {
    "429 with Retry-After": BUSY,
    "429 without": SLOW_DOWN,
    "500": BROKEN,
    "503": Fault(503, "overloaded"),
    "time-out": Fault(200, delay=1.0),
    "reset in mid-body": Raw(b'{"choices": [{"mess', length=500),
    "slow trickle": Trickle(seconds=1.0),
}
FINAL = {
    "truncated JSON": Raw(b'{"choices": [{"mess'),
    "empty choices": EMPTY_CHOICES,
    "null content": NULL_CONTENT,
    "a web page": Fault(200, page="<html>sign in</html>"),
    "another content type": Raw(b'{"choices": [{"mess', kind="text/plain"),
    "a stream nobody asked for": Raw(b'data: {"choices": []}\n\ndata: [DONE]\n\n', kind="text/event-stream"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_costs_nothing_but_time(servers, tmp_path, fault):
    clean = as_told(Stage(servers, tmp_path / "clean", timeout_seconds=0.4).run(plan(1, 0, [])))
    servers[1].script = [None, fault]
    talks = Stage(servers, tmp_path / "faulty", max_retries=1, timeout_seconds=0.4).run(plan(1, 0, []))
    assert as_told(talks) == clean


@pytest.mark.parametrize("fault", FINAL.values(), ids=FINAL)
@pytest.mark.parametrize(("side", "reason"), [(0, "user_failed"), (1, "responder_failed")])
def test_a_senseless_answer_ends_one_conversation_typed(servers, tmp_path, side, reason, fault):
    servers[side].script = [None, fault]
    assert ended(servers, tmp_path)[0] == reason


def test_ten_megabytes_end_the_conversation_and_leave_the_export_readable(servers, tmp_path):
    servers[1].script = ["x" * 10_000_000]
    reason, said = ended(servers, tmp_path)
    assert (reason, len(said)) == ("responder_failed", 1)


# ---------------------------------------------------------------- the circuit breaker


def test_an_endpoint_that_is_down_stops_the_run_with_a_hint(servers, tmp_path):
    servers[1].reply = lambda body: Fault(503, "overloaded")
    with pytest.raises(SimulationError) as caught:
        Stage(servers, tmp_path).run(plan(40, 0, []))
    assert "overloaded" in str(caught.value) and "\n" not in str(caught.value)
    assert "nothing else came from it in 1 s" in str(caught.value) and "run again to go on" in str(caught.value)
    servers[1].reply = echo_digest
    talks = Stage(servers, tmp_path).run(plan(40, 0, []))
    assert {c.meta["end_reason"] for c in talks} == {"max_rounds"}  # nobody pays for the outage


def test_one_conversation_alone_is_enough_to_find_an_endpoint_down(servers, tmp_path):
    servers[0].reply = lambda body: SLOW_DOWN
    started = time.monotonic()
    with pytest.raises(SimulationError, match=r"429.*nothing else came.* 0 turns are kept"):
        Stage(servers, tmp_path, patience_seconds=0.5).run(plan(1, 0, []))
    assert 0.5 <= time.monotonic() - started < 3


@pytest.mark.parametrize(
    "fault", [Fault(503, "restarting"), Raw(b'{"choices": [{"mess', length=500)], ids=["503", "reset"]
)
def test_a_blip_at_full_concurrency_is_one_sign_and_waited_out(servers, tmp_path, fault):
    begun = time.monotonic()
    broken = lambda: 0.2 < time.monotonic() - begun < 1.2  # noqa: E731
    servers[1].reply = lambda body: fault if broken() else echo_digest(body)
    stage = Stage(servers, tmp_path, concurrency=16, patience_seconds=10.0, max_rounds=6)
    talks = stage.run(plan(48, 0, []))
    assert {c.meta["end_reason"] for c in talks} == {"max_rounds"}
    refused = len(servers[1].completions) - stage.usage["assistant"].requests
    assert refused > FAILS_EVERYBODY  # the blip did hit more than a breaker by count would bear


def test_a_conversation_that_alone_is_never_answered_ends_and_the_others_go_on(servers, tmp_path):
    servers[0].reply = lambda body: "poison?" if body["seed"] == turn_seed("free-00001", 0, 7) else echo_digest(body)
    servers[1].reply = lambda body: BROKEN if "poison" in str(body["messages"]) else echo_digest(body)
    servers[1].seconds = 0.05
    stage = Stage(servers, tmp_path, patience_seconds=0.3, concurrency=4)
    talks = stage.run(plan(12, 0, []))
    assert [c.meta["end_reason"] for c in talks].count("max_rounds") == 11
    assert stage.reasons[0][:2] == (
        "responder_failed",
        "it is down or too busy (500) after all retries; it says: internal error",
    )


def test_the_last_conversation_ends_where_it_alone_is_never_answered(servers, tmp_path):
    Stage(servers, tmp_path).run(plan(2, 0, []))
    servers[1].reply = lambda body: BROKEN
    for _ in range(5):  # asked again by each call, not for ever
        talks = Stage(servers, tmp_path, patience_seconds=0.3).run(plan(3, 0, []))
        assert [c.meta["end_reason"] for c in talks] == ["max_rounds", "max_rounds", "responder_failed"]
    asked = len(servers[1].completions)
    Stage(servers, tmp_path, patience_seconds=0.3).run(plan(3, 0, []))
    assert len(servers[1].completions) == asked


def test_an_outage_with_one_request_at_a_time_stops_the_run_and_nobody_pays(servers, tmp_path):
    Stage(servers, tmp_path, concurrency=1).run(plan(2, 0, []))
    servers[1].reply = lambda body: BROKEN
    with pytest.raises(SimulationError, match="nothing else came from it"):
        Stage(servers, tmp_path, concurrency=1, patience_seconds=0.3).run(plan(9, 0, []))
    servers[1].reply = echo_digest
    talks = Stage(servers, tmp_path, concurrency=1).run(plan(9, 0, []))
    assert {c.meta["end_reason"] for c in talks} == {"max_rounds"}


def test_an_endpoint_that_fails_everybody_stops_before_all_are_lost_and_nobody_is(servers, tmp_path):
    servers[1].reply = lambda body: NO_WAY
    with pytest.raises(SimulationError, match=rf"this cannot be done\): .*; {FAILS_EVERYBODY} times in a row"):
        Stage(servers, tmp_path, concurrency=2).run(plan(100, 0, []))
    assert len(servers[1].completions) <= 3 * FAILS_EVERYBODY
    servers[1].reply = echo_digest
    talks = Stage(servers, tmp_path, concurrency=2).run(plan(100, 0, []))
    assert {c.meta["end_reason"] for c in talks} == {"max_rounds"}


def test_failures_in_flight_together_are_one_sign():
    clock = iter(range(1000))
    breaker = Breaker(lambda: next(clock))
    assert not any(breaker.failed("assistant", f"talk {i}", asked_at=0) for i in range(5 * FAILS_EVERYBODY))
    assert [breaker.failed("user", f"talk {i}", asked_at=1000 + i) for i in range(FAILS_EVERYBODY)][-1]


# ---------------------------------------------------------------- failures are not results


def test_a_run_in_which_every_request_failed_is_no_result(servers, tmp_path):
    servers[1].reply = lambda body: NO_WAY
    for _ in range(5):  # however often, since it costs nothing
        with pytest.raises(SimulationError, match=r"no answer of the assistant was of use, 2 of 2 .*cannot be done"):
            Stage(servers, tmp_path).run(plan(2, 0, []))
    assert len(servers[1].completions) == 10
    servers[1].reply = echo_digest
    assert {c.meta["end_reason"] for c in Stage(servers, tmp_path).run(plan(2, 0, []))} == {"max_rounds"}


def test_answers_of_reasoning_alone_are_no_result_and_not_paid_for_ever(servers, tmp_path):
    servers[1].reply = lambda body: answered("", "length", reasoning_content="hm")
    for _ in range(5):
        with pytest.raises(SimulationError, match="used up by reasoning; raise max_new_tokens"):
            Stage(servers, tmp_path).run(plan(1, 0, []))
    assert len(servers[1].completions) == FAILED_ENDINGS_ASKED_AGAIN


def test_a_failed_conversation_is_asked_again_a_few_times_and_keeps_its_reason(servers, tmp_path):
    poison = lambda body: "poison" in str(body["messages"])  # noqa: E731
    servers[0].reply = lambda body: "poison?" if body["seed"] == turn_seed("free-00001", 0, 7) else echo_digest(body)
    servers[1].reply = lambda body: NO_WAY if poison(body) else echo_digest(body)
    for call in range(1, 6):
        stage = Stage(servers, tmp_path)
        talks = stage.run(plan(3, 0, []))
        assert [c.meta["end_reason"] for c in talks] == ["max_rounds", "responder_failed", "max_rounds"]
        [why] = stage.reasons
        assert why[0] == "responder_failed" and "it says: this cannot be done" in why.words and why.conversations == 1
        assert "http://" not in why.words  # so that the same reason is counted once, whoever said it
        tries = sum(poison(r.body) for r in servers[1].completions)
        assert tries == min(call, FAILED_ENDINGS_ASKED_AGAIN)
    assert not any(poison(r.body) for r in servers[0].completions[6:])


def test_a_failed_conversation_whose_service_works_again_is_mended(servers, tmp_path):
    servers[1].script = [None, NO_WAY]
    assert ended(servers, tmp_path)[0] == "responder_failed"
    stage = Stage(servers, tmp_path)
    [talk] = stage.run(plan(1, 0, []))
    assert talk.meta["end_reason"] == "max_rounds" and stage.reasons == []
    assert sum(len(s.completions) for s in servers) == 6 + 1


def test_no_credit_stops_at_once(servers, tmp_path):
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    servers[1].script = [None, Fault(429, payload=body)]
    with pytest.raises(SimulationError, match=r"You exceeded your current quota\): no credit is left") as caught:
        Stage(servers, tmp_path, concurrency=1, max_retries=4).run(plan(9, 0, []))
    assert len(servers[1].completions) == 2 and "concurrency" not in str(caught.value)


def test_one_flagged_input_ends_one_conversation_and_no_key_is_blamed(servers, tmp_path):
    flagged = Fault(403, payload={"error": {"message": "input was flagged", "code": 403}})
    servers[1].script = [None, flagged]
    stage = Stage(servers, tmp_path, concurrency=1)
    talks = stage.run(plan(3, 0, []))
    assert sorted(c.meta["end_reason"] for c in talks) == ["content_filter", "max_rounds", "max_rounds"]
    assert "input was flagged" in stage.reasons[0].words and "key" not in stage.reasons[0].words
    again = Stage(servers, tmp_path)
    assert again.run(plan(3, 0, [])) == talks  # it would be flagged again


HUGE = Raw(
    json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 10_000_000}}]}).encode()
)
SLOW = {"time-out": Fault(200, delay=3.0), "slow trickle": Trickle(seconds=3.0)}
QUICK = [fault for name, fault in {**PASSING, **FINAL}.items() if name not in SLOW]
SOAK = [*QUICK, HUGE, *QUICK, *SLOW.values()]


@pytest.mark.parametrize("name", [*PASSING, *FINAL])
def test_the_soak_fails_in_every_way(name):
    fault = {**PASSING, **FINAL, **SLOW}[name]
    assert fault in SOAK


def test_five_hundred_conversations_with_every_fifth_request_failing_in_flat_memory(tmp_path):
    memory = []
    with StubServer(failing(SOAK, memory)) as user, StubServer(failing(SOAK, memory)) as responder:
        stage = Stage((user, responder), tmp_path, max_rounds=2, concurrency=16, timeout_seconds=2.0)
        talks = stage.run(plan(500, 0, []))
        assert all(len(server.completions) > len(SOAK) * 5 for server in (user, responder))
        assert not any(r.body.get("stream") for r in user.completions + responder.completions)
    assert [c.id for c in talks] == [f"free-{i:05d}" for i in range(500)]
    reasons = end_reasons(talks)
    assert set(reasons) <= set(EndReason) and reasons["max_rounds"] > 125
    assert reasons["user_failed"] and reasons["responder_failed"]
    assert all(len(c.messages) == 4 for c in talks if c.meta["end_reason"] == "max_rounds")
    half, end = (median(memory[i * len(memory) // 4 :][: len(memory) // 4]) for i in (1, 3))
    assert end - half < 48 * 2**20  # a few answers of 10 MB kept would be more


def failing(faults, memory):
    """Every fifth request fails, each time in the next way; ``memory``: bytes resident at each request."""
    count = iter(range(10**6))

    def reply(body):
        number = next(count)
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        return faults[number // 5 % len(faults)] if number % 5 == 4 else echo_digest(body)

    return reply
