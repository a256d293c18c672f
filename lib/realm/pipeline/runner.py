"""How a notebook is run headlessly, one run at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realm.core.errors import OneLineError
from realm.core.files import ArtefactError, atomic_path, make_folder, read_json, write_json
from realm.core.profile import load_profile
from realm.core.secrets import redact, redacted
from realm.pipeline import stages
from realm.pipeline.identity import fingerprint, is_done
from realm.pipeline.stages import Stage
from realm.pipeline.surroundings import own_kernel


class StageFailed(OneLineError, RuntimeError):
    """A notebook that stopped; one line naming stage, cell, error and the notebook to open."""


def run_stage(stage: Stage, profile_name: str, folder: Path, *, force: bool = False) -> float | None:
    """Execute a stage's notebook; returns seconds, or None if it was skipped.

    Raises StageFailed, one line, if a cell fails; the executed notebook up to there is kept.
    """
    profile = load_profile(profile_name)
    if not force and is_done(stage, profile, profile.seed, folder):
        return None
    out = folder / stage.folder
    begun = out / "begun.json"
    identity = {"fingerprint": fingerprint(stage, profile, profile.seed, folder, budget=False)}
    if force or not begun.exists() or read_json(begun) != identity:
        # What other settings or other code left half done must not leak into this run.
        shutil.rmtree(out, ignore_errors=True)
        write_json(begun, identity)
    started = time.monotonic()
    executed = folder / "notebooks" / f"{stage.notebook}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"PROFILE": profile_name, "RUN_DIR": str(folder), "SEED": profile.seed}
    try:
        _execute(stages.NOTEBOOKS / f"{stage.notebook}.ipynb", executed, parameters, stage)
    finally:
        if executed.exists():
            _scrub(executed)
    seconds = round(time.monotonic() - started, 1)
    _to_html(executed)
    whole = fingerprint(stage, profile, profile.seed, folder)
    write_json(out / "done.json", {"fingerprint": whole, "seconds": seconds})
    return seconds


def _execute(source: Path, target: Path, parameters: dict[str, Any], stage: Stage) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            kernel_name="python3",
            cwd=str(Path.cwd()),  # relative paths in a profile mean what they mean to the caller
            progress_bar={"desc": stage.notebook, "unit": "cell"},
            request_save_on_cell_execute=True,
            stderr_file=_RedactedErrors(),
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


class _RedactedErrors:
    """Standard error for what notebooks write there: bars and warnings, without keys."""

    def write(self, text: str) -> int:
        return sys.stderr.write(redact(text))

    def flush(self) -> None:
        sys.stderr.flush()


def _scrub(notebook: Path) -> None:
    """No key stays in an executed notebook, whatever printed it."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    if (clean := redacted(content)) != content:
        write_json(notebook, clean)


def _to_html(notebook: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(embed_images=True).from_filename(str(notebook))
    with atomic_path(notebook.with_suffix(".html")) as temporary:
        temporary.write_text(redact(body), encoding="utf-8")


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One run at a time in a folder. Raises ArtefactError if another is at work or it cannot be written."""
    with (make_folder(folder) / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtefactError(f"{folder}: another run is at work here; wait for it or stop it") from None
        yield
