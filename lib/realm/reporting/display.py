"""What notebooks show: conversations, turns side by side, metrics. Conversation text is data: always escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Image

from realm.cleaning.funnel import Example, StepReport
from realm.conversations.conversation import Conversation, Message
from realm.core.metrics import Metrics, interval, number

COLORS = {"user": "#D6E9F5", "assistant": "#F3F3F3", "system": "#FFF4D6"}


def figure(path: str | Path) -> Image:
    """A saved PNG, embedded."""
    return Image(filename=str(path))


def turn_html(message: Message, limit: int) -> str:
    text = message.content if len(message.content) <= limit else message.content[:limit] + " …"
    return (
        f'<div style="background:{COLORS.get(message.role, "white")};color:#111;padding:.4em .8em;margin:.2em 0">'
        f'<b>{html.escape(message.role)}</b><br><span style="white-space:pre-wrap">{html.escape(text)}</span></div>'
    )


def conversation(shown: Conversation, limit: int = 500, turns: int = 8) -> HTML:
    """One conversation, its turns cut at ``limit`` characters, at most ``turns`` of them."""
    note = ", ".join(f"{k}: {v}" for k, v in shown.meta.items())
    body = "".join(turn_html(m, limit) for m in shown.messages[:turns])
    more = len(shown.messages) - turns
    rest = f"<i>and {more} more turns</i>" if more > 0 else ""
    return HTML(f"<p><b>{html.escape(shown.id)}</b> {html.escape(note)}</p>{body}{rest}")


def side_by_side(columns: dict[str, Sequence[str]], limit: int = 400) -> HTML:
    """Texts in a table, a column a source, a row a conversation."""

    def cells(texts: Sequence[str]) -> str:
        style = "text-align:left;vertical-align:top;white-space:pre-wrap"
        return "".join(f'<td style="{style}">{html.escape(t[:limit])}</td>' for t in texts)

    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in columns)
    rows = "".join(f"<tr>{cells(row)}</tr>" for row in zip(*columns.values(), strict=True))
    return HTML(f"<table><tr>{head}</tr>{rows}</table>")


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


def metrics_table(metrics: Metrics) -> pd.DataFrame:
    """The stage's records as a reader wants them."""
    return pd.DataFrame(
        [
            {
                "metric": m.name,
                "value": number(m.value),
                "95 % interval": interval(m),
                "n": "" if m.n is None else f"{m.n:,}",
                "unit": m.unit,
                "source": m.source,
            }
            for m in metrics
        ]
    )


def table(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a frame whose long texts are not cut, and whose rows are all shown."""
    pd.set_option("display.max_colwidth", 200)
    pd.set_option("display.max_rows", 100)
    return pd.DataFrame(rows)
