"""The paper's scale planned: tokens, memory, GPU hours, money and storage of every stage, each with its formula.

A figure is a product or a sum of named numbers, so what is shown is what was computed. Tokens follow from ratios that
were measured or published (``Ratio``; ``reporting.full_scale`` gathers them); throughputs and prices are assumptions,
and no run has tested them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from realm.core.endpoint import GPU_SHARE
from realm.core.profile import SFT, Endpoint, Price, Profile
from realm.models import estimate
from realm.models.architecture import Architecture, architecture
from realm.models.workload import Workload

CARD = "A100 80 GB"
BANDWIDTH = 2.039e12  # bytes a second, NVIDIA's data sheet of that card (SXM)
# Assumed. Of the bandwidth, what generation reaches; tokens a second of one answer of an API; hours of a shard's job.
BANDWIDTH_SHARE, STREAM, SHARD_HOURS = (0.4, 0.8), (30.0, 100.0), 8.0
PRICES_AS_OF = "March 2025"
JUDGE_PRICE = Price(prompt=30.0, completion=60.0)  # dollars per million tokens, as gpt-4 was listed then
# The longest of the 80 questions' prompts to a judge, references included, with the tokenizer of SmolLM2.
JUDGE_TOKENS = 1_900
TURNS = 2  # of a question of MT-Bench
# Of a full fine-tune: float32 weights and AdamW's moments; as served; two checkpoints stay while a third is written.
CHECKPOINT_BYTES, SERVED_BYTES, CHECKPOINTS = 12, 2, 3
COPIES = 4  # of RealChat: journal, JSON lines, ShareGPT's layout, Parquet
BILLION, MILLION, HOUR = 1e9, 1e6, 3_600.0


@dataclass(frozen=True)
class Ratio:
    """A number that was measured or published; ``source`` says by whom, and where it stands."""

    value: float
    words: str
    source: str


@dataclass(frozen=True)
class Part:
    """One number of a formula, or a range of it; ``divides`` where it stands below the line."""

    value: float | tuple[float, float]
    words: str
    divides: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        return self.value if isinstance(self.value, tuple) else (self.value, self.value)


@dataclass(frozen=True)
class Figure:
    """What is computed: the product of its parts, or their sum. ``grows``: it is shown in the table of growth."""

    stage: str
    what: str
    unit: str
    parts: tuple[Part, ...]
    adds: bool = False
    grows: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Least and most."""
        if self.adds:
            return sum(p.ends[0] for p in self.parts), sum(p.ends[1] for p in self.parts)
        factors = [(1 / p.ends[1], 1 / p.ends[0]) if p.divides else p.ends for p in self.parts]
        return math.prod(f[0] for f in factors), math.prod(f[1] for f in factors)

    def as_part(self, words: str, divides: bool = False) -> Part:
        low, high = self.ends
        return Part(low if low == high else (low, high), words, divides)


@dataclass(frozen=True)
class Inputs:
    """What a plan is made of; ``ratios`` by name, ``models`` by block of the profile."""

    profile: Profile
    ratios: Mapping[str, Ratio]
    models: Mapping[str, Architecture]
    gpus: int

    @classmethod
    def of(cls, profile: Profile, ratios: Mapping[str, Ratio], gpus: int | None) -> Inputs:
        """Raises UnknownArchitecture for a model whose shape is not known."""
        models = {b: architecture(getattr(profile, b).base_model) for b in ("usergpt_sft", "realm_sft")}
        return cls(profile, ratios, models, gpus or estimate.FULL_GPUS)

    def value(self, name: str) -> float:
        return self.ratios[name].value

    def part(self, name: str) -> Part:
        return Part(self.value(name), self.ratios[name].words)

    def times(self, factor: float, *names: str) -> Inputs:
        """The same with these ratios multiplied."""
        more = {n: replace(self.ratios[n], value=factor * self.value(n)) for n in names}
        return replace(self, ratios={**self.ratios, **more})

    @property
    def talks(self) -> float:
        return self.value("talks")

    @property
    def round_tokens(self) -> float:
        return 2 * self.value("turn_tokens")


def applies(profile: Profile) -> bool:
    """Whether the published counts of the authors' cleaning say how much there is: no budget cuts it short."""
    blocks = (profile.usergpt_sft, profile.realm_sft)
    return profile.data_inspection.preset == "paper" and all(b.max_train_tokens is None for b in blocks)


def plan(given: Inputs) -> list[Figure]:
    """Every figure, stage by stage, the sums over stages last."""
    figures = [_reading(given), *_usergpt(given), *_simulation(given), *_realm(given), *_judged(given)]
    figures = sorted([*figures, *_openings(given), *_storage(given)], key=lambda f: f.stage)
    hours = [f for f in figures if f.what.startswith("GPU hours")]
    money = [f for f in figures if f.unit == "dollars"]
    disk = [f for f in figures if f.unit == "GB"]
    named = lambda some: tuple(f.as_part(f"stage {f.stage}") for f in some)  # noqa: E731
    return [
        *figures,
        Figure("all", f"GPU hours, {CARD}", "h", named(hours), adds=True),
        Figure("all", "paid to services", "dollars", named(money), adds=True),
        Figure("all", "storage", "GB", tuple(f.as_part(f.what) for f in disk), adds=True),
    ]


# ---------------------------------------------------------------- stages


def _reading(given: Inputs) -> Figure:
    parts = (given.part("read"), given.part("seconds_read"))
    return Figure("01", "time on two cores", "s", parts, grows=True)


def _usergpt(given: Inputs) -> Iterator[Figure]:
    kept = Part(1 - sum(given.profile.data_inspection.shares.values()), "share trained on")
    parts = (given.part("sessions"), given.part("session_tokens"), given.part("kept"), kept)
    rows = (given.part("segments"), kept)
    yield from _training(given, "02", "usergpt_sft", parts, rows, given.part("supervised"))


def _realm(given: Inputs) -> Iterator[Figure]:
    own, longest = given.profile.realm_sft.own_split, given.profile.dialogue.max_length
    kept = Part(own.train_share if own else 1.0, "share trained on")
    tokens = given.value("rounds") * given.round_tokens
    parts = (given.part("talks"), given.part("rounds"), Part(given.round_tokens, "tokens a round"), kept)
    rows = (given.part("talks"), Part(max(1.0, tokens / longest), "rows of max_length a conversation"), kept)
    answers = Part(1 - given.value("human_part"), "the answers' part")
    yield from _training(given, "04", "realm_sft", parts, rows, answers)


def _training(
    given: Inputs, stage: str, block: str, tokens: tuple[Part, ...], rows: tuple[Part, ...], share: Part
) -> Iterator[Figure]:
    config: SFT = getattr(given.profile, block)
    shape, device = given.models[block], estimate.GPUS[CARD]
    a_pass = Figure(stage, "tokens a pass, tails cut", "tokens", tokens)
    count, segments = a_pass.ends[0], math.prod(p.ends[0] for p in rows)
    longest = given.profile.dialogue.max_length
    load = Workload(round(count), round(segments), min(longest, count / segments), share.ends[0], False, "")
    epochs = Part(config.epochs, "epochs")
    whole = Figure(stage, "tokens trained on", "tokens", (a_pass.as_part("tokens"), epochs), grows=True)
    work = Part(estimate.stage_flops(shape, config, load) / whole.ends[0], "operations a token")
    speed = (Part(device.flops, f"operations a second of {CARD}"), Part(device.utilization, "share of them"))
    step = config.batch_size * config.accumulation * given.gpus
    memory = estimate.memory(shape, config, longest, share.ends[0], given.gpus, 2)
    below = tuple(replace(p, divides=True) for p in speed)
    seconds = Part(HOUR, "s an hour", divides=True)
    hours = Figure(stage, "GPU hours", "h", (whole.as_part("tokens trained on"), work, *below, seconds), grows=True)
    yield a_pass
    yield Figure(stage, "of these supervised", "tokens", (a_pass.as_part("tokens"), share))
    yield whole
    yield Figure(stage, "optimizer steps", "steps", (*rows, epochs, Part(step, "segments a step", divides=True)))
    yield Figure(
        stage,
        f"memory on each of {given.gpus} GPUs",
        "GiB",
        tuple(Part(size / estimate.GIB, name) for name, size in memory.items() if size),
        adds=True,
        grows=True,
    )
    yield Figure(stage, "throughput of a GPU", "tokens/s", (*speed, replace(work, divides=True)))
    yield hours
    wall = (hours.as_part("GPU hours"), Part(given.gpus, "GPUs", divides=True))
    yield Figure(stage, "hours by the clock", "h", wall)


def _simulation(given: Inputs) -> Iterator[Figure]:
    rounds, human, talks = given.value("rounds"), given.value("human_part"), given.part("talks")
    a_round, again = Part(given.round_tokens, "tokens a round"), rounds * (rounds - 1) / 2
    turns = (talks, given.part("rounds"), a_round)
    sent = (talks, a_round)
    config = given.profile.simulation
    yield Figure("03", "requests of each side", "requests", turns[:2], grows=True)
    yield Figure("03", "user, tokens sent", "tokens", (*sent, Part(again, "rounds sent again")), grows=True)
    asked = Figure("03", "user, tokens generated", "tokens", (*turns, Part(human, "the human's part")), grows=True)
    yield asked
    read = Figure(
        "03", "responder, tokens sent", "tokens", (*sent, Part(again + human * rounds, "rounds sent")), grows=True
    )
    said = Figure(
        "03", "responder, tokens generated", "tokens", (*turns, Part(1 - human, "the answers' part")), grows=True
    )
    yield from (read, said)
    if price := config.budget.responder_price:
        yield _money("03", "responder", read, said, price)
    if config.user is not None and config.user.engine == "vllm":
        yield from _served(given, config.user, asked, said)


def _served(given: Inputs, user: Endpoint, asked: Figure, said: Figure) -> Iterator[Figure]:
    """UserGPT's server: it computes each token once (prefix cache), and reads weights and caches for each it makes."""
    shape, device = given.models["usergpt_sft"], estimate.GPUS[CARD]
    weights = SERVED_BYTES * shape.parameters
    history = given.value("rounds") * given.round_tokens / 2
    cache = history * 2 * SERVED_BYTES * shape.layers * shape.hidden * shape.kv_heads / shape.heads
    room = (user.gpu_memory_share or GPU_SHARE) * device.gib * estimate.GIB - weights
    at_once = max(1, min(user.concurrency, int(room / cache)))
    parts = (Part(weights / estimate.GIB, "weights"), Part(at_once * cache / estimate.GIB, "caches of all in flight"))
    yield Figure("03", "memory of the user's server", "GiB", parts, adds=True, grows=True)
    moved = Part(weights + at_once * cache, "bytes a step", divides=True)
    bandwidth = (Part(BANDWIDTH, f"bytes a second of {CARD}"), Part(BANDWIDTH_SHARE, "share of them"))
    pace = Figure("03", "user, generation", "tokens/s", (Part(at_once, "in flight"), *bandwidth, moved))
    yield pace
    an_hour = Part(HOUR, "s an hour", divides=True)
    makes = Figure("03", "", "h", (asked.as_part("tokens"), pace.as_part("tokens/s", divides=True), an_hour))
    speed = tuple(Part(v, w, divides=True) for v, w in ((device.flops, "peak"), (device.utilization, "share")))
    work = Part(2 * (shape.linear + shape.head), "operations a token")
    new = Part(asked.ends[0] + said.ends[0], "tokens")
    reads = Figure("03", "", "h", (new, work, *speed, an_hour))
    responder = given.profile.simulation.responder
    waited = (said.as_part("tokens"), Part(responder.concurrency, "", divides=True), Part(STREAM, "", divides=True))
    waits = Figure("03", "", "h", (*waited, an_hour))
    named = ((makes, "generating"), (reads, "reading"), (waits, "waiting for the responder"))
    held = Figure("03", "GPU hours", "h", tuple(f.as_part(words) for f, words in named), adds=True, grows=True)
    yield held
    fewest = math.ceil(held.ends[1] / SHARD_HOURS)
    yield Figure("03", "fewest shards, a GPU each", "shards", (Part(fewest, f"jobs of {SHARD_HOURS:.0f} h at most"),))
    shards = Part(given.profile.cluster.shards, "shards of the profile", divides=True)
    yield Figure("03", "conversations a shard", "conversations", (given.part("talks"), shards))


def _money(stage: str, who: str, sent: Figure, made: Figure, price: Price) -> Figure:
    parts = (
        Part(sent.ends[0] * price.prompt / MILLION, f"for tokens sent, {price.prompt:g} dollars a million"),
        Part(made.ends[0] * price.completion / MILLION, f"for tokens generated, {price.completion:g}"),
    )
    return Figure(stage, f"{who}, dollars", "dollars", parts, adds=True, grows=True)


def _judged(given: Inputs) -> Iterator[Figure]:
    config = given.profile.mt_bench
    models, answers = config.answerers, Part(config.questions * TURNS, "questions and turns")
    longest = max(e.max_new_tokens for e in models.values())
    made = (Part(len(models), "models"), answers, Part(longest, "tokens"))
    yield Figure("05", "answers, tokens generated at most", "tokens", made, grows=True)
    if config.judge is None:
        return
    tests = config.questions if config.calibration is True else int(config.calibration)
    rated = len(models) * answers.ends[0] * config.judge_repeats + tests
    compared = (len(models) - 1) * answers.ends[0] * 2 * config.pairwise + 3 * tests
    yield Figure(
        "05", "judgments at most", "judgments", (Part(rated, "ratings"), Part(compared, "comparisons")), adds=True
    )
    sent = Figure(
        "05",
        "judge, tokens sent at most",
        "tokens",
        (
            Part(rated * (JUDGE_TOKENS + TURNS * longest), "in ratings, two answers in view"),
            Part(compared * (JUDGE_TOKENS + 2 * TURNS * longest), "in comparisons, four"),
        ),
        adds=True,
        grows=True,
    )
    said = (Part(rated + compared, "judgments"), Part(config.judge.max_new_tokens, "tokens"))
    made = Figure("05", "judge, tokens generated at most", "tokens", said, grows=True)
    yield from (sent, made)
    if config.judge.engine == "api":
        yield _money("05", "judge at most", sent, made, JUDGE_PRICE)


def _openings(given: Inputs) -> Iterator[Figure]:
    config = given.profile.simulator_realism
    count = Part(config.conversations, "openings")
    local = (config.usergpt, config.base, config.roleplay)
    longest = Part(max(e.max_new_tokens for e in local), "tokens")
    parts = (Part(len(local), "simulators"), count, longest)
    yield Figure("06", "openings, tokens generated at most", "tokens", parts, grows=True)
    if config.responder is not None and (price := given.profile.simulation.budget.responder_price):
        made = (count, Part(config.responder.max_new_tokens, "tokens"))
        cost = Part(price.completion / MILLION, f"dollars a token, {price.completion:g} a million")
        yield Figure("06", "responder's openings at most", "dollars", (*made, cost))


def _storage(given: Inputs) -> Iterator[Figure]:
    for stage, block in (("02", "usergpt_sft"), ("04", "realm_sft")):
        full = getattr(given.profile, block).method == "full"
        weights = (
            given.models[block].parameters
            if full
            else given.models[block].adapter(getattr(given.profile, block).lora_rank)
        )
        kept = (Part(CHECKPOINTS, "checkpoints"), Part(weights / BILLION, "billion weights"))
        yield Figure(stage, "checkpoints", "GB", (*kept, Part(CHECKPOINT_BYTES, "bytes each")), grows=True)
        served = given.models[block].parameters / BILLION
        whole = (Part(2, "copies, base and trained"), Part(served, "billion weights"))
        yield Figure(stage, "models", "GB", (*whole, Part(SERVED_BYTES, "bytes each")), grows=True)
    text = (given.part("talks"), given.part("rounds"), Part(given.round_tokens, "tokens a round"))
    copies = (given.part("bytes_a_token"), Part(COPIES, "copies at most"), Part(BILLION, "bytes a GB", divides=True))
    yield Figure("03", "RealChat", "GB", (*text, *copies), grows=True)


# ---------------------------------------------------------------- growth


def _deeper(given: Inputs) -> Inputs:
    return replace(given, models={b: replace(m, layers=2 * m.layers) for b, m in given.models.items()})


DOUBLED: dict[str, Callable[[Inputs], Inputs]] = {
    "conversations": lambda given: given.times(2, "read", "sessions", "segments", "talks"),
    "rounds": lambda given: given.times(2, "session_tokens", "segments", "rounds", "seconds_read"),  # by its tokens
    "layers of the models": _deeper,
}


def growth(given: Inputs) -> list[tuple[Figure, dict[str, float]]]:
    """Of the figures that ``grows`` marks: by what each is multiplied where one thing is doubled."""
    before = [f for f in plan(given) if f.grows]
    after = {name: [f for f in plan(double(given)) if f.grows] for name, double in DOUBLED.items()}
    return [
        (figure, {name: some[i].ends[1] / figure.ends[1] for name, some in after.items()})
        for i, figure in enumerate(before)
    ]
