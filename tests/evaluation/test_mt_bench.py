import asyncio
import json
import math
from collections import Counter

import pandas as pd
import pytest
from stub_server import BAD_KEY, BROKEN, BUSY, TOO_LONG, Fault, StubServer, answered

from realm.core.files import ArtefactError
from realm.core.metrics import Metrics
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT
from realm.evaluation import mt_bench, published
from realm.evaluation.mt_bench import CATEGORIES, NEEDS_REFERENCE, TEMPERATURES, MTBenchError, read_rating
from realm.serving.client import Address, Client
from realm.serving.faults import EndpointError


@pytest.fixture(scope="module")
def questions():
    return mt_bench.load_questions()


@pytest.fixture
def server():
    with StubServer() as running:
        yield running


def with_client(server, call, **values):
    async def inside():
        client = Client(Address(server.url, "stub"), server.endpoint(**values), "realm")
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(inside())


def answer_some(server, questions, path, model="realm", **values):
    return with_client(server, lambda client: mt_bench.answer(client, questions, path, model, seed=7), **values)


def answer(server, questions, path, model="realm", **values):
    records, missing = answer_some(server, questions, path, model, **values)
    assert missing == []
    return records


# ---------------------------------------------------------------- questions


def test_the_packaged_questions(questions):
    assert len(questions) == 80
    assert Counter(q.category for q in questions) == dict.fromkeys(CATEGORIES, 10)
    assert [q.id for q in questions] == list(range(81, 161))
    assert all(len(q.turns) == 2 and all(t.strip() for t in q.turns) for q in questions)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 2, "category": "math", "turns": ["only one"]}', "line 2: no question with"),
        ('{"question_id": 2, "turns": ["a", "b"]}', "line 2: no question with"),
        ("[1, 2]", "line 2: no question with"),
        ('{"question_id": 2,', "line 2 is not JSON"),
    ],
)
def test_a_malformed_question_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "question.jsonl"
    path.write_text('{"question_id": 1, "category": "math", "turns": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(MTBenchError) as caught:
        mt_bench.load_questions(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_the_draw_takes_the_same_number_from_each_category(questions):
    drawn = mt_bench.draw_stratified(questions, 24, seed=3)
    assert Counter(q.category for q in drawn) == dict.fromkeys(CATEGORIES, 3)
    assert [q.id for q in drawn] == sorted({q.id for q in drawn})


def test_the_draw_depends_on_the_seed_alone(questions):
    draw = lambda seed: [q.id for q in mt_bench.draw_stratified(questions, 16, seed)]  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    assert len(mt_bench.draw_stratified(questions, 80, 1)) == 80


# ---------------------------------------------------------------- answers


def test_answers_stand_in_fastchats_layout(server, questions, tmp_path):
    path = tmp_path / "answers" / "realm.jsonl"
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    records = answer(server, drawn, path)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written == records
    assert [r["question_id"] for r in written] == [q.id for q in drawn]
    for record in written:
        assert record.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp", "cut"}
        assert record["model_id"] == "realm"
        [choice] = record["choices"]
        assert choice["index"] == 0
        assert len(choice["turns"]) == 2 and all(choice["turns"])
    assert len({r["answer_id"] for r in written}) == 8


def test_both_turns_are_asked_and_the_second_sees_the_first(server, questions, tmp_path):
    [record] = answer(server, [questions[0]], tmp_path / "a.jsonl")
    first, second = server.completions
    opening = [("system", ASSISTANT_SYSTEM_PROMPT), ("user", questions[0].turns[0])]
    assert first.said == opening
    replied = record["choices"][0]["turns"]
    assert second.said == [*opening, ("assistant", replied[0]), ("user", questions[0].turns[1])]


def test_each_category_is_asked_at_its_own_temperature(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    answer(server, drawn, tmp_path / "a.jsonl", temperature=1.3)
    category = {q.turns[0]: q.category for q in drawn}
    asked = {category[r.said[1][1]]: r.body["temperature"] for r in server.completions}
    assert asked == TEMPERATURES
    assert len(server.completions) == 16


def test_a_second_run_asks_nothing(server, questions, tmp_path):
    first = answer(server, questions[:8], tmp_path / "a.jsonl")
    server.requests.clear()
    assert answer(server, questions[:8], tmp_path / "a.jsonl") == first
    assert server.requests == []


def test_more_questions_ask_only_for_what_is_missing(server, questions, tmp_path):
    answer(server, questions[:3], tmp_path / "a.jsonl")
    server.requests.clear()
    records = answer(server, questions[:5], tmp_path / "a.jsonl")
    assert len(records) == 5
    assert len(server.completions) == 4


OTHER = {"length": {"max_new_tokens": 24}, "top-p": {"top_p": 0.5}}


@pytest.mark.parametrize("change", OTHER)
def test_answers_under_other_sampling_are_asked_for_and_the_old_ones_stay(server, questions, tmp_path, change, capsys):
    first = answer(server, questions[:2], tmp_path / "a.jsonl")
    server.requests.clear()
    capsys.readouterr()
    answer(server, questions[:2], tmp_path / "a.jsonl", **OTHER[change])
    assert len(server.completions) == 4
    [key] = OTHER[change]
    noted = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(noted) == 1 and f"was said otherwise ({key} " in noted[0]
    server.requests.clear()
    assert answer(server, questions[:2], tmp_path / "a.jsonl") == first
    assert server.completions == []


def test_answers_under_another_seed_are_asked_for(server, questions, tmp_path):
    answer(server, questions[:2], tmp_path / "a.jsonl")
    server.requests.clear()
    path = tmp_path / "a.jsonl"
    with_client(server, lambda client: mt_bench.answer(client, questions[:2], path, "realm", seed=8))
    assert len(server.completions) == 4


def test_answers_of_another_model_under_the_same_name_are_asked_for(server, questions, tmp_path):
    for n, weights in enumerate(("a", "b", "a")):
        server.requests.clear()

        async def inside(weights=weights):
            words = {"engine": "llama.cpp", "weights": weights}
            client = Client(Address(server.url, "stub"), server.endpoint(), "realm", words)
            try:
                await mt_bench.answer(client, questions[:2], tmp_path / "a.jsonl", "realm", seed=7)
            finally:
                await client.close()

        asyncio.run(inside())
        assert len(server.completions) == (4, 4, 0)[n]


def test_pace_and_patience_ask_for_nothing(server, questions, tmp_path):
    answer(server, questions[:2], tmp_path / "a.jsonl")
    server.requests.clear()
    patient = {"concurrency": 1, "timeout_seconds": 9.0, "max_retries": 2, "requests_per_minute": 600}
    answer(server, questions[:2], tmp_path / "a.jsonl", context_length=4096, api_key_env=None, **patient)
    assert server.completions == []


def test_answers_given_before_a_failure_are_kept(server, questions, tmp_path):
    server.script = [None] * 12 + [BAD_KEY]
    with pytest.raises(EndpointError, match="key is refused"):
        answer(server, questions[:8], tmp_path / "a.jsonl", concurrency=1)
    server.requests.clear()
    answer(server, questions[:8], tmp_path / "a.jsonl")
    assert len(server.completions) < 16


def kept_file(folder):
    [path] = folder.glob("*.kept")
    return path


def test_a_broken_line_of_kept_answers_is_named(server, questions, tmp_path):
    answer(server, questions[:1], tmp_path / "a.jsonl")
    path = kept_file(tmp_path)
    path.write_text("{}x\n" + path.read_text())
    with pytest.raises(ArtefactError, match=r"a-\w+\.journal\.kept: line 1 is no kept answer; take that line out"):
        answer(server, questions[:1], tmp_path / "a.jsonl")


def test_an_answer_that_was_being_written_when_the_run_was_killed_is_asked_again_alone(server, questions, tmp_path):
    answer(server, questions[:2], tmp_path / "a.jsonl")
    path = kept_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    server.requests.clear()
    for _ in range(2):
        answer(server, questions[:2], tmp_path / "a.jsonl")
    assert len(server.completions) == 1


def test_an_answer_with_a_line_separator_of_unicode_stays_one_line(server, questions, tmp_path):
    server.reply = lambda body: "one\u2028two"
    first = answer(server, questions[:1], tmp_path / "a.jsonl")
    server.requests.clear()
    assert answer(server, questions[:1], tmp_path / "a.jsonl") == first
    assert mt_bench.read_answers(tmp_path / "a.jsonl") == first
    assert server.completions == []


# ---------------------------------------------------------------- what does not come


FLAGGED = Fault(403, "This input was flagged by moderation: violence")


def refuse(turn, fault):
    """Whatever asks with these words is refused, for good; all others are answered."""
    return lambda body: fault if any(turn in m["content"] for m in body["messages"]) else "words"


@pytest.mark.parametrize("fault", [FLAGGED, TOO_LONG, BUSY], ids=["flagged", "too long", "never answered"])
def test_one_refused_question_costs_itself_alone_and_is_asked_again(server, questions, tmp_path, fault):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    refused = drawn[4]
    server.reply = refuse(refused.turns[0], fault)
    for _ in range(2):
        server.requests.clear()
        records, missing = answer_some(server, drawn, tmp_path / "a.jsonl")
        assert [m.question_id for m in missing] == [refused.id]
        assert missing[0].reason and [r["question_id"] for r in records] == [q.id for q in drawn if q != refused]
        assert mt_bench.read_answers(tmp_path / "a.jsonl") == records
    assert len(server.completions) <= 2  # what was answered is kept
    server.reply = lambda body: "words"
    assert len(answer(server, drawn, tmp_path / "a.jsonl")) == 16


def test_a_service_that_refuses_everybody_is_an_error_and_no_result(server, questions, tmp_path):
    server.reply = lambda body: FLAGGED
    with pytest.raises(EndpointError, match="flagged by moderation"):
        answer_some(server, questions[:8], tmp_path / "a.jsonl")


def test_a_service_that_went_away_stops_and_what_came_is_kept(questions, tmp_path):
    with StubServer() as gone:

        def breaks(body):
            gone.models = BROKEN
            return BROKEN

        gone.script, gone.reply = ["words"] * 12, breaks
        with pytest.raises(EndpointError):
            answer_some(gone, questions[:8], tmp_path / "a.jsonl", concurrency=1)
    assert len(kept_file(tmp_path).read_text().splitlines()) == 12


def test_judgments_that_do_not_come_are_counted_with_their_reasons(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    records = answer(server, drawn, tmp_path / "a.jsonl")
    server.reply = lambda body: FLAGGED if drawn[2].turns[1] in body["messages"][-1]["content"] else "[[7]]"
    judged, missing = judge_some(server, drawn, records, tmp_path / "judgments" / "realm.jsonl")
    assert [m.question_id for m in missing] == [drawn[2].id] and "flagged" in missing[0].reason
    assert len(judged) == 31
    metrics = Metrics()
    mt_bench.judged_metrics(metrics, judged, missing, drawn, "realm", "stub", seed=1)
    counted = metrics["mt_bench_missing_judgments_realm"]
    assert (counted.value, counted.n) == (1, 32)
    assert metrics["mt_bench_overall_realm"].n == 31


def test_questions_without_answers_are_not_judged(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    records = answer(server, drawn, tmp_path / "a.jsonl")[1:]
    server.reply = lambda body: "[[7]]"
    judged = judge(server, drawn, records, tmp_path / "judgments" / "realm.jsonl")
    assert {r["question_id"] for r in judged} == {q.id for q in drawn[1:]}


def test_answers_cut_at_the_limit_say_so(server, questions, tmp_path):
    server.script = [answered("half of", "length"), answered("whole", "stop")]
    [record] = answer(server, questions[:1], tmp_path / "a.jsonl")
    assert record["cut"] == [True, False]


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: [[5]]", 5),
        ("Rating: [[8.5]]", 8.5),
        ("[[10]] out of ten", 10),
        ("Rating: [[1]]", 1),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("Rating: [[-1]]", None),
        ("Rating: 7", None),
        ("Rating: [7]", 7),
        ("[6.5] is my rating", 6.5),
        ("He wrote [[1]], which is wrong. Rating: [[9]]", 9),
        ("See [2] and [3]. Rating: [[8]]", 8),
        ("<think>at first [[2]]</think>\n\nGood. [[6]]", 6),
        ("<think>[[2]], I would say", None),
        ("Rating: [[9.]]", 9),
        ("Rating: [[seven]]", None),
        ("", None),
    ],
)
def test_read_rating(text, rating):
    assert read_rating(text) == rating


def judge_some(server, questions, records, path):
    return with_client(server, lambda client: mt_bench.judge(client, questions, records, path, seed=7))


def judge(server, questions, records, path):
    judged, missing = judge_some(server, questions, records, path)
    assert missing == []
    return judged


@pytest.fixture
def judged(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    records = answer(server, drawn, tmp_path / "a.jsonl")
    server.requests.clear()
    ratings = iter(["[[7]]", "[[8.5]]", "no idea", "[[11]]"] * 9)
    server.reply = lambda body: f"Rating: {next(ratings)}"
    return drawn, records, judge(server, drawn, records, tmp_path / "judgments" / "realm.jsonl")


def test_judgments_are_not_asked_for_again_and_other_answers_are_judged_anew(judged, server, tmp_path):
    drawn, records, first = judged
    server.requests.clear()
    assert judge(server, drawn, records, tmp_path / "judgments" / "realm.jsonl") == first
    assert server.completions == []
    choice = {"index": 0, "turns": ["another first answer", records[0]["choices"][0]["turns"][1]]}
    judge(server, drawn, [{**records[0], "choices": [choice]}, *records[1:]], tmp_path / "judgments" / "realm.jsonl")
    assert len(server.completions) == 2  # both gradings of that question show its first answer


def test_judgments_stand_in_fastchats_layout(judged, tmp_path):
    drawn, _, records = judged
    written = [json.loads(line) for line in (tmp_path / "judgments" / "realm.jsonl").read_text().splitlines()]
    assert written == records
    assert [(r["question_id"], r["turn"]) for r in written] == [(q.id, t) for q in drawn for t in (1, 2)]
    needed = {"question_id", "model", "judge", "judgment", "score", "turn", "tstamp"}
    assert all(r.keys() == needed and r["model"] == "realm" for r in written)


def test_what_cannot_be_read_is_null_and_counted_never_a_score(judged):
    drawn, _, records = judged
    assert Counter(r["score"] for r in records) == {7: 8, 8.5: 8, None: 16}
    metrics = Metrics()
    table = mt_bench.judged_metrics(metrics, records, [], drawn, "realm", "stub", seed=1)
    unread = metrics["mt_bench_unread_ratings_realm"]
    assert (unread.value, unread.n) == (16, 32)
    overall = metrics["mt_bench_overall_realm"]
    assert (overall.value, overall.n) == (7.75, 16)
    assert "not comparable with published" in overall.unit
    assert set(table.judge) == {"stub"}


def test_the_judge_sees_question_answer_and_reference(judged, server):
    drawn, records, _ = judged
    asked = "\n".join(r.said[1][1] for r in server.completions)
    assert {r.body["temperature"] for r in server.completions} == {0.0}
    assert all(q.turns[0] in asked and q.turns[1] in asked for q in drawn)
    assert all(turn in asked for record in records for turn in record["choices"][0]["turns"])
    # FastChat gives the judge a reference for math, reasoning and coding alone.
    with_reference = [r for r in server.completions if "eference answer" in r.said[1][1] + r.said[0][1].lower()]
    assert len(with_reference) == 2 * sum(q.category in NEEDS_REFERENCE for q in drawn) == 12


def test_ratings_that_all_fail_give_no_score(questions):
    records = [{"question_id": q.id, "turn": t, "score": None} for q in questions[:2] for t in (1, 2)]
    metrics = Metrics()
    assert mt_bench.judged_metrics(metrics, records, [], questions, "realm", "stub", seed=1).empty
    assert [m.name for m in metrics] == ["mt_bench_missing_judgments_realm", "mt_bench_unread_ratings_realm"]


def test_one_question_a_category_leaves_valid_json(questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    records = [{"question_id": q.id, "turn": t, "score": 5.0 + t} for q in drawn for t in (1, 2)]
    metrics = Metrics()
    mt_bench.judged_metrics(metrics, records, [], drawn, "realm", "stub", seed=1)
    text = metrics.save(tmp_path).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# ---------------------------------------------------------------- scores


def test_the_published_scores_give_the_published_means():
    table = mt_bench.scores_table(published.mt_bench_scores(), seed=1).set_index("group")
    assert table.score["overall"] == 6.328125
    assert table.score["turn 1"] == 6.74375
    assert table.score["turn 2"] == 5.9125
    assert (table.n["overall"], table.n["turn 1"], table.n["turn 2"]) == (160, 80, 80)
    assert list(table.index[3:]) == list(CATEGORIES)
    assert (table.n[3:] == 20).all()
    assert ((table.ci_low < table.score) & (table.score < table.ci_high)).all()


def test_rows_without_a_score_show_in_n():
    scores = pd.DataFrame(
        {"question_id": [1, 1, 2, 2], "category": "math", "turn": [1, 2, 1, 2], "score": [4.0, None, 6.0, 8.0]}
    )
    table = mt_bench.scores_table(scores, seed=1).set_index("group")
    assert (table.score["overall"], table.n["overall"]) == (6.0, 3)
    assert (table.score["turn 2"], table.n["turn 2"]) == (8.0, 1)
    assert math.isnan(table.ci_low["turn 2"])
