"""How a notebook is run headlessly, one run at a time in a folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realm.core.errors import OneLineError
from realm.core.files import ArtefactError, make_folder, write_json
from realm.core.locks import Busy, Lock
from realm.core.profile import load_profile
from realm.core.secrets import redact, redacted
from realm.pipeline import marks
from realm.pipeline.identity import made_of
from realm.pipeline.pages import write_page
from realm.pipeline.stages import Stage
from realm.pipeline.surroundings import own_kernel

PATIENCE = 2.0  # seconds for a run that was just killed to be gone


class StageFailed(OneLineError, RuntimeError):
    """A notebook that stopped; one line naming stage, cell, error and the notebook to open."""


def run_stage(stage: Stage, profile_name: str, folder: Path, *, force: bool = False) -> float | None:
    """Execute a stage's notebook; returns seconds, or None if it was skipped.

    Nothing is deleted: what no longer fits is set aside, with ``force`` too. Raises StageFailed, one line, if a cell
    fails; the executed notebook up to there is kept.
    """
    profile = load_profile(profile_name)
    made = made_of(stage, profile, profile.seed, folder)
    executed = folder / "notebooks" / f"{stage.notebook}.ipynb"
    if not force and marks.changes(stage, made, folder) == []:
        _show(executed)
        return None
    marks.begin(stage, made, folder, force=force)
    started = time.monotonic()
    executed.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"PROFILE": profile_name, "RUN_DIR": str(folder), "SEED": profile.seed}
    try:
        _execute(stage.path, executed, parameters, stage)
    except BaseException:
        marks.unfinish(stage, folder)
        raise
    finally:
        if executed.exists():
            _scrub(executed)
    seconds = round(time.monotonic() - started, 1)
    marks.finish(stage, made, folder, seconds)
    _show(executed)
    return seconds


def _show(executed: Path) -> None:
    """The page of an executed notebook, unless it is there already: whoever was killed came no further."""
    page = executed.with_suffix(".html")
    if executed.exists() and not (page.exists() and page.stat().st_mtime >= executed.stat().st_mtime):
        _scrub(executed)
        write_page(executed)


def _execute(source: Path, target: Path, parameters: dict[str, Any], stage: Stage) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from realm.pipeline import log

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            kernel_name="python3",
            cwd=str(Path.cwd()),  # relative paths in a profile mean what they mean to the caller
            engine_name=log.ENGINE,
            progress_bar=False,
            request_save_on_cell_execute=True,
            stderr_file=log.RedactedErrors(),
            log_output=False,
            kernel_manager_class=own_kernel(),
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its note on TCP stood in every log
        )
    except PapermillExecutionError as error:
        reason = " ".join(redact(str(error.evalue)).split())[:600]
        raise StageFailed(
            f"stage {stage.number} ({stage.notebook}) failed in cell {error.cell_index + 1}: "
            f"{error.ename}: {reason}; "
            f"open {target}, mend it, and call again: it starts at this stage"
        ) from None
    except DeadKernelError:
        raise StageFailed(
            f"stage {stage.number} ({stage.notebook}) failed: its kernel died, for want of memory perhaps; "
            f"open {target} to see how far it came, and call again: it starts at this stage"
        ) from None


def _scrub(notebook: Path) -> None:
    """No key stays in an executed notebook, whatever printed it."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    if (clean := redacted(content)) != content:
        write_json(notebook, clean)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One run at a time in a folder. Raises ArtefactError if another is at work or it cannot be written."""
    make_folder(folder)
    try:
        lock = Lock(folder / ".lock", PATIENCE)
    except Busy as whose:
        raise ArtefactError(f"{folder}: another run is at work here; wait for it or stop it{whose}") from None
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot write here ({error.strerror}); check permissions and space") from error
    with contextlib.closing(lock):
        yield
