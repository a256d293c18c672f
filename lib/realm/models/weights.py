"""Which model a name means, by content: two names of the same weights say the same, one name of new weights does not.

Large files are read once: their hash is remembered under place, size, inode and both times of change, of which the
second cannot be set by hand. The memory lies in the cache of data and models; where that cannot be written, files are
read again.
"""

from __future__ import annotations

import contextlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from realm.core.files import ArtefactError, file_sha256, read_json, text_sha256, write_json
from realm.models import assets

SMALL = 1 << 20  # bytes; below it reading costs less than remembering
MEMORY = "hashes.json"
# What stands beside weights and shapes no word: cards, what a server wrote for itself, and journals.
BESIDE = ("README.md", "model-q8_0.gguf", "verified.json")
OF_THE_LIBRARY = ("transformers_version", "_name_or_path", "peft_version")


def weights_of(name: str, run_folder: Path | None = None) -> str | None:
    """A hash of the model that a profile's ``name`` means; None where it is not there (yet).

    ``name``: an asset (its pin), ``stage:02_usergpt_sft`` (that stage's merged model in ``run_folder``), a file or
    folder (its content), else a Hub repository (the revision in the local cache). What is downloaded is not asked for.
    """
    kind, _, rest = name.partition(":")
    if kind in ("stage", "base") and rest:
        return _of_stage(kind, rest, run_folder) if run_folder is not None else None
    if pinned := assets.hashes([name]):
        return pinned[name]
    path = Path(name).expanduser()
    return content_sha256(path) if path.exists() else _of_hub(name)


def _of_stage(kind: str, stage: str, run_folder: Path) -> str | None:
    merged, note = run_folder / stage / "merged", run_folder / stage / "base_model.txt"
    if not merged.exists():
        return None
    if kind == "stage":
        return content_sha256(merged)
    # What the stage started from, under the tokenizer and template that it was trained with.
    around = [p for p in sorted(merged.iterdir()) if p.suffix != ".safetensors" and not _beside(p)]
    base = note.read_text(encoding="utf-8").strip() if note.exists() else ""
    parts = [weights_of(base, run_folder) if base else None, *(content_sha256(p) for p in around)]
    return text_sha256(json.dumps(parts))


def _of_hub(name: str) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name.partition(":")[0], local_files_only=True)).name  # the commit
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def content_sha256(path: Path) -> str | None:
    """A hash of a file, or of a folder's files by name, without what shapes no word; None if it is not there."""
    if not path.exists():
        return None
    if path.is_dir():
        inside = {p.name: content_sha256(p) for p in sorted(path.iterdir()) if not _beside(p)}
        return text_sha256(json.dumps(inside, sort_keys=True))
    if path.suffix == ".json" and path.stat().st_size < SMALL:
        return _of_configuration(path)
    return _remembered(path)


def _beside(path: Path) -> bool:
    return path.name in BESIDE or path.name.startswith(".") or ".journal" in path.name


def _of_configuration(path: Path) -> str:
    """A model's settings as they count: the library that wrote them notes itself there."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return file_sha256(path)
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if k not in OF_THE_LIBRARY}
    return text_sha256(json.dumps(values, sort_keys=True))


def _remembered(path: Path) -> str:
    status = path.stat()
    if status.st_size < SMALL:
        return file_sha256(path)
    # A change of content changes the last one, whatever is done to the others.
    stamp = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return _large_file(str(path.resolve()), stamp)


@lru_cache(maxsize=4096)
def _large_file(path: str, stamp: tuple[int, ...]) -> str:
    memory = assets.cache_folder() / MEMORY
    known = _read(memory)
    if (entry := known.get(path)) and entry[0] == list(stamp):
        return entry[1]
    found = file_sha256(path)
    known = {p: e for p, e in _read(memory).items() if Path(p).exists()}
    with contextlib.suppress(ArtefactError):  # it is read again next time
        write_json(memory, {**known, path: [list(stamp), found]})
    return found


def _read(memory: Path) -> dict[str, Any]:
    try:
        known = read_json(memory)
    except (ArtefactError, OSError):
        return {}
    return known if isinstance(known, dict) else {}
