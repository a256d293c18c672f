"""The plan against what it plans: conversations talked through turn by turn, the estimates of one stage, the judge's
requests."""

import math

import pytest

from realm.core.profile import load_profile
from realm.models import estimate, full_scale
from realm.models.architecture import PUBLISHED, UnknownArchitecture
from realm.models.full_scale import Figure, Inputs, Part, Ratio, growth, plan
from realm.models.workload import optimizer_steps

ROUNDS, TURN, HUMAN, TALKS = 4, 250.0, 0.2, 50_728
MADE = {
    "read": 90_000,
    "sessions": 20_000,
    "segments": 34_435,
    "session_tokens": 2_400,
    "kept": 0.7,
    "supervised": 0.3,
    "human_part": HUMAN,
    "rounds": ROUNDS,
    "turn_tokens": TURN,
    "talks": TALKS,
    "bytes_a_token": 4.0,
    "seconds_read": 0.01,
}
LLAMA = PUBLISHED["huggyllama/llama-7b"]


def given(gpus=4, **values):
    ratios = {name: Ratio(value, name, "made") for name, value in {**MADE, **values}.items()}
    return Inputs.of(load_profile("paper"), ratios, gpus)


@pytest.fixture(scope="module")
def figures():
    return {(f.stage, f.what): f for f in plan(given())}


def value(figure):
    low, high = figure.ends
    assert low == high
    return low


# ---------------------------------------------------------------- simulation


def talked_through():
    """One conversation, turn by turn: what each side is sent and says."""
    history = 0.0
    found = {"user": [0.0, 0.0], "responder": [0.0, 0.0]}
    for _ in range(ROUNDS):
        for side, part in (("user", HUMAN), ("responder", 1 - HUMAN)):
            found[side][0] += history
            found[side][1] += 2 * TURN * part
            history += 2 * TURN * part
    return found


@pytest.mark.parametrize("side", ["user", "responder"])
def test_tokens_of_the_simulation_are_those_of_conversations_talked_through(figures, side):
    sent, said = talked_through()[side]
    assert value(figures["03", f"{side}, tokens sent"]) == pytest.approx(TALKS * sent)
    assert value(figures["03", f"{side}, tokens generated"]) == pytest.approx(TALKS * said)


def test_the_responder_is_paid_by_the_profiles_price(figures):
    price = load_profile("paper").simulation.budget.responder_price
    sent, said = talked_through()["responder"]
    assert value(figures["03", "responder, dollars"]) == pytest.approx(
        TALKS * (sent * price.prompt + said * price.completion) / 1e6
    )


def test_every_shard_ends_within_its_job(figures):
    shards = value(figures["03", "fewest shards, a GPU each"])
    assert figures["03", "GPU hours"].ends[1] / shards <= full_scale.SHARD_HOURS
    assert figures["03", "GPU hours"].ends[1] / (shards - 1) > full_scale.SHARD_HOURS
    of_profile = load_profile("paper").cluster.shards
    assert shards <= of_profile
    assert value(figures["03", "conversations a shard"]) * of_profile == pytest.approx(TALKS)


def test_a_card_that_holds_few_caches_generates_for_few_at_once(figures):
    long = {(f.stage, f.what): f for f in plan(given(rounds=40))}
    card = estimate.GPUS[full_scale.CARD]
    assert figures["03", "memory of the user's server"].ends[1] < long["03", "memory of the user's server"].ends[1]
    assert long["03", "memory of the user's server"].ends[1] <= 0.9 * card.gib
    assert long["03", "user, generation"].ends < figures["03", "user, generation"].ends


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("stage", "block"), [("02", "usergpt_sft"), ("04", "realm_sft")])
@pytest.mark.parametrize("gpus", [4, 8])
def test_training_is_what_the_estimate_of_a_stage_says(stage, block, gpus):
    figures = {(f.stage, f.what): f for f in plan(given(gpus))}
    config = getattr(load_profile("paper"), block)
    memory = figures[stage, f"memory on each of {gpus} GPUs"]
    share = value(figures[stage, "of these supervised"]) / value(figures[stage, "tokens a pass, tails cut"])
    parts = estimate.memory(LLAMA, config, 2_048, share, gpus, 2)
    assert value(memory) * estimate.GIB == pytest.approx(sum(parts.values()))
    hours, clock = figures[stage, "GPU hours"].ends, figures[stage, "hours by the clock"].ends
    assert [h / gpus for h in hours] == pytest.approx(clock)
    speed = figures[stage, "throughput of a GPU"].ends
    tokens = value(figures[stage, "tokens trained on"])
    assert [tokens / s / 3_600 for s in speed[::-1]] == pytest.approx(hours)


def test_training_takes_eight_operations_a_weight_and_token(figures):
    # Forward 2, backward 4, and once more forward for checkpointing (arXiv 2204.02311), attention on top.
    tokens = value(figures["04", "tokens trained on"])
    device = estimate.GPUS[full_scale.CARD]
    operations = figures["04", "GPU hours"].ends[0] * 3_600 * device.flops * device.utilization[1]
    assert 8 < operations / tokens / LLAMA.parameters < 9


def test_steps_are_those_of_its_segments(figures):
    config, held_out = load_profile("paper").usergpt_sft, 0.055
    assert value(figures["02", "optimizer steps"]) == pytest.approx(
        optimizer_steps(config, round(MADE["segments"] * (1 - held_out)), 4), rel=0.01
    )
    config = load_profile("paper").realm_sft  # 2,000 tokens a conversation: one row each
    assert value(figures["04", "optimizer steps"]) == pytest.approx(
        optimizer_steps(config, round(0.95 * TALKS), 4), rel=0.01
    )


def test_tokens_follow_from_the_ratios(figures):
    assert value(figures["02", "tokens trained on"]) == pytest.approx(20_000 * 2_400 * 0.7 * 0.945 * 3)
    assert value(figures["04", "tokens trained on"]) == pytest.approx(TALKS * 0.95 * 8 * TURN * 3)


# ---------------------------------------------------------------- the judge, the sums


def test_judgments_are_those_that_the_profile_tells_of(figures):
    # profiles/paper.yaml: 1,440 ratings, 640 comparisons, and at most four a question of calibration.
    assert value(figures["05", "judgments at most"]) == 1_440 + 640 + 4 * 80
    longest = full_scale.JUDGE_TOKENS + 4 * 1_024
    assert value(figures["05", "judge, tokens sent at most"]) < value(figures["05", "judgments at most"]) * longest


def test_a_local_judge_is_not_paid():
    profile = load_profile("paper")
    local = profile.mt_bench.judge.model_copy(update={"engine": "vllm"})
    changed = profile.model_copy(update={"mt_bench": profile.mt_bench.model_copy(update={"judge": local})})
    names = {f.what for f in plan(Inputs(changed, given().ratios, given().models, 4))}
    assert "judge, tokens sent at most" in names and "judge at most, dollars" not in names


def test_sums_leave_nothing_out(figures):
    for what, unit in (("paid to services", "dollars"), ("storage", "GB")):
        parts = [f.ends[1] for (stage, _), f in figures.items() if f.unit == unit and stage != "all"]
        assert value(figures["all", what]) == pytest.approx(sum(parts))
    hours = [figures[s, "GPU hours"].ends for s in ("02", "03", "04")]
    both = [sum(h[i] for h in hours) for i in range(2)]
    assert list(figures["all", f"GPU hours, {full_scale.CARD}"].ends) == pytest.approx(both)


def test_stages_stand_in_order():
    stages = [f.stage for f in plan(given())]
    assert stages == sorted(stages)


def test_what_divides_turns_its_range_around():
    figure = Figure("00", "", "", (Part((2.0, 4.0), ""), Part((1.0, 8.0), "", divides=True)))
    assert figure.ends == (2 / 8, 4 / 1)


# ---------------------------------------------------------------- growth, and where there is no plan


def test_growth_is_that_of_what_is_doubled():
    factors = {(f.stage, f.what): row for f, row in growth(given())}
    again = lambda r: r * (r - 1) / 2  # noqa: E731
    assert factors["03", "user, tokens sent"]["rounds"] == pytest.approx(again(2 * ROUNDS) / again(ROUNDS))
    assert factors["02", "tokens trained on"] == pytest.approx(
        {"conversations": 2, "rounds": 2, "layers of the models": 1}
    )
    assert factors["04", "GPU hours"]["layers of the models"] == pytest.approx(2, rel=0.03)
    assert set(factors["05", "answers, tokens generated at most"].values()) == {1.0}
    assert all(math.isfinite(v) and v > 0 for row in factors.values() for v in row.values())


def test_only_a_profile_without_budgets_on_the_papers_data_has_a_plan():
    assert [p for p in ("smoke", "cpu", "gpu", "paper") if full_scale.applies(load_profile(p))] == ["paper"]


def test_an_unknown_model_is_refused():
    profile = load_profile("paper")
    other = profile.realm_sft.model_copy(update={"base_model": "someone/unheard-of-13b"})
    with pytest.raises(UnknownArchitecture, match="unheard-of"):
        Inputs.of(profile.model_copy(update={"realm_sft": other}), given().ratios, None)
