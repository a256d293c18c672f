"""Looking at a mask: the tokens decoded back to text, supervised or not."""

from __future__ import annotations

import html

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm.dialogue.encoder import IGNORED, Encoded

WRAPPED = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"  # between words, where there are any


def audit_runs(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[bool, str]]:
    """The tokens decoded back to text as (supervised, text) runs: what the loss really sees."""
    supervised = encoded.labels != IGNORED
    edges = np.flatnonzero(np.diff(supervised)) + 1
    return [
        (bool(supervised[part[0]]), tokenizer.decode(encoded.input_ids[part]))
        for part in np.split(np.arange(len(supervised)), edges)
        if len(part)
    ]


def audit_text(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, limit: int = 1_200) -> str:
    """For terminals: supervised text between ⟦ and ⟧, the rest as it is."""
    text = "".join(f"⟦{t}⟧" if on else t for on, t in audit_runs(encoded, tokenizer))
    return text if len(text) <= limit else text[:limit] + " …"


def audit_html(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, limit: int = 1_500) -> str:
    """For notebooks: supervised text on blue, escaped, with the share of supervised tokens."""
    pieces, left = [], limit
    for on, text in audit_runs(encoded, tokenizer):
        shown = html.escape(text[:left])
        style = "background:#0072B2;color:white" if on else "color:#555"
        pieces.append(f'<span style="{style}">{shown}</span>')
        left -= len(text)
        if left <= 0:
            pieces.append(" …")
            break
    share = encoded.supervised / len(encoded.input_ids)
    head = f"{len(encoded.input_ids)} tokens, {share:.0%} supervised (blue)"
    return f'<p><b>{head}</b></p><pre style="{WRAPPED}">{"".join(pieces)}</pre>'
