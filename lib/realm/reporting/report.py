"""The one page a reader opens after a run, and the README's results block: both rendered from metrics files."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from realm.core.files import REPOSITORY, ArtefactError, atomic_path, read_json
from realm.core.metrics import PUBLISHED, Metric, Metrics, interval, number
from realm.evaluation.claims import Judged, judge_all, load_claims
from realm.evaluation.names import readable
from realm.reporting import ledger
from realm.reporting.reference import (
    LONG_PROFILE,
    REFERENCE_PROFILE,
    reference_metrics,
    reference_metrics_path,
)

README_BEGIN, README_END = "<!-- results: begin -->", "<!-- results: end -->"
# What the README quotes, in order: metric -> words. Of both runs:
TEACHES = {
    "teaching_perplexity_base": "perplexity of the responder's answers to held-out humans, base model",
    "teaching_perplexity_roleplay": "a student of the responder told to play the user",
    "teaching_perplexity_realchat": "a student of RealChat",
    "teaching_perplexity_humans": "a student of real humans' turns",
    "teaching_difference_roleplay_realchat": "paired difference, role-play minus RealChat",
    "teaching_difference_humans_realchat": "paired difference, humans minus RealChat",
}
HUMANLIKE = {
    "two_sample_auc_usergpt": "AUC of telling UserGPT's openings from human ones (0.5: cannot)",
    "two_sample_auc_base": "AUC of telling the untrained base model's openings from human ones",
    "two_sample_auc_roleplay": "AUC of telling the role-playing base model's openings from human ones",
    "two_sample_auc_human_floor": "AUC of telling humans from humans (the floor)",
}
HEADLINES = {
    "conversations_read": "complete conversations salvaged from the truncated ShareGPT file",
    "conversations_train": "training segments after cleaning and splitting",
    "user_turn_perplexity_before": "perplexity of held-out human turns, base model",
    "user_turn_perplexity_after": "perplexity of held-out human turns, UserGPT",
    "user_turn_perplexity_difference": "paired difference, after minus before",
    "realchat_conversations": "RealChat conversations simulated",
    "assistant_turn_perplexity_before": "perplexity of held-out real answers, base model",
    "assistant_turn_perplexity_after": "perplexity of held-out real answers, ReaLM",
    "assistant_turn_perplexity_difference": "paired difference, after minus before",
    **TEACHES,
    **HUMANLIKE,
    "mt_bench_published_overall": "MT-Bench of ReaLM-7B, GPT-4 judge",
    "mt_bench_published_turn_1": "MT-Bench of ReaLM-7B, first turns",
    "mt_bench_published_turn_2": "MT-Bench of ReaLM-7B, second turns",
    "alpaca_eval_published_win_rate": "AlpacaEval 1 win rate of ReaLM-7B, %",
}
# And of the longer run, where every control of notebook 02 is trained and corpora are large enough to tell.
LONG_HEADLINES = {
    "usergpt_train_tokens": "tokens of training, of UserGPT and of each control",
    "user_turn_perplexity_before": "perplexity of held-out human turns, (a) base model",
    "user_turn_perplexity_roleplay": "(b) base model told to play a user",
    "user_turn_perplexity_assistant_side": "(c) trained on assistant turns",
    "user_turn_perplexity_both_sides": "(d) trained on all turns",
    "user_turn_perplexity_after": "(e) UserGPT",
    "user_turn_perplexity_plain_segments": "(f) trained on segments cut as the authors cut them",
    "user_turn_perplexity_difference": "paired difference, (e) minus (a)",
    "user_turn_perplexity_difference_roleplay": "(e) minus (b)",
    "user_turn_perplexity_difference_assistant_side": "(e) minus (c)",
    "user_turn_perplexity_difference_both_sides": "(e) minus (d)",
    "user_turn_perplexity_difference_plain_segments": "(e) minus (f)",
    "termination_f1": "F1 of telling that the session is over, UserGPT",
    "termination_f1_always": "F1 of the best guesser of constant rate",
    "termination_f1_gain": "paired difference, UserGPT minus guesser",
    "termination_auc": "area under the curve of the same, without a threshold (0.5: by chance)",
    **TEACHES,
    "teaching_perplexity_seeds": "a student of single turns",
    "teaching_difference_roleplay_realchat_equal_tokens": "role-play minus RealChat, from as many tokens",
    "share_of_human_gain_realchat": "share of what real humans' turns teach that RealChat teaches",
    "share_of_human_gain_roleplay": "that role-play teaches",
    **HUMANLIKE,
    "two_sample_auc_responder": "AUC of telling the openings of the responder, told to play a user, from human ones",
    "two_sample_auc_usergpt_at_400": "AUC of telling UserGPT's openings from human ones, 400 a side",
    "two_sample_auc_responder_at_400": "of the responder, told to play a user, 400 a side",
    "two_sample_auc_human_floor_at_400": "of humans from humans, 400 a side",
}
# The figures that the report leads with, in order: the realism card and the five that matter.
LEADING = ("06_realism", "02_perplexity", "04_teaching", "05_mt_bench_published", "01_funnel", "03_realchat")
PAGE = jinja2.Environment(autoescape=True).from_string(
    (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
)


def write_report(run_folder: Path, profile: str, stages: list[dict[str, Any]]) -> Path:
    """Write ``report.html``: ledger, leading figures, then all metrics and figures by stage, folded.

    ``stages``: number, notebook, folder, seconds, and ``stale``, what changed since then, in phrases: such a stage is
    marked, and so are its figures.
    """
    shown = [_stage_view(run_folder, s) for s in stages if (run_folder / s["folder"] / "metrics.json").exists()]
    metrics = {m.name: m for s in shown for m in s["metrics"]}
    judged = judge_all(load_claims(), metrics)
    figures = {f["name"]: f for s in shown for f in s["figures"]}
    for stage in shown:
        stage["metrics"] = [_metric_view(m) for m in stage["metrics"]]
        stage["figures"] = [f for f in stage["figures"] if f["name"] not in LEADING]
    page = PAGE.render(
        profile=profile,
        stages=shown,
        claims=ledger.lines(judged, metrics),
        footnote=ledger.footnote(judged),
        leading=[figures[name] for name in LEADING if name in figures],
    )
    with atomic_path(run_folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_folder / "report.html"


def _stage_view(run_folder: Path, stage: dict[str, Any]) -> dict[str, Any]:
    manifest = read_json(run_folder / stage["folder"] / "manifest.json")
    pictures = sorted((run_folder / "figures").glob(f"{stage['number']}_*.png"))
    view = {
        **stage,
        "commit": manifest["commit"][:12],
        "seed": manifest["seed"],
        "device": manifest["device"],
        "metrics": list(Metrics.load(run_folder / stage["folder"])),
    }
    return {**view, "figures": [_figure_view(picture, view) for picture in pictures]}


def _figure_view(picture: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """``alt``: what the figure says of itself, where its note tells; ``numbers``: its CSV, beside it."""
    note = picture.with_suffix(".json")
    said = read_json(note).get("alt") if note.exists() else None
    return {
        "name": picture.stem,
        "alt": said or picture.stem[3:].replace("_", " "),
        "numbers": f"figures/{picture.stem}.csv",
        "data": base64.b64encode(picture.read_bytes()).decode(),
        "notebook": stage["notebook"],
        "commit": stage["commit"],
        "stale": bool(stage.get("stale")),
    }


def _metric_view(metric: Metric) -> dict[str, str]:
    return {
        "name": metric.name,
        "words": readable(metric.name),
        "value": number(metric.value),
        "interval": interval(metric),
        "n": "" if metric.n is None else f"{metric.n:,}",
        "unit": metric.unit,
        "source": metric.source,
        "css": "published" if metric.source == PUBLISHED else "",
    }


def publish(run_folder: Path, stages: list[dict[str, Any]]) -> None:
    """Make a run a reference: figures of its finished stages with their numbers and notes, their metrics with
    manifests, the README's block. Figures that these stages no longer draw go."""
    joined = {
        s["folder"]: {
            "metrics": read_json(run_folder / s["folder"] / "metrics.json"),
            "manifest": read_json(run_folder / s["folder"] / "manifest.json"),
            "seconds": s["seconds"],
            "profile": run_folder.name,
        }
        for s in stages
    }
    target = reference_metrics_path(run_folder.name)
    numbers = tuple(f"{s['number']}_" for s in stages)
    drawn = sorted(p for p in (run_folder / "figures").iterdir() if p.name.startswith(numbers))
    for source in drawn:
        with atomic_path(target.parent / source.name) as temporary:
            temporary.write_bytes(source.read_bytes())
    names = {p.name for p in drawn}
    for old in target.parent.iterdir():
        if old.is_file() and old.name.startswith(numbers) and old.name not in names:
            old.unlink()
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")
    write_readme_block(REPOSITORY / "README.md")


def reference_verdicts() -> dict[str, list[Judged]]:
    """Every claim judged by each committed run, by profile."""
    profiles = [p for p in (REFERENCE_PROFILE, LONG_PROFILE) if reference_metrics_path(p).exists()]
    claims = load_claims()
    return {p: judge_all(claims, reference_metrics(p)) for p in profiles}


def readme_block() -> str:
    """The README's ledger and results tables, as Markdown, from the metrics of committed runs and nothing else."""
    verdicts = reference_verdicts()
    lines = ledger.markdown({p: (judged, reference_metrics(p)) for p, judged in verdicts.items()}) if verdicts else []
    lines += ["", "### The numbers behind it", "", *_results(REFERENCE_PROFILE, HEADLINES)]
    if reference_metrics_path(LONG_PROFILE).exists():
        lines += ["", *_results(LONG_PROFILE, LONG_HEADLINES)]
    return "\n".join([*lines, "", "Brackets: 95 % bootstrap intervals."])


def _results(profile: str, headlines: dict[str, str]) -> list[str]:
    metrics, stages = reference_metrics(profile), list(read_json(reference_metrics_path(profile)).values())
    lines = [f"| what | published | this repository, profile `{stages[0]['profile']}` | n |", "|---|---|---|---|"]
    for name, words in headlines.items():
        if name not in metrics:
            continue
        metric = metrics[name]
        text = number(metric.value) + (f" [{interval(metric)}]" if metric.ci_low is not None else "")
        cells = (text, "") if metric.source == PUBLISHED else ("", text)
        lines.append(f"| {words} | {cells[0]} | {cells[1]} | {'' if metric.n is None else f'{metric.n:,}'} |")
    minutes = sum(stage["seconds"] for stage in stages) / 60
    device = stages[0]["manifest"]["device"]
    return [*lines, "", f"Notebooks run: {len(stages)}, in {minutes:.0f} minutes on {device}."]


def write_readme_block(readme: Path) -> None:
    """Replace what stands between the two markers. Raises ArtefactError if the markers are not there."""
    write_between(readme, README_BEGIN, README_END, readme_block)


def write_between(path: Path, begin: str, end: str, block: Callable[[], str]) -> None:
    """Replace what stands between two markers of a file by what ``block`` makes.

    Raises ArtefactError if the markers are not there.
    """
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ArtefactError(f"{path}: the markers {begin} and {end} are missing")
    head, rest = text.split(begin)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{head}{begin}\n{block()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Render the README's results block from figures/reference_metrics.json."
    ).parse_args()
    write_readme_block(REPOSITORY / "README.md")
