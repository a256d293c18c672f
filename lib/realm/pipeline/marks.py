"""The marks that a stage leaves: what it was begun with, what it was finished with, and what of it was set aside.

Notebooks run by hand and ``run_all.sh`` leave the same, so they mix. What is paid for or took hours is never deleted:
a stage that is rerun keeps its journals, which know by themselves what they belong to, and checkpoints of the same
training; whatever else no longer fits is moved to ``set_aside/<time>-<stage>/`` of the run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from realm.core.errors import note
from realm.core.files import ArtefactError, matching, read_json, write_json
from realm.core.set_aside import FOLDER, set_aside
from realm.models.weights import content_sha256
from realm.pipeline.identity import of_training
from realm.serving.words import differences, in_few

BEGUN, DONE = "begun.json", "done.json"
LEFT = ("metrics.json", "manifest.json")  # by every stage, besides what it writes


class Marked(Protocol):
    """What is asked of a stage. ``writes``: names of what must be there when it is done, or patterns of what may be;
    ``keeps``: patterns of what stays in a rerun; ``resumes``: of what stays if its training is still the same."""

    folder: str
    writes: tuple[str, ...]
    keeps: tuple[str, ...]
    resumes: tuple[str, ...]


def is_done(stage: Marked, folder: Path) -> bool:
    """Whether the stage was finished once, whatever changed since."""
    return (folder / stage.folder / DONE).exists()


def changes(stage: Marked, made: dict[str, Any], folder: Path) -> list[str] | None:
    """What changed since the stage was finished, in phrases; empty if it may be skipped, None if it never was.

    ``made``: what it would be made of now; ``folder``: the run's.
    """
    out = folder / stage.folder
    done = _read(out / DONE)
    if done is None:
        return None
    noted = done.get("written", {})
    there = matching(out, stage.writes)
    expected = dict.fromkeys([*(name for name in stage.writes if "*" not in name), *noted, *LEFT])
    lost = [f"{name} is gone" for name in expected if not (out / name).exists()]
    if "made_of" not in done:
        return [*lost, "finished by an earlier version of this repository"]
    touched = [f"{name} was changed" for name in there if content_sha256(out / name) != noted.get(name)]
    return [*lost, *touched, *differences(done["made_of"], made), *done.get("left", [])]


def begin(stage: Marked, made: dict[str, Any], folder: Path, *, force: bool = False) -> None:
    """Make room for a run of the stage: what stands there and no longer fits is set aside, and one line says why.

    A finished stage of which nothing changed is left as it is, unless ``force``; so is one that was interrupted.
    """
    out = folder / stage.folder
    begun, changed = _read(out / BEGUN), changes(stage, made, folder)
    before = (_read(out / DONE) or begun or {}).get("made_of", {})
    if not force and changed == []:
        return
    if changed is None and not force and (begun is None or before == made):
        write_json(out / BEGUN, {"made_of": made})
        return
    resumes = stage.resumes and not force and before and of_training(before) == of_training(made)
    keeps = (*stage.keeps, *(stage.resumes if resumes else ()))
    place = set_aside([p for p in _files(out) if not _kept(p, out, keeps)], out)
    _prune(out)
    if place is not None:
        why = "--force" if force else in_few(changed or differences(before, made) or ["begun otherwise"])
        note(f"{stage.folder}: run anew ({why}); what stood there is set aside in {place}")
    write_json(out / BEGUN, {"made_of": made})


def finish(stage: Marked, made: dict[str, Any], folder: Path, seconds: float, left: Sequence[str] = ()) -> None:
    """The stage is whole. ``made``: what it was made of when it was begun; ``left``: phrases of what the next run would
    still do, for which it is not skipped."""
    out = folder / stage.folder
    written = {name: content_sha256(out / name) for name in matching(out, stage.writes)}
    write_json(out / DONE, {"seconds": seconds, "made_of": made, "written": written, "left": [*left]})


def unfinish(stage: Marked, folder: Path) -> None:
    """A stage that failed is not done, even where its last cell but one said so."""
    (folder / stage.folder / DONE).unlink(missing_ok=True)


def seconds_of(stage: Marked, folder: Path) -> float:
    return read_json(folder / stage.folder / DONE)["seconds"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path) if path.exists() else None
    except ArtefactError:  # half a mark is none
        return None
    return found if isinstance(found, dict) else None


def _files(out: Path) -> list[Path]:
    found = out.rglob("*") if out.is_dir() else ()
    return sorted(p for p in found if (p.is_file() or p.is_symlink()) and FOLDER not in p.relative_to(out).parts)


def _kept(path: Path, out: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path.relative_to(out).as_posix(), pattern) for pattern in patterns)


def _prune(out: Path) -> None:
    """Folders that hold nothing any more."""
    for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
