"""What no longer fits is set aside, never deleted: ``set_aside/<time>-<stage>/`` of its run folder.

Hours of training and paid answers end here when something else takes their place; only ``--tidy`` removes them, after
a yes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from realm.core.files import ArtefactError

FOLDER = "set_aside"


def set_aside(paths: Iterable[Path], stage_folder: Path) -> Path | None:
    """Move files or folders below ``stage_folder``, a stage's in a run, to where they are kept; None if there are none.

    They keep their places relative to the stage. Raises ArtefactError if that cannot be written.
    """
    present = [p for p in paths if p.exists() or p.is_symlink()]
    if not present:
        return None
    try:
        target = _new_folder(stage_folder)
        for path in present:
            place = target / path.relative_to(stage_folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    except OSError as error:
        raise ArtefactError(f"{stage_folder}: cannot set aside what is there ({error.strerror})") from error
    return target


def _new_folder(stage_folder: Path) -> Path:
    home = stage_folder.parent / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{stage_folder.name}"
    number = 1
    while True:  # two within a second, or two at once
        with contextlib.suppress(FileExistsError):
            (folder := home / (name if number == 1 else f"{name}-{number}")).mkdir()
            return folder
        number += 1


def set_aside_so_far(run_folder: Path) -> dict[Path, int]:
    """Folder -> bytes, of all that was set aside in a run, oldest first."""
    inside = (f"*/{FOLDER}", f"*/*/{FOLDER}")  # a control's checkpoints, and corpora beside RealChat
    homes = [run_folder / FOLDER, *(home for pattern in inside for home in run_folder.glob(pattern))]
    folders = sorted((p for h in homes if h.is_dir() for p in h.iterdir() if p.is_dir()), key=lambda p: p.name)
    return {f: sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders}


def remove(folders: Iterable[Path]) -> None:
    """Remove for good. Raises ArtefactError if something is in the way."""
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise ArtefactError(f"{folder}: cannot be removed ({error.strerror}); check permissions") from error
