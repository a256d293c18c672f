"""Published figures drawn anew from what is committed beside them: the third use of this package.

``./run_all.sh --figures`` calls this: no stage, no model, no network. Of each figure the CSV and the note (``drawing``)
are read and the PNG is written; then the README's block and the full-scale plan, from the committed metrics.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from realm.core.errors import exit_code, tell
from realm.core.files import REPOSITORY, ArtefactError, read_json
from realm.reporting import full_scale
from realm.reporting.drawing import PLAIN, ROOMS, Drawn, Note, read_table, write_png
from realm.reporting.reference import REFERENCE_METRICS
from realm.reporting.report import write_readme_block

PARTS = (".png", ".csv", ".json")
OTHERS = {REFERENCE_METRICS.name}


def redraw(folder: Path, name: str) -> Figure:
    """The figure ``NAME`` of a folder from ``NAME.csv`` and ``NAME.json``.

    Raises ArtefactError, which names the file, if one of them is missing or is not what a figure function takes.
    """
    note, numbers = read_note(folder / f"{name}.json"), folder / f"{name}.csv"
    draw = figure_function(note.drawn_by, folder / f"{name}.json")
    try:
        table = read_table(numbers.read_text(encoding="utf-8"), note.text)
        figure, _ = draw(table, **note.arguments)
    except FileNotFoundError as error:
        raise ArtefactError(f"{numbers}: missing; publish its run again") from error
    except Exception as error:  # whatever the drawing says of numbers that are not those it once drew
        words = f"{type(error).__name__}: {error}"
        raise ArtefactError(f"{numbers}: {note.drawn_by} cannot draw it ({words}); publish its run again") from error
    return figure


def read_note(path: Path) -> Note:
    """Raises ArtefactError naming the file and the field that is not as ``drawing.Note`` has it."""
    if not path.exists():
        raise ArtefactError(f"{path}: missing, so nothing says how the figure was drawn; publish its run again")
    found = read_json(path)
    wanted = {field.name for field in fields(Note)}
    if not isinstance(found, dict) or set(found) != wanted:
        raise ArtefactError(
            f"{path}: a figure's note has the fields {', '.join(sorted(wanted))}; publish its run again"
        )
    note = Note(**found)
    if not isinstance(note.arguments, dict) or not all(isinstance(v, PLAIN) for v in note.arguments.values()):
        raise ArtefactError(f"{path}: arguments: plain values by name are allowed; publish its run again")
    if not isinstance(note.text, list) or not all(isinstance(column, str) for column in note.text):
        raise ArtefactError(f"{path}: text: a list of columns is allowed; publish its run again")
    return note


def figure_function(drawn_by: str, path: Path) -> Callable[..., Drawn]:
    """The figure function ``ROOM.NAME`` of this wing. Raises ArtefactError if there is none."""
    room, _, name = str(drawn_by).partition(".")
    try:
        found = getattr(importlib.import_module(f"{ROOMS}.{room}"), name, None) if room.isidentifier() else None
    except ImportError:
        found = None
    if not getattr(found, "redrawable", False):
        raise ArtefactError(f"{path}: drawn_by: there is no figure function {drawn_by!r}; publish its run again")
    return found


def figures_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """(folder, name) of every figure in a folder and those below it, by any of its parts."""
    files = (p for p in folder.rglob("*") if p.suffix in PARTS and p.name not in OTHERS and p.is_file())
    yield from sorted({(p.parent, p.stem) for p in files if not p.name.startswith(".")})


def regenerate(folder: Path) -> int:
    """Draw anew every figure of a folder and those below it; how many could not be, each said in one line."""
    figures, failed = list(figures_in(folder)), 0
    if not figures:
        raise ArtefactError(f"{folder}: no figures are there")
    for place, name in figures:
        try:
            write_png(redraw(place, name), place / f"{name}.png")
        except ArtefactError as error:
            tell(str(error))
            failed += 1
            plt.close("all")  # what was begun
    print(f"{folder}: {len(figures) - failed} of {len(figures)} figures drawn anew", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m realm.reporting.regenerate", description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="figures of a run (runs/cpu/figures); the published ones if not given"
    )
    given = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return exit_code(lambda: _all(given.folder), "interrupted; call again to draw the rest")


def _all(folder: Path | None) -> int:
    failed = regenerate(folder or REFERENCE_METRICS.parent)
    if folder is None:
        write_readme_block(REPOSITORY / "README.md")
        full_scale.write_plan()
        print("README.md: results block rendered anew; cluster/README.md: the full-scale plan")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
