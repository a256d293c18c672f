"""What brings UserGPT's openings nearer to humans': ``python -m benchmarks.openings [RUN FOLDER] [--into FOLDER]``.

Profile ``cpu`` with one value changed at a time: UserGPT trained anew where that asks for it, its openings sampled, and
the two-sample test of notebook 06 against as many other humans, at 128 and at 400 a side. Differences are paired, from
the profile as it stands. Stage 01 of the run (default ``runs/cpu``) has to be there. Called again with the same
``--into``, it trains and asks only what is not there yet.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from realm.conversations.readers import load_conversations
from realm.core.endpoint import Endpoint
from realm.core.files import REPOSITORY
from realm.core.profile import Profile, load_profile, profile_path
from realm.dialogue.format import USER_SYSTEM_PROMPT
from realm.evaluation import openings
from realm.evaluation.kept import Kept
from realm.evaluation.two_sample import TwoSample, difference, two_sample
from realm.models import assets
from realm.serving.local import connect
from realm.training.artefacts import save_servable
from realm.training.base import add_adapter, load_base
from realm.training.launch import Job, launch_or_train

RESULTS = Path(__file__).parent / "results" / "openings.csv"
PROFILE, STAGE, USERGPT = "cpu", "02_usergpt_sft", "usergpt"
SIZES, REPEATS, AS_IT_IS = (128, 400), 10, "profile cpu as it stands"


@dataclass(frozen=True)
class Variant:
    """``training``: values of usergpt_sft that are changed; ``asking``: values of the endpoint; ``cut``: tokens at
    which texts are compared, other than the profile's; ``seed``: added to that of the training. ``model``: the variant
    whose UserGPT it is, if not its own."""

    training: dict[str, Any] = field(default_factory=dict)
    asking: dict[str, Any] = field(default_factory=dict)
    cut: int | None = None
    seed: int = 0
    model: str | None = None


VARIANTS = {
    AS_IT_IS: Variant(),
    "half the tokens of training": Variant({"max_train_tokens": 45_000}),
    "twice the tokens of training": Variant({"max_train_tokens": 180_000}),
    "openings as often as they come": Variant({"opening_share": None, "opening_rows": "segment"}),
    "opening segments whole": Variant({"opening_rows": "segment"}),
    "another seed of training": Variant(seed=1),
    "temperature 0.7": Variant(asking={"temperature": 0.7}, model=AS_IT_IS),
    "temperature 1": Variant(asking={"temperature": 1.0}, model=AS_IT_IS),
    "temperature 1, top-p 0.9": Variant(asking={"temperature": 1.0, "top_p": 0.9}, model=AS_IT_IS),
    "cut at 64 tokens": Variant(cut=64, model=AS_IT_IS),
    "untrained": Variant(asking={"model": f"base:{STAGE}"}, model=AS_IT_IS),
}


def changed(variant: Variant, place: Path) -> Path:
    """The profile with that variant's training, as a file."""
    values = yaml.safe_load(profile_path(PROFILE).read_text(encoding="utf-8"))
    values["usergpt_sft"] |= variant.training
    path = place / f"{PROFILE}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def trained(variant: Variant, data: Path, place: Path) -> None:
    """UserGPT of a variant, in ``place``/02_usergpt_sft, as notebook 02 makes it; not again where it is there."""
    place.mkdir(parents=True, exist_ok=True)
    out, path = place / STAGE, changed(variant, place)
    if (out / "merged").exists():
        return
    profile = load_profile(path)
    job = Job(str(path), "usergpt_sft", data / "train.jsonl", None, out, profile.seed + variant.seed)
    encoder, config = job.encoder(), job.config
    model = add_adapter(load_base(config), config, job.seed)
    launch_or_train(model, encoder, job.rows(encoder), job)
    template = encoder.format.jinja(USER_SYSTEM_PROMPT, flipped=True)
    save_servable(model, encoder.tokenizer, config, out, template, encoder.format.ends["user"])


async def opened(endpoint: Endpoint, place: Path, seed: int) -> list[str]:
    async with connect(endpoint, USERGPT, place, place / "logs") as client:
        kept = Kept(client, place / "openings", USERGPT)
        replies = await openings.simulated(kept, openings.WAYS[USERGPT], SIZES[-1], seed)
    return [reply.text.strip() for reply in replies]


def tests(texts: dict[str, list[str]], humans: list[str], profile: Profile) -> dict[tuple[str, int], TwoSample]:
    """By variant and number a side; texts are cut as the variant has it, the humans' too."""
    config, found = profile.simulator_realism, {}
    tokenizer = Job(PROFILE, "usergpt_sft", Path(), None, Path(), profile.seed).encoder().tokenizer
    embedder = assets.model(config.embedder)
    for cut in {v.cut or config.compared_tokens for v in VARIANTS.values()}:
        of = lambda some, cut=cut: openings.embed(openings.first_tokens(some, tokenizer, cut), embedder)  # noqa: E731
        ours = of(humans)
        for name in (n for n, v in VARIANTS.items() if (v.cut or config.compared_tokens) == cut):
            theirs = of(texts[name])
            for size in SIZES:
                sides = (ours[:size], theirs[:size])
                found[name, size] = two_sample(*sides, repeats=REPEATS, permutations=0, seed=profile.seed, desc=name)
    return found


def rows_of(found: dict[tuple[str, int], TwoSample]) -> pd.DataFrame:
    rows = []
    for name in VARIANTS:
        for size in SIZES:
            auc, gap = found[name, size].auc, difference(found[name, size], found[AS_IT_IS, size])
            row = {"variant": name, "a_side": size, "auc": auc.value, "ci_low": auc.ci_low, "ci_high": auc.ci_high}
            own = {"difference": gap.value, "difference_low": gap.ci_low, "difference_high": gap.ci_high}
            rows.append({**row, **(own if name != AS_IT_IS else dict.fromkeys(own, np.nan))})
    return pd.DataFrame(rows).round(4)


def measured(data: Path, folder: Path) -> pd.DataFrame:
    profile, texts = load_profile(PROFILE), {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        own = [*VARIANTS].index(variant.model) if variant.model else number
        place = folder / f"{own}"
        print(f"{name}: {variant}", flush=True)
        trained(VARIANTS[variant.model] if variant.model else variant, data, place)
        endpoint = profile.simulator_realism.usergpt.model_copy(update=variant.asking)
        texts[name] = asyncio.run(opened(endpoint, place, profile.seed))
    # Not the humans that notebook 06 compares with: a profile that is chosen by them would be judged by them.
    humans = openings.two_human_groups(load_conversations(data / "test.jsonl"), SIZES[-1], profile.seed)[SIZES[-1] :]
    return rows_of(tests(texts, humans, profile))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openings", description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, default=REPOSITORY / "runs" / PROFILE)
    parser.add_argument("--into", type=Path, help="where models and openings stay; else all goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="realm-openings-") as passing:
        table = measured((given.run / "01_data").absolute(), (given.into or Path(passing)).absolute())
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
