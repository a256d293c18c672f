"""Rows of a Hub data set, streamed: one configuration, one split, one revision, and one file unless more are named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from realm.conversations.conversation import ConversationFileError
from realm.core.secrets import redact

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".gz", ".zst")
SHARD = re.compile(r"-\d{5}-of-\d{5}(?:-[0-9a-f]{16})?")
REASON_SHOWN = 400  # characters of what the library says
FILES_SHOWN = 12


@dataclass(frozen=True)
class HubChoice:
    """What is read of a Hub data set; each as ``datasets.load_dataset`` takes it, None for its own default."""

    config: str | None = None
    split: str | None = None
    data_files: str | Sequence[str] | None = None
    revision: str | None = None

    @property
    def given(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]


NO_CHOICE = HubChoice()


def is_local_copy(folder: Path) -> bool:
    """Whether a folder holds data files as a Hub repository does, at its top or below."""
    return any(p.suffix in DATA_SUFFIXES for p in folder.rglob("*"))


def hub_rows(name: str, choice: HubChoice) -> Iterator[dict[str, Any]]:
    """The rows of a data set by its Hub name or of a local copy, one at a time.

    Raises ConversationFileError, one line with the library's own reason, where it cannot be read; and where the split
    is several files that are not the shards of one and neither ``config`` nor ``data_files`` names them: reading
    copies and versions of the same talks as one would repeat them.
    """
    import datasets  # seconds to import, and most readers never need it

    name, split = _fetched(name, choice), choice.split or "train"
    options = {"name": choice.config, "data_files": choice.data_files, "revision": choice.revision}
    options = {k: v for k, v in options.items() if v is not None}
    try:
        files: list[str] = []
        if not choice.data_files and not choice.config:
            by_split = datasets.load_dataset_builder(name, **options).config.data_files or {}
            files = [str(f) for part, found in by_split.items() if str(part) == _part(split) for f in found]
        unlike = _unlike(files)
        if not unlike:
            yield from datasets.load_dataset(name, split=split, streaming=True, **options)
    except Exception as error:
        raise ConversationFileError(
            f"{name}: the Hub data set could not be read ({_reason(error)}); check the name and the network, "
            "and config, split, data_files and revision"
        ) from error
    if unlike:
        more = f" and {len(unlike) - FILES_SHOWN} more" if len(unlike) > FILES_SHOWN else ""
        raise ConversationFileError(
            f"{name}: split {split} is {len(unlike)} files, read as one they may repeat each other: "
            f"{', '.join(unlike[:FILES_SHOWN])}{more}; name what to read in data_files"
        )


def fetch_rows(name: str, choice: HubChoice) -> None:
    """Bring the files of a Hub data set into the Hub's cache, where ``hub_rows`` finds them when the Hub may not be
    asked (``HF_HUB_OFFLINE``). Raises ConversationFileError."""
    from huggingface_hub import snapshot_download

    chosen = [choice.data_files] if isinstance(choice.data_files, str) else choice.data_files
    wanted = [*chosen, "README.md"] if chosen else None
    try:
        snapshot_download(name, repo_type="dataset", revision=choice.revision, allow_patterns=wanted)
    except Exception as error:
        raise ConversationFileError(
            f"{name}: the Hub data set could not be fetched ({_reason(error)}); check name, network and HF_TOKEN"
        ) from error


def _fetched(name: str, choice: HubChoice) -> str:
    """The folder of a data set that was fetched, where the Hub may not be asked; else its name as it is."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).exists() or not constants.HF_HUB_OFFLINE:
        return name
    try:
        return snapshot_download(name, repo_type="dataset", revision=choice.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return name  # the error that follows says what is missing


def _part(split: str) -> str:
    """``train`` of ``train[:100]``."""
    return split.partition("[")[0]


def _unlike(files: list[str]) -> list[str]:
    """The names of files that are no shards of one; none where there is one file, or shards."""
    parts = [f.split("/") for f in files]
    folders = zip(*(p[:-1] for p in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, folders))
    names = ["/".join(p[shared:]) for p in parts]
    wholes = {SHARD.sub("", n) if not n.endswith(".parquet") else re.sub(r"\d+", "", SHARD.sub("", n)) for n in names}
    return names if len(wholes) > 1 else []


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:REASON_SHOWN]
    return redact(f"{type(error).__name__}: {said}" if said else type(error).__name__)
