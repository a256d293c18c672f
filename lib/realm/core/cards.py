"""Cards beside models and data sets: what stands in their text, and what of it a stranger may read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from realm.core.files import atomic_path
from realm.core.secrets import redact

CARD = "README.md"  # where the Hub looks for it
PAPER = "arxiv:2308.11534"


def _one_cell(text: Any) -> str:
    """A bar or a line break would end a table's cell."""
    return " ".join(str(text).replace("|", "\\|").split())


_MARKDOWN = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
_MARKDOWN.filters["cell"] = _one_cell


def write_card(template: Path, target: Path, /, **values: Any) -> Path:
    """Fill in a Markdown template, keys redacted, and write it atomically; a value that is missing is an error.

    Raises ArtefactError if the folder cannot be written.
    """
    text = _MARKDOWN.from_string(template.read_text(encoding="utf-8")).render(values)
    with atomic_path(target) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")
    return target


def public_name(name: str) -> str:
    """A name as a stranger may read it: of a path that leads somewhere on this machine, the last part alone."""
    local = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
    return Path(name).name if local else name
