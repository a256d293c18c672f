"""What would stop a run, found before anything is paid: counts, contexts, memory, keys and programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from realm.conversations.readers import read_conversations
from realm.core.fine_tunes import SFT
from realm.core.profile import Endpoint, Profile, Simulation
from realm.models import assets, estimate
from realm.models.architecture import UnknownArchitecture, positions
from realm.models.full_scale import JUDGE_TOKENS
from realm.pipeline.counts import Counts, at_hand, usable
from realm.pipeline.stages import Stage
from realm.serving.faults import EndpointError
from realm.serving.local import program_of
from realm.simulation.plan import SIDES

STOPS, HERE, NOTE = "would stop the run", "on this machine", "note"
FOLDERS = ("stage:", "base:")
TRAINED = {"02_usergpt_sft": "usergpt_sft", "04_realm_sft": "realm_sft"}
QUESTION_TOKENS = 400  # the longest of the 80, with the tokenizer of SmolLM2
FILE_ENDINGS = (".json", ".jsonl", ".gz", ".zst", ".parquet")


@dataclass(frozen=True)
class Finding:
    """``kind``: it stops the run wherever it runs, or on this machine only, or is only good to know. ``key``: the
    profile's key that it is about, ``text``: what, with its numbers, and what to change."""

    kind: str
    stage: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.key}: {self.text}"


def findings(
    profile: Profile, stages: Sequence[Stage], count: Callable[[], Counts | None], gpus: int | None
) -> list[Finding]:
    """What of ``stages`` could not run, or not here. ``count`` is asked only if a stage needs numbers of sessions;
    ``gpus`` null checks the memory of this machine. Raises ConversationFileError for a file that cannot be read."""
    by_block = {block: s.notebook for s in stages for block in s.blocks}
    checks = [(_files, "data_inspection"), (_seeds, "simulation"), (_prompt, "simulation")]
    checks += [(_sessions, "simulator_realism"), (_taught, "teaching")]
    needed = lru_cache(count)
    found = [f for check, block in checks if block in by_block for f in check(profile, by_block[block], needed)]
    for block in TRAINED.values():
        if block in by_block:
            found += [*_lengths(profile, by_block[block], block), *_memory(profile, by_block[block], block, gpus)]
    for key, endpoint in profile.endpoints().items():
        if (block := key.partition(".")[0]) in by_block:
            found += _endpoint(profile, by_block[block], key, endpoint)
    if "simulation" in by_block:
        found += _shared_card(profile, by_block["simulation"])
        found += _two_servers(profile, by_block["simulation"])
    if "mt_bench" in by_block:
        found += _judged(profile, by_block["mt_bench"])
    return _together(found)


def _together(found: list[Finding]) -> list[Finding]:
    """What is said of several keys in the same words is said once, in the order of the stages, what stops first."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        alike.setdefault((finding.kind, finding.text), []).append(finding)
    joined = [
        Finding(kind, ", ".join(dict.fromkeys(f.stage for f in some)), ", ".join(f.key for f in some), text)
        for (kind, text), some in alike.items()
    ]
    return sorted(joined, key=lambda f: ((STOPS, HERE, NOTE).index(f.kind), f.stage))


# ---------------------------------------------------------------- counts


def _files(profile: Profile, stage: str, count: Callable) -> Iterator[Finding]:
    yield from _missing(stage, "data_inspection.source", profile.data_inspection.source)


def _missing(stage: str, key: str, name: str) -> Iterator[Finding]:
    if name not in assets.ASSETS and name.endswith(FILE_ENDINGS) and not Path(name).exists():
        yield Finding(STOPS, stage, key, f"{name}: no such file")


def _seeds(profile: Profile, stage: str, count: Callable[[], Counts | None]) -> Iterator[Finding]:
    for key, config in _simulations(profile).items():
        if config.seeded:
            yield from _seeds_of(profile, stage, key, config, count)


def _simulations(profile: Profile) -> dict[str, Simulation]:
    """Key of the profile -> RealChat's, and those of the corpora beside it."""
    beside = {f"simulation.beside.{name}": config for name, config in profile.corpora().items()}
    return {"simulation": profile.simulation} | beside


def _seeds_of(
    profile: Profile, stage: str, key: str, config: Simulation, count: Callable[[], Counts | None]
) -> Iterator[Finding]:
    replayed = config.simulator == "replay"
    what = "sessions to replay" if replayed else "seeds, sessions with a first round"
    if config.seed_source not in SIDES:
        yield from _missing(stage, f"{key}.seed_source", config.seed_source)
        if at_hand(config.seed_source):
            there = usable(read_conversations(assets.data(config.seed_source)), replayed)
            yield from _too_few(stage, f"{key}.seeded", config.seeded, there, what, config.seed_source, 0)
        return
    if (counts := count()) is None:
        yield _unknown(profile, stage, f"{key}.seeded")
    else:
        there = counts.starts[config.seed_source][replayed]
        share = {"split": "raise data_inspection.seeds_share", "test": "raise data_inspection.test_share"}
        more = share.get(config.seed_source, "give more in data_inspection.source")
        ways = f"; lower it, {more}, or name a file of seeds in {key}.seed_source"
        yield from _too_few(
            stage, f"{key}.seeded", config.seeded, there, what, counts.basis, counts.margin, otherwise=ways
        )


def _prompt(profile: Profile, stage: str, count: Callable) -> Iterator[Finding]:
    """A word is a token at least, so what has no room by this has none."""
    config = profile.simulation
    words, room = len((config.responder_prompt or "").split()), config.responder.context_length
    if words >= room - config.responder.max_new_tokens:
        text = f"{words:,} words leave no room for a question and an answer in responder.context_length {room:,}"
        yield Finding(STOPS, stage, "simulation.responder_prompt", text)


def _sessions(profile: Profile, stage: str, count: Callable[[], Counts | None]) -> Iterator[Finding]:
    asked, counts = 2 * profile.simulator_realism.conversations, count()
    if counts is None:
        yield _unknown(profile, stage, "simulator_realism.conversations")
    else:
        yield from _too_few(
            stage,
            "simulator_realism.conversations",
            asked,
            counts.test_openings,
            "held-out sessions that show their first turn, two groups of humans",
            counts.basis,
            counts.margin,
            otherwise="; lower it or raise data_inspection.test_share",
        )


def _taught(profile: Profile, stage: str, count: Callable) -> Iterator[Finding]:
    """What students learn from is of one size, or the number of conversations is no longer what they differ in."""
    if profile.teaching is None:
        return
    sizes = {key: config.free + config.seeded for key, config in _simulations(profile).items()}
    for name in profile.teaching.corpora:
        key = f"simulation.beside.{name}"
        if sizes[key] < sizes["simulation"]:
            text = f"{sizes[key]:,} conversations, and RealChat has {sizes['simulation']:,}: so many of each are used"
            yield Finding(NOTE, stage, f"{key}.seeded", text)


def _unknown(profile: Profile, stage: str, key: str) -> Finding:
    source = profile.data_inspection.source
    return Finding(NOTE, stage, key, f"not held against {source}, which is not read before notebook 01")


def _too_few(
    stage: str, key: str, asked: int, there: int, what: str, basis: str, margin: float, otherwise: str = "; lower it"
) -> Iterator[Finding]:
    """It stops the run where the best guess is too low, and is told where a worse guess, by ``margin``, would be."""
    if asked <= there * (1 - margin):
        return
    about = "about " if margin else ""
    text = f"needs {asked:,} {what}; {about}{there:,} are there ({basis}){otherwise}"
    yield Finding(STOPS if asked > there else NOTE, stage, key, text)


# ---------------------------------------------------------------- lengths


def _lengths(profile: Profile, stage: str, block: str) -> Iterator[Finding]:
    config, longest = getattr(profile, block), profile.dialogue.max_length
    most = positions(config.base_model)
    if most is not None and longest > most:
        text = f"{longest:,}, but {block}.base_model, {config.base_model}, holds {most:,} tokens"
        yield Finding(STOPS, stage, "dialogue.max_length", text)


def _endpoint(profile: Profile, stage: str, key: str, endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.engine == "api":
        if endpoint.api_key_env and not os.environ.get(endpoint.api_key_env):
            yield Finding(HERE, stage, f"{key}.api_key_env", f"environment variable {endpoint.api_key_env} is not set")
        return
    model = _base_of(profile, endpoint.model)
    most = positions(model)
    length = endpoint.context_length
    if most is not None and length > most:
        kind = STOPS if endpoint.engine == "vllm" else NOTE  # the others start, and say odd things beyond
        yield Finding(kind, stage, f"{key}.context_length", f"{length:,}, but {model} holds {most:,} tokens")
    if endpoint.engine == "vllm" and not torch.cuda.is_available():
        yield Finding(HERE, stage, f"{key}.engine", "vllm needs a GPU, and none is seen")
    try:
        if endpoint.engine != "llama.cpp":
            program_of(endpoint)
    except EndpointError as error:
        yield Finding(HERE, stage, f"{key}.environment", str(error))


def _base_of(profile: Profile, model: str) -> str:
    """Of a trained stage, the model it starts from."""
    kind, _, folder = model.partition(":")
    return getattr(profile, TRAINED[folder]).base_model if f"{kind}:" in FOLDERS and folder in TRAINED else model


def _judged(profile: Profile, stage: str) -> Iterator[Finding]:
    """Both turns of a question stand in one context, and both answers in the judge's, of two models where it
    compares."""
    config = profile.mt_bench
    for name, endpoint in config.answerers.items():
        need = QUESTION_TOKENS + 2 * endpoint.max_new_tokens
        if need > endpoint.context_length > endpoint.max_new_tokens:
            text = f"{endpoint.context_length:,}; two answers of max_new_tokens may come to {need:,}"
            yield Finding(NOTE, stage, f"mt_bench.{name}.context_length", text)
    if config.judge:
        shown = 4 if config.pairwise else 2
        answers = shown * max(e.max_new_tokens for e in config.answerers.values())
        need = JUDGE_TOKENS + answers + config.judge.max_new_tokens
        if need > config.judge.context_length:
            text = f"{config.judge.context_length:,}; questions, {shown} answers and the judgment may come to {need:,}"
            yield Finding(NOTE, stage, "mt_bench.judge.context_length", text)


# ---------------------------------------------------------------- memory


def _memory(profile: Profile, stage: str, block: str, gpus: int | None) -> Iterator[Finding]:
    """Tensors alone, so what does not fit by this does not fit."""
    cards = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    config: SFT = getattr(profile, block)
    try:
        rows = estimate.stage_rows(profile, block, {}, gpus or len(cards) or None)
    except UnknownArchitecture:
        return  # the table of estimates says so
    need = float(rows["GiB per device: total"])
    known = {name: device.gib for name, device in estimate.GPUS.items() if f"time, {name}" in rows}
    what = f"method {config.method}, a process of {rows['method, processes'].split()[-1]} needs {need:.1f} GiB"
    if gpus is None and cards:
        has, most = "the card seen", min(cards) / estimate.GIB
    elif known:
        has, most = "the largest card known here", max(known.values())
    else:
        shared = config.cpu_processes
        has = "this machine" if shared == 1 else f"each of {shared} processes (cpu_processes) on this machine"
        most = _machine_gib() / shared
    if need > most:
        yield Finding(STOPS, stage, f"{block}.base_model", f"{what}; {has} has {most:.1f}{_less(config)}")
    elif known and not cards and gpus is None:
        fits = ", ".join(name for name, gib in known.items() if need <= gib)
        yield Finding(HERE, stage, f"{block}.compute_dtype", f"no GPU is seen; {what}, which fits {fits}")


def _less(config: SFT) -> str:
    ways = ["a smaller model", "a smaller batch_size"]
    ways += ["method qlora"] if config.method != "qlora" else []
    ways += [] if config.gradient_checkpointing else ["gradient_checkpointing: true"]
    return f"; try {', '.join(ways)}"


def _machine_gib() -> float:
    """Memory of this machine, or what its container may have of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    granted = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return (min(whole, int(granted)) if granted.isdecimal() else whole) / estimate.GIB


def _shared_card(profile: Profile, stage: str) -> Iterator[Finding]:
    for key, config in _simulations(profile).items():
        at_once = [e for e in (config.user, config.responder) if e and e.engine == "vllm"]
        asked = sum(e.gpu_memory_share or 0 for e in at_once)
        if asked > 1:
            text = (
                f"user and responder together take {asked:.2f} of a GPU; leave both out, and they divide what is there"
            )
            yield Finding(STOPS, stage, f"{key}.user.gpu_memory_share", text)


def _file_bytes(model: str) -> int:
    """Of a model in one file, as far as that is known without fetching it."""
    if model in assets.ASSETS:
        return assets.ASSETS[model].size
    return Path(model).stat().st_size if Path(model).is_file() else 0


def _two_servers(profile: Profile, stage: str) -> Iterator[Finding]:
    """The files of two models that llama.cpp serves at once must fit into this machine's memory."""
    for key, config in _simulations(profile).items():
        models = {e.model for e in (config.user, config.responder) if e and e.engine == "llama.cpp"}
        need, has = sum(map(_file_bytes, models)) / estimate.GIB, _machine_gib()
        if need > has:
            text = f"{' and '.join(sorted(models))} are served at once, {need:.1f} GiB; this machine has {has:.1f}"
            yield Finding(HERE, stage, f"{key}.responder.model", text)
