"""Scores, and that FastChat's script and ours print the same of the same files."""

import json
import math
import re
import subprocess
import sys

import pandas as pd
import pytest
from mt_bench_stage import at_the_bench, config, hashed, is_pair, made_up
from stub_server import StubServer

from realm.core.metrics import Metrics
from realm.evaluation import mt_bench, published
from realm.evaluation.mt_bench import CATEGORIES, MTBenchError
from realm.evaluation.mt_bench_judging import read_grades
from realm.evaluation.mt_bench_scores import add_scores, as_scores, outcome, scores_table, show_results, wins_table
from realm.evaluation.mt_bench_sitting import sit
from realm.models import assets


def test_the_published_scores_give_the_published_means():
    table = scores_table(published.mt_bench_scores(), seed=1).set_index("group")
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
    table = scores_table(scores, seed=1).set_index("group")
    assert (table.score["overall"], table.n["overall"]) == (6.0, 3)
    assert (table.score["turn 2"], table.n["turn 2"]) == (8.0, 1)
    assert math.isnan(table.ci_low["turn 2"])


@pytest.mark.parametrize(
    ("there", "back", "expected"),
    [
        ("model_1", "model_1", "win"),
        ("model_2", "model_2", "loss"),
        ("model_1", "model_2", "tie"),
        ("model_2", "model_1", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "model_1", "tie"),
        ("model_2", "tie", "tie"),
        ("error", "model_1", None),
        ("tie", "error", None),
    ],
)
def test_a_win_needs_both_orders(there, back, expected):
    assert outcome({"g1_winner": there, "g2_winner": back}) == expected


# ---------------------------------------------------------------- FastChat's script and ours


def as_fastchat_averages(path):
    """What FastChat's script does with ratings, in our words: -1 left out, then plain means."""
    table = pd.read_json(path, lines=True)
    read = table[table.score != -1]
    by_turn = read.groupby(["turn", "model"]).score.mean()
    return {**by_turn.to_dict(), **{("overall", m): v for m, v in read.groupby("model").score.mean().items()}}


def as_fastchat_wins(path):
    """And with pairs: what was not read is left out, a win needs both orders, a tie counts half in the second rate."""
    table = pd.read_json(path, lines=True)
    table = table[(table.g1_winner != "error") & (table.g2_winner != "error")]
    agreed = (table.g1_winner == table.g2_winner) & (table.g1_winner != "tie")
    win = (agreed & (table.g1_winner == "model_1")).mean()
    return win, win + 0.5 * (~agreed).mean()


def show_result(path, mode):
    """What the script of the packaged FastChat prints, number by number: model -> [numbers of each table]."""
    words = [sys.executable, "-W", "ignore", assets.fetch("fastchat-show-result"), "--input-file", path, "--mode", mode]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"(base|realm|platolm-7b)\s+(.*\d.*)", line):
            printed.setdefault(found[1], []).append([float(v) for v in found[2].split()])
    return printed


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A judge with a mind of its own, a tenth of whose words are none."""
    folder, questions = tmp_path_factory.mktemp("judged"), mt_bench.load_questions()

    def reply(body):
        if hashed(body) < 0.1:
            return "no idea"
        if is_pair(body):
            return f"[[{'AABBBC'[int(6 * hashed(body, 'verdict'))]}]]"
        return f"[[{1 + int(90 * hashed(body, 'rating')) / 10}]]"

    answers = {m: made_up(questions, m) for m in ("base", "realm")}
    wanted = config(pairwise=True, calibration=False, judge_repeats=2)
    with StubServer(reply) as server:
        held = at_the_bench(server, folder, lambda bench: sit(bench, questions, answers, wanted), concurrency=8)
    return folder / "model_judgment", held, questions


def test_fastchats_script_prints_our_averages_from_our_file(judged):
    folder, held, questions = judged
    theirs, printed = (
        as_fastchat_averages(folder / "stub_single.jsonl"),
        show_result(folder / "stub_single.jsonl", "single"),
    )
    for model in ("base", "realm"):
        metrics = Metrics()
        add_scores(metrics, held.grades[model], questions, "stub", seed=1)
        ours = [metrics[f"mt_bench_{group}_{model}"].value for group in ("turn_1", "turn_2", "overall")]
        assert ours == pytest.approx([theirs[group, model] for group in (1, 2, "overall")], rel=1e-12)
        assert [row[-1] for row in printed[model]] == pytest.approx(ours, abs=1e-6)
        assert metrics[f"mt_bench_unread_ratings_{model}"].value > 0
        assert metrics[f"mt_bench_overall_{model}"].n < 160


def test_fastchats_script_prints_our_win_rates_from_our_file(judged):
    folder, held, _ = judged
    path = folder / "stub_pair.jsonl"
    [row] = wins_table(held.pairs, seed=1).to_dict("records")
    assert (row["win_rate"], row["win_rate_adjusted"]) == pytest.approx(as_fastchat_wins(path), rel=1e-12)
    [(win, loss, tie, *_, win_rate, loss_rate, adjusted)] = show_result(path, "pairwise-all")["realm"]
    assert (row["win_rate"], row["loss_rate"], row["win_rate_adjusted"]) == pytest.approx(
        (win_rate, loss_rate, adjusted), abs=1e-6
    )
    assert row["n"] == win + loss + tie < 160
    assert 0 < row["win_rate_low"] < row["win_rate"] < row["win_rate_high"] < 1


@pytest.fixture
def released(tmp_path):
    """The authors' 160 scores in FastChat's file, with two ratings that could not be read."""
    rows = [
        {
            "question_id": int(r.question_id),
            "model": "platolm-7b",
            "judge": ["gpt-4", "single-v1"],
            "user_prompt": "",
            "judgment": f"Rating: [[{r.score}]]",
            "score": r.score,
            "turn": int(r.turn),
            "tstamp": 1.0,
        }
        for r in published.mt_bench_scores().itertuples()
    ]
    path = tmp_path / "gpt-4_single.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path, rows


def test_ours_prints_fastchats_averages_from_its_file(released):
    path, rows = released
    table = scores_table(as_scores(read_grades(path), mt_bench.load_questions()), seed=1).set_index("group")
    assert table.score["overall"] == 6.328125 == as_fastchat_averages(path)["overall", "platolm-7b"]
    assert [row[-1] for row in show_result(path, "single")["platolm-7b"]] == [6.74375, 5.9125, 6.328125]
    printed = show_results(path, seed=1)
    assert re.search(r"platolm-7b +overall 6\.328125 .* 160 +0\n", printed)
    rows[3]["score"] = rows[77]["score"] = -1
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = [r["score"] for r in rows if r["score"] != -1]
    overall = scores_table(as_scores(read_grades(path), mt_bench.load_questions()), seed=1).iloc[0]
    assert overall.score == pytest.approx(as_fastchat_averages(path)["overall", "platolm-7b"], rel=1e-12)
    assert (overall.score, overall.n) == (pytest.approx(sum(read) / 158, rel=1e-12), 158)


def command(*words):
    ask = [sys.executable, "-W", "ignore", "-m", "realm.evaluation.mt_bench_scores", *words]
    return subprocess.run(ask, capture_output=True, text=True)


def test_the_command_prints_files_of_both_kinds(judged, released):
    done = command(released[0])
    assert done.returncode == 0 and "6.328125" in done.stdout
    done = command(judged[0] / "stub_pair.jsonl")
    assert done.returncode == 0 and "win_rate_adjusted" in done.stdout and "realm" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory); give a file of JSON lines"),
        ("", "holds no judgment; give a file that FastChat or notebook 05 wrote"),
        ("{\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is no object with keys and values"),
        ('{"score": 3}\n', "line 1: no rating with question_id, model, turn and score"),
        ('{"g1_winner": "model_1"}\n', "judgment 1: no pair with question_id, model_1, model_2, g2_winner"),
        (
            '{"question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "a", "g2_winner": "b"}\n',
            "judgment 1: no pair with question_id, model_1, model_2, g2_winner; winners are error, model_1, model_2",
        ),
    ],
)
def test_another_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "judgments.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MTBenchError) as caught:
        show_results(path, seed=1)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_the_command_tells_an_error_in_one_line(tmp_path):
    done = command(tmp_path / "none.jsonl")
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
