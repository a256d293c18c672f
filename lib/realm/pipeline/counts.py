"""How many sessions notebook 01 leaves for the stages after it: counted where it ran, else before anything is run.

Small data are cleaned and split here as there, which is exact; of large data a sample of sessions is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from realm.cleaning import presets
from realm.cleaning.duplicates import CLUSTER
from realm.cleaning.funnel import run_funnel
from realm.conversations.conversation import Conversation
from realm.conversations.readers import ReadReport, load_conversations, read_conversations
from realm.conversations.sessions import unknown_ends
from realm.conversations.splits import one_per_session, split_sides
from realm.core.profile import Profile
from realm.core.seeds import unit_hash
from realm.dialogue.encoder import Encoder, encoder_of
from realm.dialogue.segments import from_their_opening
from realm.evaluation.held_out import Seen, held_out
from realm.evaluation.published import everything
from realm.models import assets
from realm.simulation.endings import SimulationError
from realm.simulation.plan import plan, plan_replay

EXACT_BELOW = 600  # sessions; more are estimated from a sample of as many
STAND_IN = "smollm2-135m"  # measures lengths where a model's own tokenizer is not here
PAPERS_DATA = "anon8231489123/ShareGPT_Vicuna_unfiltered"


@dataclass(frozen=True)
class Counts:
    """Sessions by what can be done with them: ``test_openings`` show their first turn and are not seen by training,
    ``starts``: of each seed source, how many have a first round to be seeded with, and how many human turns to replay.
    ``basis`` says in words where the numbers come from, ``margin`` how far off they may be, as a share."""

    test_openings: int
    starts: dict[str, tuple[int, int]]
    basis: str
    margin: float = 0.0


def counts_of(profile: Profile, run_folder: Path, finished: bool) -> Counts | None:
    """Of the sides in ``run_folder`` where notebook 01 is ``finished``; else of the source, where it is here.

    None where nothing can be known before notebook 01 reads it. Raises ConversationFileError.
    """
    if finished:
        sides = {side: load_conversations(run_folder / "01_data" / f"{side}.jsonl") for side in ("train", "seeds")}
        test = load_conversations(run_folder / "01_data" / "test.jsonl")
        return _of_sides(profile, sides["train"], sides["seeds"], test, "as notebook 01 left them")
    source = profile.data_inspection.source
    if source == PAPERS_DATA:
        return _published(profile)
    encoder = _encoder(profile)
    return _of_source(profile, encoder) if encoder is not None and at_hand(source) else None


def at_hand(name: str) -> bool:
    """Whether data of this name are here, with nothing to fetch."""
    asset = assets.ASSETS.get(name)
    return (Path(name) if asset is None else _package(asset) / asset.inside).exists()


def usable(conversations: Iterable[Conversation], replayed: bool = False) -> int:
    """How many of them a simulation can start from, by its own rule."""
    return sum(_starts(c, replayed) for c in conversations)


def _usable(conversations: Sequence[Conversation]) -> tuple[int, int]:
    return usable(conversations), usable(conversations, replayed=True)


def _starts(conversation: Conversation, replayed: bool) -> bool:
    try:
        return bool(plan_replay(1, [conversation]) if replayed else plan(0, 1, [conversation]))
    except SimulationError:
        return False


def _package(asset: assets.Asset) -> Path:
    return assets.cache_folder() / "packages" / asset.folder


def _encoder(profile: Profile) -> Encoder | None:
    """As notebook 01 has it, by the stand-in's tokenizer where the model's own would have to be fetched."""
    wanted = profile.usergpt_sft.base_model
    converted = lambda name: any((assets.cache_folder() / "models").glob(f"{name}-*/model.safetensors"))  # noqa: E731
    names = [n for n in (wanted, STAND_IN) if Path(n).is_dir() or (at_hand(n) and converted(n))]
    if not names:
        return None
    measured = profile.usergpt_sft.model_copy(update={"base_model": names[0]})
    return encoder_of(profile.model_copy(update={"usergpt_sft": measured}), "usergpt_sft")


def _published(profile: Profile) -> Counts:
    """Of the authors' own data: what their funnel left of it, by their count."""
    last = everything()["cleaning_funnel"]["steps"][-1]["sessions"]
    share = profile.data_inspection
    seeds, test, train = (round(part * last) for part in (share.seeds_share, share.test_share, _train_share(profile)))
    basis = f"from the {last:,} sessions that the authors published: this data set is not read before notebook 01"
    sizes = {"split": seeds, "train": train, "test": test}
    return Counts(test, {source: (size, size) for source, size in sizes.items()}, basis, 0.1)


def _train_share(profile: Profile) -> float:
    return 1 - sum(profile.data_inspection.shares.values())


def _of_source(profile: Profile, encoder: Encoder) -> Counts:
    config, report = profile.data_inspection, ReadReport()
    records = read_conversations(assets.data(config.source), report=report, strict=config.strict)
    conversations = list(islice(records, config.max_conversations))
    threshold = config.near_duplicate_threshold
    cut_after = unknown_ends(report, conversations)
    join, *others = presets.session_steps(config.preset, encoder, cut_after, threshold, config.replace_private_data)
    sessions, _ = run_funnel(conversations, [join])
    chosen = sorted(sessions, key=lambda c: unit_hash(f"sample:{profile.seed}:{c.session}"))[:EXACT_BELOW]
    whole = len(chosen) == len(sessions)
    steps = [*others, *presets.segment_steps(config.preset, encoder, threshold)]
    cleaned, _ = run_funnel(sessions if whole else chosen, steps)
    if whole:
        sides = split_sides(cleaned, config.shares, profile.seed, CLUSTER)
        basis = f"{len(sessions):,} sessions of {config.source} cleaned and split as notebook 01 does it"
        return _of_sides(profile, sides.train, sides.seeds, sides.test, basis)
    return _scaled(profile, cleaned, len(sessions) / len(chosen), len(sessions))


def _of_sides(
    profile: Profile,
    train: Sequence[Conversation],
    seeds: Sequence[Conversation],
    test: Sequence[Conversation],
    basis: str,
) -> Counts:
    seen = Seen()
    seen.add(train, "01_data/train.jsonl")
    kept, _ = held_out(test, seen)
    sources = {"split": one_per_session(seeds, profile.seed)}
    sources |= {"train": from_their_opening(train), "test": from_their_opening(test)}
    return Counts(_openings(kept), {name: _usable(some) for name, some in sources.items()}, basis)


def _openings(conversations: Iterable[Conversation]) -> int:
    return len({c.session for c in conversations if c.opens_session})


def _scaled(profile: Profile, cleaned: Sequence[Conversation], factor: float, sessions: int) -> Counts:
    """From a sample: a session falls on a side by chance, so its share of the sample's numbers is what to expect."""
    config = profile.data_inspection
    seeds, opened = _usable(one_per_session(cleaned, profile.seed)), _usable(from_their_opening(cleaned))
    shares = {"split": (seeds, config.seeds_share), "train": (opened, _train_share(profile))}
    shares |= {"test": (opened, config.test_share)}
    return Counts(
        test_openings=round(_openings(cleaned) * factor * config.test_share),
        starts={
            source: (round(seeded * factor * share), round(replayed * factor * share))
            for source, ((seeded, replayed), share) in shares.items()
        },
        basis=f"estimated from {EXACT_BELOW:,} of {sessions:,} sessions of {config.source}; notebook 01 counts them",
        margin=0.1,
    )
