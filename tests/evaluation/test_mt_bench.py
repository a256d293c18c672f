import asyncio
import json
from collections import Counter

import pytest
from mt_bench_stage import SEED, answer_all, answer_some, with_client
from stub_server import BAD_KEY, BROKEN, BUSY, TOO_LONG, Fault, StubServer, answered

from realm.core.files import ArtefactError
from realm.dialogue.format import ASSISTANT_SYSTEM_PROMPT
from realm.evaluation import mt_bench
from realm.evaluation.mt_bench import CATEGORIES, TEMPERATURES, MTBenchError
from realm.evaluation.mt_bench_answers import answer
from realm.serving.client import Address, Client
from realm.serving.faults import EndpointError


@pytest.fixture(scope="module")
def questions():
    return mt_bench.load_questions()


@pytest.fixture
def server():
    with StubServer() as running:
        yield running


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
    path = tmp_path / "model_answer" / "realm.jsonl"
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    records = answer_all(server, drawn, tmp_path)
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
    [record] = answer_all(server, [questions[0]], tmp_path)
    first, second = server.completions
    opening = [("system", ASSISTANT_SYSTEM_PROMPT), ("user", questions[0].turns[0])]
    assert first.said == opening
    replied = record["choices"][0]["turns"]
    assert second.said == [*opening, ("assistant", replied[0]), ("user", questions[0].turns[1])]


def test_each_category_is_asked_at_its_own_temperature(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    answer_all(server, drawn, tmp_path, temperature=1.3)
    category = {q.turns[0]: q.category for q in drawn}
    asked = {category[r.said[1][1]]: r.body["temperature"] for r in server.completions}
    assert asked == TEMPERATURES
    assert len(server.completions) == 16


def test_a_second_run_asks_nothing(server, questions, tmp_path):
    first = answer_all(server, questions[:8], tmp_path)
    server.requests.clear()
    assert answer_all(server, questions[:8], tmp_path) == first
    assert server.requests == []


def test_more_questions_ask_only_for_what_is_missing(server, questions, tmp_path):
    answer_all(server, questions[:3], tmp_path)
    server.requests.clear()
    records = answer_all(server, questions[:5], tmp_path)
    assert len(records) == 5
    assert len(server.completions) == 4


OTHER = {"length": {"max_new_tokens": 24}, "top-p": {"top_p": 0.5}}


@pytest.mark.parametrize("change", OTHER)
def test_answers_under_other_sampling_are_asked_for_and_the_old_ones_stay(server, questions, tmp_path, change, capsys):
    first = answer_all(server, questions[:2], tmp_path)
    server.requests.clear()
    capsys.readouterr()
    answer_all(server, questions[:2], tmp_path, **OTHER[change])
    assert len(server.completions) == 4
    [key] = OTHER[change]
    noted = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(noted) == 1 and f"was said otherwise ({key} " in noted[0]
    server.requests.clear()
    assert answer_all(server, questions[:2], tmp_path) == first
    assert server.completions == []


def test_answers_under_another_seed_are_asked_for(server, questions, tmp_path):
    answer_all(server, questions[:2], tmp_path)
    server.requests.clear()
    with_client(server, lambda client: answer(client, questions[:2], tmp_path, "realm", SEED + 1))
    assert len(server.completions) == 4


def test_answers_of_another_model_under_the_same_name_are_asked_for(server, questions, tmp_path):
    for n, weights in enumerate(("a", "b", "a")):
        server.requests.clear()

        async def inside(weights=weights):
            words = {"engine": "llama.cpp", "weights": weights}
            client = Client(Address(server.url, "stub"), server.endpoint(), "realm", words)
            try:
                await answer(client, questions[:2], tmp_path, "realm", SEED)
            finally:
                await client.close()

        asyncio.run(inside())
        assert len(server.completions) == (4, 4, 0)[n]


def test_pace_and_patience_ask_for_nothing(server, questions, tmp_path):
    answer_all(server, questions[:2], tmp_path)
    server.requests.clear()
    patient = {"concurrency": 1, "timeout_seconds": 9.0, "max_retries": 2, "requests_per_minute": 600}
    answer_all(server, questions[:2], tmp_path, context_length=4096, api_key_env=None, **patient)
    assert server.completions == []


def test_answers_given_before_a_failure_are_kept(server, questions, tmp_path):
    server.script = [None] * 12 + [BAD_KEY]
    with pytest.raises(EndpointError, match="key is refused"):
        answer_all(server, questions[:8], tmp_path, concurrency=1)
    server.requests.clear()
    answer_all(server, questions[:8], tmp_path)
    assert len(server.completions) < 16


def kept_file(folder):
    [path] = (folder / "answers").glob("*.kept")
    return path


def test_a_broken_line_of_kept_answers_is_named(server, questions, tmp_path):
    answer_all(server, questions[:1], tmp_path)
    path = kept_file(tmp_path)
    path.write_text("{}x\n" + path.read_text())
    with pytest.raises(ArtefactError, match=r"realm-\w+\.journal\.kept: line 1 is no kept answer; take that line out"):
        answer_all(server, questions[:1], tmp_path)


def test_an_answer_that_was_being_written_when_the_run_was_killed_is_asked_again_alone(server, questions, tmp_path):
    answer_all(server, questions[:2], tmp_path)
    path = kept_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    server.requests.clear()
    for _ in range(2):
        answer_all(server, questions[:2], tmp_path)
    assert len(server.completions) == 1


def test_an_answer_with_a_line_separator_of_unicode_stays_one_line(server, questions, tmp_path):
    server.reply = lambda body: "one\u2028two"
    first = answer_all(server, questions[:1], tmp_path)
    server.requests.clear()
    assert answer_all(server, questions[:1], tmp_path) == first
    assert mt_bench.read_records(tmp_path / "model_answer" / "realm.jsonl") == first
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
        records, missing = answer_some(server, drawn, tmp_path)
        assert [m.question_id for m in missing] == [refused.id]
        assert missing[0].reason and [r["question_id"] for r in records] == [q.id for q in drawn if q != refused]
        assert mt_bench.read_records(tmp_path / "model_answer" / "realm.jsonl") == records
    assert len(server.completions) <= 2  # what was answered is kept
    server.reply = lambda body: "words"
    assert len(answer_all(server, drawn, tmp_path)) == 16


def test_a_service_that_refuses_everybody_is_an_error_and_no_result(server, questions, tmp_path):
    server.reply = lambda body: FLAGGED
    with pytest.raises(EndpointError, match="flagged by moderation"):
        answer_some(server, questions[:8], tmp_path)


def test_a_service_that_went_away_stops_and_what_came_is_kept(questions, tmp_path):
    with StubServer() as gone:

        def breaks(body):
            gone.models = BROKEN
            return BROKEN

        gone.script, gone.reply = ["words"] * 12, breaks
        with pytest.raises(EndpointError):
            answer_some(gone, questions[:8], tmp_path, concurrency=1)
    assert len(kept_file(tmp_path).read_text().splitlines()) == 12


def test_answers_cut_at_the_limit_say_so(server, questions, tmp_path):
    server.script = [answered("half of", "length"), answered("whole", "stop")]
    [record] = answer_all(server, questions[:1], tmp_path)
    assert record["cut"] == [True, False]
