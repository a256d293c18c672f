"""The experiment of notebook 04 on a tiny model: what is equal, who comes out ahead, and what cannot be told apart."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import conversations, write_job, write_tiny_model

from realm.conversations.conversation import CONTEXT, PLACE, SESSION, Conversation, Message
from realm.conversations.writers import write_conversations
from realm.core.errors import TooFewError
from realm.core.fine_tunes import Teaching
from realm.core.metrics import Metrics
from realm.dialogue.encoder import IGNORED
from realm.evaluation import teaching
from realm.evaluation.lessons import add_teaching, compared_table, differences_table, human_gain_share, lessons_table
from realm.evaluation.perplexity import perplexity_of
from realm.evaluation.teaching import Marks, Student, exam_of, marks_of, students, taught
from realm.reporting.teaching import teaching as draw
from realm.simulation.plan import OF
from realm.training.base import adapter_off, add_adapter, load_base
from realm.training.rows import drawn, rows_sha256

BLOCK = Teaching(corpora=["roleplay", "humans"], held_out="held_out", shares=[0.5, 1.0], equal_tokens=True)
SKY = "Air scatters short waves of light more than long ones."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def talks(name, count, answer, rounds=2):
    pairs = [(f"Why is the sky blue, case {i}?", answer) for i in range(rounds)]
    turns = tuple(Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True))
    return [Conversation(f"{name}-{i}", turns) for i in range(count)]


def corpora_of(tmp_path, **files):
    paths = {}
    for name, some in files.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        write_conversations(paths[name], some)
    return paths


def job_of(tmp_path, model, realchat, **values):
    made = write_job(tmp_path, model, "mine", realchat, None, 3, supervise="assistant", **values)
    return replace(made, block="realm_sft", folder=tmp_path / "out")


# ---------------------------------------------------------------- what is equal


def test_corpora_are_equal_in_conversations_or_within_one_row_in_supervised_tokens(tmp_path, model):
    files = {"realchat": talks("r", 8, SKY), "roleplay": talks("p", 20, "Yes."), "humans": talks("h", 10, SKY)}
    paths = corpora_of(tmp_path, **files)
    job = job_of(tmp_path, model, paths.pop("realchat"))
    found = {s.name: s for s in students(BLOCK, job, paths)}
    assert {found[n].conversations for n in ("realchat", "roleplay", "humans")} == {8}
    assert found["roleplay"].supervised < found["realchat"].supervised / 2
    assert found["realchat_half"].conversations == 4 and "realchat_share_100" not in found
    equal = {name: found[f"{name}_equal_tokens"] for name in ("realchat", "roleplay", "humans")}
    rows = [row.supervised for s in equal.values() for row in s.job.rows(s.job.encoder())]
    sizes = [s.supervised for s in equal.values()]
    assert max(sizes) - min(sizes) <= max(rows) and equal["roleplay"].conversations > 8


def test_realchats_student_is_realm_where_its_rows_are_and_students_of_the_same_rows_are_one(
    tmp_path, model, monkeypatch
):
    others = SKY.replace("short", "warm"), SKY.replace("light", "warmth")
    answers = dict(zip(("realchat", "roleplay", "humans"), (SKY, *others), strict=True))
    paths = corpora_of(tmp_path, **{name: talks(name, 6, answer) for name, answer in answers.items()})
    job = job_of(tmp_path, model, paths.pop("realchat"))
    found = students(BLOCK, job, paths)
    realm = rows_sha256(job.rows(job.encoder()))
    assert [s.digest == realm for s in found if s.corpus == "realchat" and s.way in ("", "equal_tokens")] == [True] * 2
    trained = []
    monkeypatch.setattr(teaching, "trained_by", lambda job: trained.append(job.folder.name))
    marks = taught(found, {"": "base", realm: "realm"}, lambda model, name: name)
    assert trained[:3] == ["student_roleplay", "student_humans", "student_realchat_half"]
    assert "student_realchat" not in trained and "student_roleplay_equal_tokens" not in trained
    assert marks["base"] == "base" and marks["realchat"] == marks["realchat_equal_tokens"] == "realm"
    assert marks["roleplay_equal_tokens"] == "roleplay"


def test_fewer_conversations_are_among_more_and_stand_in_the_same_order():
    some = conversations(12)
    few, more = drawn(some, 4, 7), drawn(some, 9, 7)
    assert len(few) == 4 and set(few) < set(more) and drawn(some, None, 7) == some
    assert [c.id for c in more] == sorted(c.id for c in more)
    assert drawn(some, 4, 8) != few


def test_a_corpus_without_an_answer_is_too_few(tmp_path, model):
    silent = [Conversation("s", (Message("user", "Nobody answers."),))]
    paths = corpora_of(tmp_path, realchat=talks("r", 4, SKY), roleplay=silent, humans=talks("h", 4, SKY))
    with pytest.raises(TooFewError, match=r"teaching.corpora: roleplay has 0 conversations"):
        students(BLOCK, job_of(tmp_path, model, paths.pop("realchat")), paths)


# ---------------------------------------------------------------- what is evaluated


def held(number, answers, **meta):
    turns = [Message(("user", "assistant")[i % 2], f"{number} turn {i}") for i in range(2 * answers)]
    return Conversation(f"replay-{number}", tuple(turns), {OF: f"s{number}/0", SESSION: f"s{number}", **meta})


def real(number, *turns, place=0, **meta):
    messages = tuple(Message(*turn) for turn in turns)
    return Conversation(f"s{number}/{place}", messages, {SESSION: f"s{number}", PLACE: place, **meta})


def test_an_exam_tells_first_from_later_rounds_and_real_answers_of_the_same_rounds(tmp_path, model):
    job = job_of(tmp_path, model, tmp_path / "none.jsonl")
    encoder = job.encoder()
    test = [
        real(0, ("user", "a"), ("assistant", "own one"), ("user", "b"), ("assistant", "own two"), ("user", "c")),
        real(1, ("user", "alone")),
        real(1, ("assistant", "the end"), ("user", "next"), ("assistant", "later"), place=2, **{CONTEXT: 1}),
    ]
    exam = exam_of([held(0, 1), held(1, 2), Conversation("unanswered", (Message("user", "x"),))], test, encoder)
    said = {
        part: {r.id: encoder.tokenizer.decode(r.input_ids[r.labels != IGNORED]) for r in rows}
        for part, rows in exam.parts.items()
    }
    assert exam.ids == ["replay-0", "replay-1"]
    assert said["first_round"] == {f"replay-{i}": f"{i} turn 1<|im_end|>" for i in (0, 1)}
    assert said["later_rounds"] == {"replay-1": "1 turn 3<|im_end|>"}
    assert said["own"] == {"replay-0": "own one<|im_end|>", "replay-1": ""}  # as many rounds, to the first missing one
    network = load_base(job.config)
    marks = marks_of(network, exam, encoder.tokenizer, "base")
    whole = teaching.likelihood(network, list(encoder.encode_all([held(0, 1), held(1, 2)])), encoder.tokenizer, "all")
    nll, tokens = marks.of("answers")
    assert tokens.tolist() == whole.tokens.tolist() and nll == pytest.approx(whole.nll, rel=1e-4)
    assert marks.parts["later_rounds"][1][0] == 0 == marks.parts["own"][1][1]


def test_too_few_answered_conversations_are_told(tmp_path, model):
    encoder = job_of(tmp_path, model, tmp_path / "none.jsonl").encoder()
    with pytest.raises(TooFewError, match=r"teaching.held_out: 1 held-out conversations"):
        exam_of([held(0, 1)], [], encoder)


# ---------------------------------------------------------------- who comes out ahead


def test_a_planted_better_corpus_comes_out_ahead_and_training_resumes(tmp_path, model, monkeypatch):
    """Role-play's answers are to nobody's question; RealChat's and the humans' are those of the exam."""
    files = {"realchat": talks("r", 16, SKY), "roleplay": talks("p", 16, "wqx zzv kkj"), "humans": talks("h", 16, SKY)}
    paths = corpora_of(tmp_path, **files)
    job = job_of(tmp_path, model, paths.pop("realchat"), epochs=3)
    block = BLOCK.model_copy(update={"equal_tokens": False, "shares": []})
    found = students(block, job, paths)
    encoder = job.encoder()
    asked = [Conversation(f"e{i}", (Message("user", f"Why, {i * i}?"), Message("assistant", SKY))) for i in range(12)]
    exam = exam_of(asked, [], encoder)
    mark = lambda model, name: marks_of(model, exam, encoder.tokenizer, name)  # noqa: E731
    base = add_adapter(load_base(job.config), job.config, job.seed)
    with adapter_off(base):
        known = {"": mark(base, "base")}
    marks, metrics = taught(found, known, mark), Metrics()
    assert add_teaching(metrics, found, marks, 5) == []
    gap = metrics["teaching_difference_roleplay_realchat"]
    assert 0 < gap.ci_low <= gap.value and gap.n == 12
    assert metrics["teaching_difference_realchat_base"].ci_high < 0
    share = metrics["share_of_human_gain_roleplay"]
    assert share.ci_high < metrics["share_of_human_gain_realchat"].ci_low
    differences = differences_table(metrics, found)
    assert verdict_on(differences, "RealChat", "role-play") == "the first is better"
    table = lessons_table(metrics, found)
    assert list(table.corpus) == ["base", "realchat", "roleplay", "humans"] and "own" in table
    draw(differences, "drawn")
    before = {p: p.stat().st_mtime_ns for p in job.folder.rglob("*.safetensors")}
    assert before and taught(found, known, mark)["roleplay"].of("answers")[0] == pytest.approx(
        marks["roleplay"].of("answers")[0], rel=1e-5
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before  # a second call trains nothing anew


def verdict_on(differences, one, other):
    table = compared_table(differences).set_index(["fair by", "first", "second"])
    return table.loc[("equal conversations", one, other), "verdict"]


def marks_with(nll, tokens):
    nothing = (np.zeros(len(nll)), np.zeros(len(nll)))
    return Marks({"first_round": (nll, tokens), "later_rounds": nothing, "own": nothing})


@pytest.fixture
def four():
    """(students, marks by name) of made-up nats a token; ``better``: what each student gained, in nats."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 60, 80).astype(float)
    base = rng.normal(1.7, 0.3, 80)

    def make(noise=0.01, **better):
        names = {"base": 0.0, **better}
        found = [Student(name, job=None if name == "base" else object()) for name in names]
        marks = {
            n: marks_with((base - gain + rng.normal(0, noise, 80) * (gain > 0)) * tokens, tokens)
            for n, gain in names.items()
        }
        return found, marks

    return make


def test_identical_corpora_are_not_told_apart(four):
    found, marks = four(noise=0.2, realchat=0.1, roleplay=0.1, humans=0.1)
    metrics = Metrics()
    add_teaching(metrics, found, marks, 5)
    gap = metrics["teaching_difference_roleplay_realchat"]
    assert gap.ci_low < 0 < gap.ci_high
    differences = differences_table(metrics, found)
    assert verdict_on(differences, "RealChat", "role-play") == "cannot be told apart"
    assert verdict_on(differences, "RealChat", "the untrained base model") == "the first is better"


def test_differences_are_paired_and_better_is_below_zero_wherever_one_stands_first(four):
    found, marks = four(noise=0.02, realchat=0.09, roleplay=0.05, humans=0.1)
    metrics = Metrics()
    add_teaching(metrics, found, marks, 5)
    table = differences_table(metrics, found).set_index(["one", "other"])
    pairs = [("realchat", "base"), ("roleplay", "base"), ("humans", "base")]
    assert list(table.index) == [*pairs, ("realchat", "roleplay"), ("humans", "realchat")]
    ppl = {name: perplexity_of(*one.of("answers")) for name, one in marks.items()}
    for (one, other), row in table.iterrows():
        assert row.difference == pytest.approx(ppl[one] - ppl[other])
        assert row.ci_low < row.difference < row.ci_high < 0  # paired: levels differ between conversations by far more
    mirrored, as_it_is = table.loc[("realchat", "roleplay")], metrics["teaching_difference_roleplay_realchat"]
    assert (mirrored.ci_low, mirrored.ci_high) == (-as_it_is.ci_high, -as_it_is.ci_low)


def test_of_many_comparisons_one_that_barely_excludes_zero_is_not_told(four):
    """An interval of its own says yes, and the five together say no."""
    found, _ = four(realchat=0.1, roleplay=0.1, humans=0.1)
    metrics = Metrics()
    gaps = {"realchat_base": -1.0, "roleplay_base": -0.1, "humans_base": -0.1}
    gaps |= {"roleplay_realchat": 0.21, "humans_realchat": -0.1}
    for name, gap in gaps.items():
        metrics.add(f"teaching_difference_{name}", gap, ci=(gap - 0.2, gap + 0.2), n=40)
    table = differences_table(metrics, found)
    assert verdict_on(table, "RealChat", "the untrained base model") == "the first is better"
    assert verdict_on(table, "RealChat", "role-play") == "cannot be told apart among so many comparisons"
    assert table.p_holm[3] == pytest.approx(4 * 0.0396, abs=1e-3)


def test_the_share_is_of_perplexities_and_paired(four):
    found, marks = four(realchat=0.09, roleplay=0.05, humans=0.1)
    metrics = Metrics()
    add_teaching(metrics, found, marks, 5)
    ppl = {name: perplexity_of(*one.of("answers")) for name, one in marks.items()}
    for name in ("realchat", "roleplay"):
        share = metrics[f"share_of_human_gain_{name}"]
        assert share.value == pytest.approx((ppl["base"] - ppl[name]) / (ppl["base"] - ppl["humans"]))
        assert share.ci_low < share.value < share.ci_high and share.ci_high - share.ci_low < 0.2
    assert "share_of_human_gain_humans" not in metrics
    # The figures of the probe that this experiment follows.
    nll, ones = {n: np.log([v]) for n, v in (("b", 5.322), ("p", 5.066), ("r", 4.935), ("h", 4.884))}, np.ones(1)
    assert human_gain_share(nll["b"], nll["r"], nll["h"], ones) == pytest.approx(0.88, abs=0.005)
    assert human_gain_share(nll["b"], nll["p"], nll["h"], ones) == pytest.approx(0.58, abs=0.005)


def test_no_share_of_a_human_gain_that_cannot_be_told_from_zero(four):
    found, marks = four(noise=0.3, realchat=0.09, humans=1e-9)
    metrics = Metrics()
    [why] = add_teaching(metrics, found, marks, 5)
    assert "share_of_human_gain_realchat" not in metrics
    assert why.startswith("share_of_human_gain_realchat: left out, since the gain of real humans' turns")


# ---------------------------------------------------------------- the profile


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"corpora": ["nobody"]}, "teaching.corpora: 'nobody' is no corpus of simulation.beside; there are: roleplay"),
        ({"held_out": "nobody"}, "teaching.held_out: 'nobody' is no corpus"),
        ({"held_out": "roleplay"}, "teaching.held_out: 'roleplay' must have seed_source test"),
        ({"corpora": ["roleplay", "held_out"]}, "must have seed_source test and not be trained on"),
        ({"corpora": ["roleplay", "roleplay"]}, "a name stands twice"),
        ({"corpora": ["roleplay", "again"]}, "again has seed_source test, which evaluates alone"),
    ],
)
def test_a_block_that_would_teach_what_it_examines_is_refused(block, words):
    usual = {"corpora": ["roleplay"], "held_out": "held_out", "shares": [1.0], "equal_tokens": True}
    sources = {"roleplay": "split", "humans": "train", "held_out": "test", "again": "test"}
    with pytest.raises(ValueError, match=words):
        Teaching(**{**usual, **block}).require(sources, "split")
