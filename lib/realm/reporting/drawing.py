"""How a figure is drawn, saved and drawn anew: PNG, the CSV of the very numbers it shows, and a note of what drew it.

**A figure function** (``figures``, or another room of this wing) takes a table and plain values (texts, numbers, true
or false, none), draws from nothing else, and returns ``(figure, table)``. Marked ``@redrawable``, it can be drawn anew
without the run: given back its own table, as the CSV holds it, and the same values, it draws the same picture, byte by
byte. So what is made of raw values on the way (shares, running means) is part of the table, or made again from it; a
function that takes something else than a table the first time, such as raw values, takes its own table as well.
``python -m realm.reporting.regenerate`` draws every figure that was saved so.
"""

from __future__ import annotations

import csv
import functools
import inspect
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from realm.core.files import atomic_path, write_json

# Okabe and Ito's colours, told apart by colour-blind readers: blue is ours, grey is published.
OURS, PUBLISHED, ACCENT, SECOND = "#0072B2", "#9A9A9A", "#D55E00", "#009E73"
STYLE = {
    "figure.dpi": 110,
    "font.size": 11,  # can be read at half its size
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
ROOMS = "realm.reporting"
PLAIN = (str, int, float, bool, type(None))

Drawn = tuple[Figure, pd.DataFrame]


@dataclass(frozen=True)
class Note:
    """What drew a figure. ``NAME.json`` beside the figure holds it.

    ``drawn_by``: room and function, such as ``figures.bars``; ``arguments``: the plain values it was given;
    ``text``: columns of the table that hold text, whatever it looks like; ``alt``: the figure's words, for who cannot
    see it.
    """

    drawn_by: str
    arguments: dict[str, Any]
    text: list[str]
    alt: str


def redrawable(draw: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """Mark a figure function (see above): its figures carry a note from which ``save`` makes the sidecar.

    The table is taken as its file will hold it, and under matplotlib's own defaults, so that neither a notebook's
    settings nor a lost digit tells the two pictures apart. Raises TypeError for an argument that is no plain value.
    """
    parameters = list(inspect.signature(draw).parameters)

    @functools.wraps(draw)
    def drawn(data: Any, *given: Any, **named: Any) -> Drawn:
        arguments = dict(zip(parameters[1:], given, strict=False)) | named
        if odd := [name for name, value in arguments.items() if not isinstance(value, PLAIN)]:
            raise TypeError(f"{draw.__name__}: {', '.join(odd)}: a figure is drawn from a table and plain values alone")
        with plt.style.context(["default", STYLE]):
            figure, table = draw(as_saved(data) if isinstance(data, pd.DataFrame) else data, **arguments)
        place = f"{draw.__module__.removeprefix(f'{ROOMS}.')}.{draw.__name__}"
        figure.drawn = Note(place, arguments, text_columns(table), words_of(figure))
        return figure, table

    drawn.redrawable = True
    return drawn


def save(figure: Figure, table: pd.DataFrame, run_folder: str | Path, name: str) -> Path:
    """Write ``figures/NAME.png``, ``.csv`` and, of a figure that can be drawn anew, ``.json`` of a run, each
    atomically; returns the PNG."""
    folder = Path(run_folder) / "figures"
    with atomic_path(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)
    note = getattr(figure, "drawn", None)
    if note is None:
        (folder / f"{name}.json").unlink(missing_ok=True)  # another figure's, of the same name
    else:
        write_json(folder / f"{name}.json", asdict(note))
    write_png(figure, folder / f"{name}.png")
    return folder / f"{name}.png"


def write_png(figure: Figure, path: Path) -> None:
    """The same bytes for the same figure, whatever the settings around; closes the figure."""
    with plt.style.context(["default", STYLE]), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)


def text_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if not is_numeric_dtype(table[column])]


def read_table(content: str, text: list[str]) -> pd.DataFrame:
    """A figure's CSV, every digit and every word as it was written: in columns of ``text``, ``NA`` is a word."""
    columns = next(csv.reader(io.StringIO(content)), [])
    return pd.read_csv(
        io.StringIO(content),
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values={column: [""] for column in columns if column not in text},
        float_precision="round_trip",
    )


def as_saved(table: pd.DataFrame) -> pd.DataFrame:
    """The table as ``read_table`` finds it again."""
    return read_table(table.to_csv(index=False), text_columns(table))


def words_of(figure: Figure) -> str:
    """Title and labels of the axes: what a figure says of itself."""
    axes = figure.axes
    said = [figure.get_suptitle(), *(a.get_title() for a in axes), figure.get_supxlabel(), figure.get_supylabel()]
    said += [label for a in axes for label in (a.get_xlabel(), a.get_ylabel())]
    return "; ".join(dict.fromkeys(" ".join(words.split()) for words in said if words.strip()))
