"""Files that are whole or not there: atomic writes, JSON without secrets, hashes, and where the repository is."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from realm.core.errors import OneLineError
from realm.core.secrets import redacted

REPOSITORY = Path(__file__).resolve().parents[3]


class ArtefactError(OneLineError, OSError):
    """An artefact that cannot be written or read; the message names the file and the fix."""


def make_folder(folder: Path) -> Path:
    """``folder``, made where it is missing. Raises ArtefactError, which names the variable that moves results."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ArtefactError(
            f"{folder}: cannot write here ({error.strerror}); check permissions and space, or let the environment "
            "variable REALM_RUNS name a folder that can be written"
        ) from error
    return folder


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the place of ``path`` in one step.

    On any error the temporary file goes and whatever stood at ``path`` stays. Raises ArtefactError if the
    folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot write here ({error.strerror}); check permissions and space") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or str(error.filename or path) not in (str(path), str(temporary)):
            raise
        raise ArtefactError(f"{path}: cannot write ({error.strerror}); check permissions and space") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; on success it takes its place: it is whole or not there.

    Raises ArtefactError if nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot write here ({error.strerror}); check permissions and space") from error
    try:
        workspace.chmod(0o777 & ~_umask())
        yield workspace
        shutil.rmtree(folder, ignore_errors=True)
        workspace.rename(folder)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, without secrets."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON; raises ArtefactError naming the file if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: missing; run the stage that writes it first") from error
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error


def matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Names within ``folder`` of what is there and has one of these names, or fits one of these patterns."""
    return [p.relative_to(folder).as_posix() for pattern in patterns for p in sorted(folder.glob(pattern))]


def file_sha256(path: str | Path) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
