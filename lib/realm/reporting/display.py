"""What notebooks show: conversations as a chat, texts side by side, figures, metrics, how long a stage takes.

Conversation text is data: always escaped, and never typeset as a formula, whatever stands between two dollar signs.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from pandas.api.types import is_numeric_dtype

from realm.cleaning.funnel import Example, StepReport
from realm.conversations.conversation import Conversation, Message
from realm.core.files import read_json
from realm.core.metrics import PUBLISHED, Metric, interval, number
from realm.core.profile import profile_path
from realm.evaluation.names import readable
from realm.reporting.reference import REFERENCE_PROFILE, reference_metrics_path

COLORS = {"user": "#D6E9F5", "assistant": "#F0F0F0", "system": "#FFF4D6"}
NAMES = {"user": "human"}
NO_MATH = "mathjax_ignore tex2jax_ignore"  # JupyterLab's class, and that of older ones
MOST_ROWS = 100
NOTHING = "<p><i>No rows.</i></p>"


class Picture:
    """A saved PNG with its words for who cannot see it, embedded."""

    def __init__(self, path: Path, alt: str):
        self.path, self.alt = path, alt

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        data = base64.b64encode(self.path.read_bytes()).decode()
        image = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}"'
        return {"text/plain": self.alt, "text/html": f'{image} style="max-width:100%;height:auto">'}


def figure(path: str | Path) -> Picture:
    """A saved figure; its words are those of the note beside it (``drawing``), or its name."""
    note = Path(path).with_suffix(".json")
    alt = read_json(note)["alt"] if note.exists() else Path(path).stem
    return Picture(Path(path), alt)


def takes(stage: str, profile: str) -> Markdown:
    """How long a stage took in the reference run, from its committed metrics. ``stage``: its folder."""
    name = profile_path(profile).stem
    known = name if reference_metrics_path(name).exists() else REFERENCE_PROFILE
    found = read_json(reference_metrics_path(known)).get(stage) if reference_metrics_path(known).exists() else None
    if found is None:
        return Markdown(f"**How long.** No reference run has this notebook under `{name}` yet.")
    seconds = found["seconds"]
    long = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    device = found["manifest"]["device"]
    words = f"the reference run under `{known}` took **{long}** ({device}), what earlier runs left not counted"
    return Markdown(f"**How long.** For this notebook {words}.")


def say(words: object) -> None:
    """A paragraph of plain words, wrapped between them; nothing where there are none."""
    if text := str(words or ""):
        display(HTML(f'<p class="{NO_MATH}">{html.escape(text)}</p>'))


def folded(text: str, limit: int) -> str:
    """A text as HTML, escaped; what is longer than ``limit`` characters opens on a click."""
    style = 'style="white-space:pre-wrap;overflow-wrap:anywhere"'
    if len(text) <= limit:
        return f"<span {style}>{html.escape(text)}</span>"
    rest = f'<span style="color:#0063A0">more ({len(text) - limit:,} characters)</span>'
    return (
        f'<details><summary style="cursor:pointer"><span {style}>{html.escape(text[:limit])}…</span> {rest}</summary>'
        f"<span {style}>…{html.escape(text[limit:])}</span></details>"
    )


def turn_html(message: Message, limit: int) -> str:
    """A turn as a bubble: humans on the right, as in a messenger."""
    color, side = (
        COLORS.get(message.role, "white"),
        "margin-left:auto" if message.role == "user" else "margin-right:auto",
    )
    return (
        f'<div style="background:{color};color:#111;padding:.4em .8em;margin:.3em 0;{side};max-width:85%;'
        f'width:fit-content;border-radius:.7em"><b>{html.escape(NAMES.get(message.role, message.role))}</b><br>'
        f"{folded(message.content, limit)}</div>"
    )


def conversation(shown: Conversation, limit: int = 500, turns: int = 8) -> HTML:
    """One conversation as a chat: turns longer than ``limit`` characters are folded, and those after ``turns``."""
    note = ", ".join(f"{k}: {v}" for k, v in shown.meta.items())
    bubbles = [turn_html(m, limit) for m in shown.messages]
    body, rest = "".join(bubbles[:turns]), bubbles[turns:]
    if rest:
        body += (
            f'<details><summary style="cursor:pointer">and {len(rest)} more turns</summary>{"".join(rest)}</details>'
        )
    head = f'<p><b>{html.escape(shown.id)}</b> <span style="opacity:.75">{html.escape(note)}</span></p>'
    return HTML(f'<div class="{NO_MATH}" style="max-width:52em">{head}{body}</div>')


def side_by_side(columns: dict[str, Sequence[str]], limit: int = 400) -> HTML:
    """Texts in a table, a column a source, a row a conversation; long ones are folded."""
    if not any(columns.values()):
        return HTML(NOTHING)

    def cells(texts: Sequence[str]) -> str:
        style = "text-align:left;vertical-align:top"
        return "".join(f'<td style="{style}">{folded(t, limit)}</td>' for t in texts)

    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in columns)
    rows = "".join(f"<tr>{cells(row)}</tr>" for row in zip(*columns.values(), strict=True))
    return HTML(f'<table class="{NO_MATH}"><tr>{head}</tr>{rows}</table>')


def changes(reports: Iterable[StepReport], limit: int = 160) -> pd.DataFrame:
    """The funnel's examples: the text around the first difference, before and after."""
    rows = []
    for report in reports:
        for example in report.examples:
            before, after = _difference(example, limit)
            row = {"step": report.step, "why": example.reason, "id": example.before.id}
            rows.append({**row, "before": before, "after": after})
    return table(rows)


def _difference(example: Example, limit: int) -> tuple[str, str]:
    old = example.before.messages
    if len(example.after) != 1:
        cuts = " | ".join(f"{len(part.messages)} turns" for part in example.after)
        return old[0].content[:limit], cuts or "(dropped)"
    new = example.after[0].messages
    i = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    if i == len(old) or i == len(new):
        return f"{len(old)} turns", f"{len(new)} turns"
    a, b = old[i].content, new[i].content
    at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    window = slice(max(0, at - limit // 2), at + limit // 2)
    return f"{old[i].role}: …{a[window]}", f"{new[i].role}: …{b[window]}"


def metrics_table(metrics: Iterable[Metric], folded: bool = True) -> HTML:
    """Records as a reader wants them, in words, those that others published marked so; folded, since they are many."""
    rows = [
        {
            "what": readable(m.name) + (" (published)" if m.source == PUBLISHED else ""),
            "value": number(m.value),
            "95 % interval": interval(m),
            "n": "" if m.n is None else f"{m.n:,}",
            "unit": m.unit,
            "metric": m.name,
        }
        for m in metrics
    ]
    head = f'<summary style="cursor:pointer">{len(rows)} metrics of this stage</summary>'
    return HTML(f"<details{'' if folded else ' open'}>{head}{frame_html(table(rows))}</details>")


def merged(frame: pd.DataFrame, **limits: tuple[str, str]) -> pd.DataFrame:
    """A frame whose columns of limits stand behind their value, ``0.7 [0.6, 0.8]``: column -> its (lower, upper)."""
    told = frame.copy()
    for column, (low, high) in limits.items():
        rows = zip(frame[column], frame[low], frame[high], strict=True)
        told[column] = [
            number(value) + ("" if pd.isna(a) or pd.isna(b) else f" [{number(a)}, {number(b)}]") for value, a, b in rows
        ]
    return told.drop(columns=list({name for pair in limits.values() for name in pair}))


def table(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a frame, which a notebook shows as ``frame_html`` does."""
    return pd.DataFrame(rows)


def frame_html(frame: pd.DataFrame) -> str:
    """A frame as notebooks show it: words on the left and whole, numbers on the right and short, rows not numbered."""
    if not len(frame):
        return NOTHING
    numbered = isinstance(frame.index, pd.RangeIndex)
    with pd.option_context("display.max_colwidth", None, "display.html.use_mathjax", False):
        page = frame.to_html(index=not numbered, border=0, max_rows=MOST_ROWS, float_format=number, na_rep="")
    left = [not is_numeric_dtype(dtype) for dtype in frame.dtypes]

    def aligned(row: re.Match) -> str:
        """A row of cells, or the row of heads, one of which may stand above the index."""
        kind, sides = ("td", left) if "<td>" in row[0] else ("th", left if numbered else [True, *left])
        head, *cells = row[0].split(f"<{kind}>")
        style = [f'<{kind} style="text-align:{"left" if words else "right"};vertical-align:top">' for words in sides]
        return head + "".join(f"{look}{cell}" for look, cell in zip(style, cells, strict=True))

    return re.sub(r"<tr.*?</tr>", aligned, page, flags=re.DOTALL)


def _show_frames() -> None:
    """Every frame that a notebook shows is shown so."""
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, frame_html)


_show_frames()
