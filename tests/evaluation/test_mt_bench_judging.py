"""Ratings and comparisons by a judge that is a stub: what is asked, what is written, what is asked again."""

import itertools
import json
from collections import Counter

import pytest
from mt_bench_stage import SEED, answer_all, at_the_bench, config, is_pair, longer, made_up, shown
from stub_server import BAD_KEY, Fault, StubServer

from realm.core.metrics import Metrics
from realm.core.seeds import turn_seed
from realm.evaluation import mt_bench
from realm.evaluation.mt_bench import NEEDS_REFERENCE, MTBenchError
from realm.evaluation.mt_bench_judging import Grades, compare, grade, read_grades, read_rating, read_verdict
from realm.evaluation.mt_bench_scores import add_scores
from realm.evaluation.mt_bench_sitting import sit
from realm.serving.faults import EndpointError

FLAGGED = Fault(403, "This input was flagged by moderation: violence")


@pytest.fixture(scope="module")
def questions():
    return mt_bench.load_questions()


@pytest.fixture
def server():
    with StubServer() as running:
        yield running


def judge(server, questions, records, folder, repeats=1, **values):
    """Records of one model, rated."""
    answers = {"realm": records}
    return at_the_bench(server, folder, lambda bench: grade(bench, questions, answers, repeats), **values)["realm"]


def written(folder, name="stub_single.jsonl"):
    return [json.loads(line) for line in (folder / "model_judgment" / name).read_text().splitlines()]


# ---------------------------------------------------------------- reading


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


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Final verdict: [[A]]", "A"),
        ("[[B]]", "B"),
        ("Both are right. [[C]]", "C"),
        ("One might say [[A]], but it is wrong: [[B]]", "B"),
        ("<think>[[A]]</think>\n\n[[C]]", "C"),
        ("<think>[[A]]", None),
        ("A is better", None),
        ("[A] is longer, [B] is right", None),
        ("[[D]]", None),
        ("[[7]]", None),
        ("", None),
    ],
)
def test_read_verdict(text, verdict):
    assert read_verdict(text) == verdict


# ---------------------------------------------------------------- ratings


@pytest.fixture
def judged(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    records = answer_all(server, drawn, tmp_path)
    server.requests.clear()
    ratings = itertools.cycle(["[[7]]", "[[8.5]]", "no idea", "[[11]]"])
    server.reply = lambda body: f"Rating: {next(ratings)}"
    return drawn, records, judge(server, drawn, records, tmp_path)


def test_judgments_are_not_asked_for_again_and_other_answers_are_judged_anew(judged, server, tmp_path):
    drawn, records, first = judged
    server.requests.clear()
    assert judge(server, drawn, records, tmp_path) == first
    assert server.completions == []
    choice = {"index": 0, "turns": ["another first answer", records[0]["choices"][0]["turns"][1]]}
    judge(server, drawn, [{**records[0], "choices": [choice]}, *records[1:]], tmp_path)
    assert len(server.completions) == 2  # both gradings of that question show its first answer


def test_what_a_judge_said_before_this_layout_is_still_known(judged, server, tmp_path):
    """The seed and the file of a rating are those that they always were."""
    drawn, _, _ = judged
    assert {r.body["seed"] for r in server.completions} == {
        turn_seed(f"judge-{q.id}", turn, SEED) for q in drawn for turn in (1, 2)
    }
    assert [p.name.split("-")[0] for p in (tmp_path / "judgments").glob("*.kept")] == ["realm"]


def test_ratings_stand_in_fastchats_layout(judged, server, tmp_path):
    drawn, _, found = judged
    [first] = found.rounds
    rows = written(tmp_path)
    assert [(r["question_id"], r["turn"]) for r in rows] == [(q.id, t) for q in drawn for t in (1, 2)]
    needed = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert all(r.keys() == needed and r["model"] == "realm" for r in rows)
    assert [r["user_prompt"] for r in rows] == [r["user_prompt"] for r in first]
    assert {r["user_prompt"] for r in rows} == {c.said[1][1] for c in server.completions}
    # What cannot be read is -1 in FastChat's files, null with us.
    assert [r["score"] for r in rows] == [-1 if r["score"] is None else r["score"] for r in first]
    assert [r["score"] for r in read_grades(tmp_path / "model_judgment" / "stub_single.jsonl")] == [
        r["score"] for r in first
    ]


def test_the_prompts_are_those_that_fastchat_takes(judged):
    drawn, _, found = judged
    names = {(r["question_id"], r["turn"]): r["judge"] for r in found.rounds[0]}
    for q in drawn:
        name = "single-math-v1" if q.category in NEEDS_REFERENCE else "single-v1"
        assert names[q.id, 1] == ["stub", name]
        assert names[q.id, 2] == ["stub", f"{name}-multi-turn"]


def test_what_cannot_be_read_is_null_and_counted_never_a_score(judged):
    drawn, _, found = judged
    assert Counter(r["score"] for r in found.rounds[0]) == {7: 8, 8.5: 8, None: 16}
    metrics = Metrics()
    table = add_scores(metrics, found, drawn, "stub", seed=1)
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
    assert add_scores(metrics, Grades("realm", [records], [[]]), questions[:2], "stub", seed=1).empty
    values = {m.name.removeprefix("mt_bench_").removesuffix("_realm"): m.value for m in metrics}
    assert values == {"missing_judgments": 0, "unread_ratings": 4, "lowest": 1.0, "highest": 10.0}


def test_one_question_a_category_leaves_valid_json(questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    records = [{"question_id": q.id, "turn": t, "score": 5.0 + t} for q in drawn for t in (1, 2)]
    metrics = Metrics()
    add_scores(metrics, Grades("realm", [records, records], [[], []]), drawn, "stub", seed=1)
    text = metrics.save(tmp_path).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_judgments_that_do_not_come_are_counted_with_their_reasons(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    server.reply = lambda body: FLAGGED if drawn[2].turns[1] in body["messages"][-1]["content"] else "[[7]]"
    found = judge(server, drawn, made_up(drawn, "realm"), tmp_path)
    [missing] = found.missing
    assert [m.question_id for m in missing] == [drawn[2].id] and "flagged" in missing[0].reason
    assert len(found.rounds[0]) == 31
    metrics = Metrics()
    add_scores(metrics, found, drawn, "stub", seed=1)
    counted = metrics["mt_bench_missing_judgments_realm"]
    assert (counted.value, counted.n) == (1, 32)
    assert metrics["mt_bench_overall_realm"].n == 31


def test_questions_without_answers_are_not_judged(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    server.reply = lambda body: "[[7]]"
    found = judge(server, drawn, made_up(drawn, "realm")[1:], tmp_path)
    assert {r["question_id"] for r in found.rounds[0]} == {q.id for q in drawn[1:]}


def test_a_judge_by_a_path_is_called_by_its_last_part_and_names_a_file(server, questions, tmp_path):
    server.reply = lambda body: "[[7]]"
    for name, file in (("/home/me/models/judge.gguf", "judge.gguf_single.jsonl"), ("org/some:a b", "org--some--a--b")):
        judge(server, questions[:1], made_up(questions[:1], "realm"), tmp_path, name=name)
        [path] = (tmp_path / "model_judgment").glob(f"{file}*")
        assert "/home" not in path.read_text()


# ---------------------------------------------------------------- comparisons


def prefers(verdict):
    """A judge that compares by ``verdict({"A": …, "B": …})``."""
    return lambda body: f"Because. [[{verdict(shown(body))}]]" if is_pair(body) else "Rating: [[5]]"


def test_both_orders_are_played_and_stand_in_fastchats_layout(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 8, seed=1)
    answers = {m: made_up(drawn, m, lambda q, t: "x" * q.id) for m in ("base", "realm")}
    server.reply = prefers(longer)  # realm's are longer by one letter
    pairs, missing = at_the_bench(server, tmp_path, lambda bench: compare(bench, drawn, answers, "realm"))
    assert missing == [] and written(tmp_path, "stub_pair.jsonl") == pairs
    needed = {"question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "turn", "tstamp"}
    needed |= {f"g{i}_{what}" for i in (1, 2) for what in ("user_prompt", "judgment")}
    assert len(pairs) == 16 and all(r.keys() == needed for r in pairs)
    assert {(r["model_1"], r["model_2"], r["g1_winner"], r["g2_winner"]) for r in pairs} == {
        ("realm", "base", "model_1", "model_1")
    }
    for r in pairs:
        asked = [{"messages": [{}, {"content": r[f"g{i}_user_prompt"]}]} for i in (1, 2)]
        there, back = map(shown, asked)
        assert there["A"] == back["B"] and there["A"].startswith("realm: ") and there["B"].startswith("base: ")
        guided = next(q.category for q in drawn if q.id == r["question_id"]) in NEEDS_REFERENCE
        assert r["judge"][1].startswith("pair-math-v1" if guided else "pair-v2")
        assert r["judge"][1].endswith("-multi-turn") == (r["turn"] == 2)


def test_equal_answers_of_two_models_are_asked_about_once(server, questions, tmp_path):
    same = [{**r, "choices": [{"index": 0, "turns": ["one", "two"]}]} for r in made_up(questions[:2], "realm")]
    server.reply = prefers(longer)
    pairs, _ = at_the_bench(
        server, tmp_path, lambda bench: compare(bench, questions[:2], {"realm": same, "base": same}, "realm")
    )
    assert {(r["g1_winner"], r["g2_winner"]) for r in pairs} == {("tie", "tie")}
    assert len(server.completions) == len({json.dumps(c.body) for c in server.completions}) == 4


# ---------------------------------------------------------------- a whole sitting, and what it asks again


def hold(server, questions, folder, **values):
    answers = {m: made_up(questions, m) for m in ("base", "realm")}
    return at_the_bench(server, folder, lambda bench: sit(bench, questions, answers, config(**values)))


def test_what_was_judged_is_never_asked_twice_whatever_more_is_wanted(server, questions, tmp_path):
    drawn = mt_bench.draw_stratified(questions, 16, seed=1)
    references = sum(q.category in NEEDS_REFERENCE for q in drawn)
    ratings = 2 * 2 * len(drawn)  # models, turns
    server.reply = prefers(longer)
    asked = []
    for values, new in [
        ({"calibration": False}, ratings),
        ({"calibration": 2}, 2 * 2 + 2 + 2),  # against the reference in two orders, with itself, rated again
        ({"calibration": True}, 2 * references + 2 * len(drawn) - 8),
        ({"judge_repeats": 3}, 2 * ratings - len(drawn)),  # the base's first turns have two ratings by now
        ({"judge_repeats": 3, "pairwise": True}, 2 * 2 * len(drawn)),
        ({}, 0),
        ({"calibration": False, "pairwise": True, "judge_repeats": 3}, 0),
    ]:
        server.requests.clear()
        hold(server, drawn, tmp_path, **values)
        assert len(server.completions) == new, values
        asked += [json.dumps(c.body, sort_keys=True) for c in server.completions]
    assert len(asked) == len(set(asked))
    names = {"stub_single.jsonl", "stub_single_again_2.jsonl", "stub_single_again_3.jsonl", "stub_pair.jsonl"}
    assert {p.name for p in (tmp_path / "model_judgment").iterdir()} == names


def test_a_sitting_that_breaks_off_goes_on(server, questions, tmp_path):
    server.reply = prefers(longer)
    server.script = [None] * 30 + [BAD_KEY]
    with pytest.raises(EndpointError, match="key is refused"):
        hold(server, questions[:16], tmp_path, pairwise=True)
    first = {json.dumps(c.body) for c in server.completions}
    server.requests.clear()
    hold(server, questions[:16], tmp_path, pairwise=True)
    again = {json.dumps(c.body) for c in server.completions} & first
    assert len(again) <= 5  # what was in flight when the key was refused


# ---------------------------------------------------------------- FastChat's files


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 81, "model": "m", "turn": 1}', "line 2: no rating with question_id, model, turn and score"),
        ('{"question_id": 81, "model": "m", "turn": 1, "score": "7"}', "line 2: no rating with"),
        ('{"question_id": 81, "model": "m", "turn": 1, "score": 11}', "line 2: score is 11; allowed: 1 to 10, or -1"),
        ("[1]", "line 2: no rating with"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_file_of_ratings_that_is_none_names_the_line(tmp_path, line, message):
    path = tmp_path / "gpt-4_single.jsonl"
    path.write_text('{"question_id": 81, "model": "m", "turn": 1, "score": -1}\n' + line + "\n")
    with pytest.raises(MTBenchError) as caught:
        read_grades(path)
    assert str(caught.value).startswith(f"{path}: {message}")
