"""What would stop a run is found before anything is paid, and said with step, count and key."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tiny_model import write_tiny_model

from realm.core.profile import PROFILE_FOLDER, load_profile
from realm.models import assets, estimate
from realm.pipeline import checks, counts
from realm.pipeline.commands import main
from realm.pipeline.counts import counts_of

SMOKE = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
FRUIT = ["pear", "apple", "plum", "quince", "cherry", "medlar", "fig", "olive", "peach", "mulberry"]
DOING = ["prune", "water", "graft", "plant", "feed", "harvest", "move", "train", "protect", "propagate"]


def talks(count, rounds=2):
    """Distinct conversations about fruit trees, each of a session of its own."""
    for i in range(count):
        what = f"{DOING[i % 10]} a {FRUIT[i // 10 % 10]} tree in garden number {i}"
        turns = [("user", f"How should I {what}?"), ("assistant", f"To {what}, take your time and good tools.")]
        turns += [("user", f"And what if I {what} late?"), ("assistant", f"Then {what} in the year after.")]
        yield {"id": f"talk {i:05d}", "messages": [{"role": r, "content": c} for r, c in turns[: 2 * rounds]]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model, a run folder, and a writer of profiles on a file of ``count`` conversations."""
    monkeypatch.setenv("REALM_RUNS", str(tmp_path / "runs"))
    model = write_tiny_model(tmp_path / "model")

    def write(count=300, **values):
        source = tmp_path / "mine.jsonl"
        source.write_text("".join(json.dumps(t) + "\n" for t in talks(count)))
        made = json.loads(json.dumps(SMOKE))
        made["data_inspection"] |= {"source": str(source), "max_conversations": None}
        for block in ("usergpt_sft", "realm_sft"):
            made[block] |= {"base_model": str(model)}
        made["simulation"]["beside"], made["teaching"] = {}, None
        for block in (made["simulation"], made["mt_bench"], made["simulator_realism"]):
            for endpoint in block.values():
                if isinstance(endpoint, dict) and "engine" in endpoint:
                    endpoint["context_length"] = 512
        for key, value in values.items():
            *blocks, last = key.split("__")
            block = made
            for name in blocks:
                block = block[name]
            block[last] = value
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(made))
        return path

    return write


def dry_run(path, capsys, *options):
    code = main(["--profile", str(path), "--dry-run", *options])
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") == (code != 0)
    return code, said.out, said.err


# ---------------------------------------------------------------- counts


def test_a_profile_that_can_run_says_so(place, capsys):
    code, out, err = dry_run(place(), capsys)
    assert (code, err) == (0, "")
    assert f"{checks_line(out)}" == "checks of counts, lengths, memory, keys and programs; found: nothing"


def checks_line(out):
    return next(line for line in out.splitlines() if line.startswith("checks of counts"))


@pytest.mark.parametrize("count", [1, 2, 20, 300])
def test_too_few_seeds_are_told_with_step_count_and_key(place, capsys, count):
    path = place(count, simulation__seeded=5_000)
    there = counts_of(load_profile(path), Path("nowhere"), finished=False).starts["split"][0]
    code, out, err = dry_run(path, capsys)
    assert code == 1
    line = f"03_simulation: simulation.seeded: needs 5,000 seeds, sessions with a first round; {there:,} are there"
    assert line in out and line in err
    assert "data_inspection.seeds_share" in err and "simulation.seed_source" in err
    assert (there > 0) == (count >= 20)


def test_too_few_sessions_for_a_corpus_beside_realchat_are_told_with_its_key(place, capsys):
    humans = {"simulator": "replay", "user": None, "seed_source": "train", "seeded": 5_000}
    code, _, err = dry_run(place(simulation__beside={"humans": humans}), capsys, "--stage", "3")
    assert code == 1 and "simulation.beside.humans" in err and "5,000" in err


def test_as_many_seeds_as_there_are_will_do_and_one_more_will_not(place, capsys):
    there = counts_of(load_profile(place()), Path("nowhere"), finished=False).starts["split"][0]
    assert there > 5
    assert dry_run(place(simulation__seeded=there), capsys)[0] == 0
    code, _, err = dry_run(place(simulation__seeded=there + 1), capsys)
    assert code == 1 and f"needs {there + 1} seeds" in err


def test_too_few_sessions_for_notebook_06(place, capsys):
    path = place(simulator_realism__conversations=200)
    there = counts_of(load_profile(path), Path("nowhere"), finished=False).test_openings
    code, _, err = dry_run(path, capsys, "--stage", "6")
    assert code == 1
    assert "06_simulator_realism: simulator_realism.conversations: needs 400 held-out sessions" in err
    assert f" {there} are there" in err and "data_inspection.test_share" in err


def test_stages_that_are_not_asked_for_are_not_checked(place, capsys):
    path = place(simulation__seeded=5_000, simulator_realism__conversations=20_000)
    assert dry_run(path, capsys, "--stage", "2")[0] == 0
    assert dry_run(path, capsys, "--stage", "3")[0] == 1
    assert "06_simulator_realism" not in dry_run(path, capsys, "--stage", "3")[1]


@pytest.mark.parametrize("simulator", ["usergpt", "replay"])
def test_a_file_of_seeds_is_counted(place, capsys, tmp_path, simulator):
    seeds = tmp_path / "seeds.jsonl"
    lines = [json.dumps(t) for t in talks(5, rounds=1)]
    seeds.write_text("\n".join([*lines, '{"id": "no", "messages": [{"role": "assistant", "content": "Hm."}]}']))
    values = {"simulation__seed_source": str(seeds), "simulation__simulator": simulator}
    if simulator == "replay":
        values |= {"simulation__user": None, "simulation__free": 0}
    assert dry_run(place(simulation__seeded=5, **values), capsys, "--stage", "3")[0] == 0
    code, _, err = dry_run(place(simulation__seeded=6, **values), capsys, "--stage", "3")
    assert code == 1 and "simulation.seeded: needs 6" in err and "5 are there" in err and str(seeds) in err


@pytest.mark.parametrize("key", ["data_inspection.source", "simulation.seed_source"])
def test_a_file_that_is_not_there(place, capsys, key):
    block, name = key.split(".")
    code, _, err = dry_run(place(**{f"{block}__{name}": "nowhere/mine.jsonl"}), capsys)
    assert code == 1 and f"{key}: nowhere/mine.jsonl: no such file" in err


def test_the_run_folder_counts_where_notebook_01_ran(place, monkeypatch, tmp_path):
    """The very same numbers, from the sides on disk."""
    from realm.conversations.readers import load_conversations
    from realm.conversations.splits import split_sides
    from realm.conversations.writers import write_conversations

    path = place()
    profile = load_profile(path)
    before = counts_of(profile, tmp_path, finished=False)
    whole = load_conversations(tmp_path / "mine.jsonl")
    sides = split_sides(whole, profile.data_inspection.shares, profile.seed, "cluster")
    for side, members in sides.items():
        write_conversations(tmp_path / "01_data" / f"{side}.jsonl", members)
    after = counts_of(profile, tmp_path, finished=True)
    assert after.starts["split"][0] == len({c.session for c in sides.seeds}) == before.starts["split"][0]
    assert after.test_openings == before.test_openings > 20
    assert (after.margin, after.basis) == (0, "as notebook 01 left them")


def test_large_data_are_estimated_from_a_sample(place, monkeypatch, capsys):
    path = place(900)
    monkeypatch.setattr(counts, "EXACT_BELOW", 900)
    exact = counts_of(load_profile(path), Path("nowhere"), finished=False)
    monkeypatch.setattr(counts, "EXACT_BELOW", 300)
    guess = counts_of(load_profile(path), Path("nowhere"), finished=False)
    assert exact.margin == 0 < guess.margin and "estimated from 300 of 900 sessions" in guess.basis
    seeds = guess.starts["split"][0]
    pairs = [(mine, true) for s in exact.starts for mine, true in zip(guess.starts[s], exact.starts[s], strict=True)]
    # What falls on a side is a draw: three standard deviations of it.
    for mine, true in (*pairs, (guess.test_openings, exact.test_openings)):
        assert abs(mine - true) < 3 * math.sqrt(true)
    close = place(900, simulation__seeded=round(seeds * 0.95))
    code, out, _ = dry_run(close, capsys, "--stage", "3")
    assert code == 0 and f"note: 03_simulation: simulation.seeded: needs {round(seeds * 0.95)}" in out
    assert dry_run(place(900, simulation__seeded=seeds + 1), capsys, "--stage", "3")[0] == 1


def test_of_the_papers_own_data_the_published_count_is_the_guess(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    values = yaml.safe_load((PROFILE_FOLDER / "paper.yaml").read_text(encoding="utf-8"))
    values["data_inspection"]["test_share"] = 0.02
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(values))
    code, _, err = dry_run(path, capsys)
    assert code == 1 and "needs 400 held-out sessions" in err and "about 387 are there" in err and "published" in err


def test_what_cannot_be_counted_is_said(place, capsys, monkeypatch):
    path = place(data_inspection__source="someone/unheard-of-talks")
    code, out, _ = dry_run(path, capsys)
    assert code == 0
    keys = "note: 03_simulation, 06_simulator_realism: simulation.seeded, simulator_realism.conversations: "
    assert f"{keys}not held against someone/unheard-of-talks, which is not read before notebook 01" in out


# ---------------------------------------------------------------- lengths


def test_a_context_without_room_for_a_prompt(place, capsys):
    code, _, err = dry_run(place(simulation__user__max_new_tokens=512), capsys, "--stage", "3")
    assert code == 1
    assert "simulation.user: max_new_tokens 512 leaves no room for a question in context_length 512" in err


def test_rows_longer_than_the_model_holds(place, capsys, tmp_path):
    path = place(dialogue__max_length=1_024)
    code, _, err = dry_run(path, capsys, "--stage", "2")
    assert code == 1
    assert f"dialogue.max_length: 1,024, but usergpt_sft.base_model, {tmp_path / 'model'}, holds 512 tokens" in err


@pytest.mark.parametrize(("engine", "stops"), [("vllm", True), ("llama.cpp", False)])
def test_a_context_longer_than_the_trained_model_holds(place, capsys, tmp_path, engine, stops):
    path = place(simulator_realism__usergpt__context_length=2_048, simulator_realism__usergpt__engine=engine)
    code, out, _ = dry_run(path, capsys, "--stage", "6")
    assert code == stops
    assert f"simulator_realism.usergpt.context_length: 2,048, but {tmp_path / 'model'} holds 512 tokens" in out


def test_answers_that_fill_the_judges_context(place, capsys):
    judge = {**SMOKE["mt_bench"]["base"], "max_new_tokens": 1_000, "context_length": 2_048}
    _, out, _ = dry_run(place(mt_bench__judge=judge, mt_bench__pairwise=False), capsys, "--stage", "5")
    assert "mt_bench.judge.context_length: 2,048; questions, 2 answers and the judgment may come to 2,948" in out
    _, out, _ = dry_run(place(mt_bench__judge=judge, mt_bench__pairwise=True), capsys, "--stage", "5")
    assert "mt_bench.judge.context_length: 2,048; questions, 4 answers and the judgment may come to 2,996" in out


# ---------------------------------------------------------------- memory


def test_a_model_larger_than_this_machine(place, capsys):
    path = place(usergpt_sft__base_model="huggyllama/llama-7b", usergpt_sft__method="full")
    code, _, err = dry_run(path, capsys, "--stage", "2")
    rows = estimate.stage_rows(load_profile(path), "usergpt_sft", {}, None)
    assert code == 1
    assert (
        f"usergpt_sft.base_model: method full, a process of 1 needs {float(rows['GiB per device: total']):.1f}" in err
    )
    assert "this machine has" in err and "method qlora" in err
    # With as many GPUs as it takes it is no fault of the profile.
    assert dry_run(path, capsys, "--stage", "2", "--gpus", "8")[0] == 0
    assert dry_run(path, capsys, "--stage", "2", "--gpus", "1")[0] == 1


@pytest.mark.parametrize(("gib", "stops"), [(8, True), (24, False)])
def test_a_card_that_is_seen_decides(monkeypatch, capsys, tmp_path, gib, stops):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    card = type("Card", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    code, out, _ = dry_run("gpu", capsys, "--stage", "2")
    assert code == stops
    assert (f"the card seen has {gib}.0" in out) == stops and "no GPU is seen" not in out


def test_two_servers_on_one_card(place, capsys):
    both = {f"simulation__{side}__engine": "vllm" for side in ("user", "responder")}
    shares = lambda share: {f"simulation__{side}__gpu_memory_share": share for side in ("user", "responder")}  # noqa: E731
    code, _, err = dry_run(place(**both, **shares(0.9)), capsys, "--stage", "3")
    assert code == 1 and "gpu_memory_share: user and responder together take 1.80 of a GPU; leave both out" in err
    for fitting in ({}, shares(0.45)):
        assert dry_run(place(**both, **fitting), capsys, "--stage", "3")[0] == 0


# ---------------------------------------------------------------- this machine


def test_keys_and_programs_that_are_not_here_stop_a_run_but_no_dry_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, out, _ = dry_run("paper", capsys)
    assert code == 0
    stages = "03_simulation, 05_mt_bench, 06_simulator_realism"
    keys = [f"{who}.api_key_env" for who in ("simulation.responder", "mt_bench.judge", "simulator_realism.responder")]
    assert f"on this machine: {stages}: {', '.join(keys)}: environment variable OPENAI_API_KEY is not set" in out
    assert main(["--profile", "paper", "--check"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {PROFILE_FOLDER / 'paper.yaml'}: ")


def test_a_key_that_is_set_is_not_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key-0123456789")
    _, out, _ = dry_run("paper", capsys)
    assert "OPENAI_API_KEY is not set" not in out and "sk-not" not in out


def test_a_check_says_nothing_where_nothing_would_stop_it_and_counts_no_data(place, capsys, monkeypatch):
    monkeypatch.setattr(counts, "read_conversations", lambda *a, **k: pytest.fail("the data were read"))
    assert main(["--profile", str(place()), "--check"]) == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_what_is_done_is_not_checked(place, capsys, monkeypatch):
    from realm.pipeline import commands

    path = place(simulation__seeded=5_000)
    monkeypatch.setattr(commands.marks, "is_done", lambda stage, *a: stage.number == "03")
    monkeypatch.setattr(commands.marks, "changes", lambda *a: [])
    monkeypatch.setattr(commands, "made_of", lambda *a: {})
    monkeypatch.setattr(commands, "counts_of", lambda *a: pytest.fail("nothing needs it"))
    assert dry_run(path, capsys, "--stage", "3")[0] == 0


def test_the_profiles_that_no_run_here_proves_can_run(capsys, tmp_path, monkeypatch):
    """As far as can be known without a GPU, keys and the Hub; the packaged data are counted."""
    if not counts.at_hand("sharegpt"):
        pytest.skip("the packaged data are not here")
    monkeypatch.setenv("REALM_RUNS", str(tmp_path))
    for name in ("gpu", "paper"):
        code, out, err = dry_run(name, capsys)
        assert code == 0, err
        assert "would stop the run" not in out


def test_bounds_for_judging_hold_for_the_packaged_questions():
    if not counts.at_hand("mt-bench-questions") or not any((assets.cache_folder() / "models").glob("smollm2-135m-*")):
        pytest.skip("questions or tokenizer are not here")
    from realm.dialogue.format import load_tokenizer
    from realm.evaluation.mt_bench import load_questions

    tokenizer = load_tokenizer("smollm2-135m")
    lengths = [sum(len(tokenizer(t).input_ids) for t in q.turns) for q in load_questions()]
    assert 0.9 * checks.QUESTION_TOKENS < max(lengths) <= checks.QUESTION_TOKENS
