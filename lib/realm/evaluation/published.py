"""Published numbers, with their sources. They are read, plotted and set beside ours, and never mixed with ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import norm

from realm.evaluation.mt_bench import scores_table
from realm.models import assets

FOLDER = Path(__file__).parent / "published"


@cache
def everything() -> dict[str, Any]:
    """Everything in ``published/paper.yaml``; each block has a ``source``."""
    return yaml.safe_load((FOLDER / "paper.yaml").read_text(encoding="utf-8"))


@cache
def values() -> dict[str, float]:
    """Every published number by its place, such as ``mt_bench/peers/gpt-4``; a row of a table goes by its first cell.

    With what follows from them: ``rounds_per_conversation`` of a corpus, ``share`` of the sessions read at a step, and
    where a ``standard_error`` stands, ``half_width`` of the 95 % interval.
    """
    tables = {
        "cleaning_funnel/steps": funnel().assign(share=lambda t: t.sessions / t.sessions.iloc[0]),
        "corpus_statistics/corpora": corpora().assign(
            rounds_per_conversation=lambda t: t.messages / t.conversations / 2
        ),
    }
    found = dict(_flat(everything(), ""))
    for place, table in tables.items():
        key = table.columns[0]
        found |= dict(_flat({row[key]: row for row in table.dropna(axis=1).to_dict("records")}, f"{place}/"))
    return found


def _flat(block: dict[str, Any], place: str) -> Iterator[tuple[str, float]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{place}{key}/")
        elif isinstance(value, int | float):
            yield f"{place}{key}", value
        if key == "standard_error":
            yield f"{place}half_width", float(norm.ppf(0.975) * value)


def funnel() -> pd.DataFrame:
    """The authors' cleaning funnel: name, step, sessions, segments (where given), and our step of the same rule."""
    return pd.DataFrame(everything()["cleaning_funnel"]["steps"])


def corpora() -> pd.DataFrame:
    """The published corpus table: counts, and tokens (LLaMA-1 tokenizer) per message and per conversation."""
    return pd.DataFrame(everything()["corpus_statistics"]["corpora"])


def mt_bench_scores() -> pd.DataFrame:
    """The 160 GPT-4 scores of ReaLM-7B as released: question_id, category, turn, score (1 to 10)."""
    return pd.read_csv(FOLDER / everything()["mt_bench"]["realm_scores"])


def mt_bench_table(seed: int) -> pd.DataFrame:
    """Those scores overall, by turn and by category, with bootstrap intervals over the 80 questions."""
    return scores_table(mt_bench_scores(), seed)


def mt_bench_peers() -> pd.DataFrame:
    """Published overall scores of other systems, best first: model, score."""
    peers = everything()["mt_bench"]["peers"].items()
    return pd.DataFrame(peers, columns=["model", "score"]).sort_values("score", ascending=False, ignore_index=True)


def alpaca_eval() -> pd.DataFrame:
    """Win rate (%) and standard error against text-davinci-003, from the packaged leaderboard, best first."""
    block = everything()["alpaca_eval"]
    table = pd.read_csv(assets.fetch("alpaca-eval-leaderboard"), index_col=0)
    missing = [m for m in block["shown"] if m not in table.index]
    if missing:
        raise assets.AssetError(f"alpaca-eval-leaderboard: no row for {', '.join(missing)}")
    chosen = table.loc[block["shown"], ["win_rate", "standard_error"]].sort_values("win_rate", ascending=False)
    return chosen.rename_axis("model").reset_index()
