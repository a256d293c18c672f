"""Published numbers, with their sources. They are read, plotted and set beside ours, and never mixed with ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import norm

from realm.core.metrics import PUBLISHED, Metrics
from realm.evaluation.mt_bench_scores import scores_table
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


def alpaca_eval(version: int = 1) -> pd.DataFrame:
    """Win rates (%) of the paper's model and its peers from the packaged leaderboard, best first.

    ``version`` 1: against text-davinci-003, columns model, win_rate, standard_error, n_total; 2: against GPT-4 Turbo,
    and length_controlled_winrate, by which it is sorted and which has no error there. Raises AssetError.
    """
    name, block = (
        ("alpaca-eval-leaderboard", "alpaca_eval") if version == 1 else ("alpaca-eval-2-leaderboard", "alpaca_eval_2")
    )
    shown = everything()[block]["shown"]
    table = pd.read_csv(assets.fetch(name), index_col=0)
    missing = [m for m in shown if m not in table.index]
    if missing:
        raise assets.AssetError(f"{name}: no row for {', '.join(missing)}")
    columns = ["win_rate", "standard_error", "n_total"] + (["length_controlled_winrate"] if version == 2 else [])
    chosen = table.loc[shown, columns].sort_values(columns[-1] if version == 2 else "win_rate", ascending=False)
    return chosen.rename_axis("model").reset_index()


def add_mt_bench(metrics: Metrics, seed: int) -> pd.DataFrame:
    """Add the paper's MT-Bench, its lead over Llama-2-7B-chat and the judge's reported noise; returns its table."""
    table, block = mt_bench_table(seed), everything()["mt_bench"]
    for row in table.itertuples():
        metrics.add(
            f"mt_bench_published_{row.group.replace(' ', '_')}",
            row.score,
            ci=(row.ci_low, row.ci_high),
            n=row.n,
            unit="score, 1 to 10",
            source=PUBLISHED,
        )
    peer = block["peers"]["llama-2-7b-chat"]
    lead = metrics["mt_bench_published_overall"].value - peer
    metrics.add("mt_bench_published_llama_2_7b_chat", peer, unit="score, 1 to 10; no interval given", source=PUBLISHED)
    metrics.add(
        "mt_bench_published_lead",
        lead,
        unit="points over Llama-2-7B-chat, whose scores are not given",
        source=PUBLISHED,
    )
    metrics.add(
        "mt_bench_published_judge_noise",
        block["judge_noise"],
        unit="points from one judging by GPT-4 to the next, as users of FastChat report",
        source=PUBLISHED,
    )
    return table


def lead_in_words(metrics: Metrics) -> str:
    """The paper's lead beside what it could be told from."""
    ours, peer, lead, noise = (
        metrics[f"mt_bench_published_{name}"] for name in ("overall", "llama_2_7b_chat", "lead", "judge_noise")
    )
    half = (ours.ci_high - ours.ci_low) / 2
    told = "are" if lead.value > max(half, noise.value) else "cannot be"
    return (
        f"ReaLM-7B has {ours.value:.2f}, Llama-2-7B-chat {peer.value:.2f}: a lead of **{lead.value:.2f}**. Over the "
        f"{ours.n} scores the 95 % interval of {ours.value:.2f} goes from {ours.ci_low:.2f} to {ours.ci_high:.2f}, "
        f"{half / lead.value:.0f} times the lead to either side, and GPT-4's overall score moves by about "
        f"{noise.value:g} from one judging to the next. At this size the two {told} told apart."
    )


def add_alpaca_eval(metrics: Metrics) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add the paper's AlpacaEval 1 and 2; returns both tables."""
    tables = alpaca_eval(1), alpaca_eval(2)
    first, second = (
        t[t.model == everything()[b]["realm"]].iloc[0]
        for t, b in zip(tables, ("alpaca_eval", "alpaca_eval_2"), strict=True)
    )
    rows = (
        ("alpaca_eval_published_win_rate", first, "% against text-davinci-003, GPT-4 judge"),
        (
            "alpaca_eval_2_published_raw_win_rate",
            second,
            "% against GPT-4 Turbo, GPT-4 Turbo judge, lengths as they are",
        ),
    )
    for name, row, unit in rows:
        ci = (row.win_rate - 1.96 * row.standard_error, row.win_rate + 1.96 * row.standard_error)
        metrics.add(name, row.win_rate, ci=ci, n=int(row.n_total), unit=unit, source=PUBLISHED)
    metrics.add(
        "alpaca_eval_2_published_win_rate",
        second.length_controlled_winrate,
        n=int(second.n_total),
        unit="% against GPT-4 Turbo, length-controlled; the leaderboard gives no error for it",
        source=PUBLISHED,
    )
    return tables
