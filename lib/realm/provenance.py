"""Where a number came from: atomic artefacts, metrics, manifests, and keys that never reach any of them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

THIS_RUN = "this run"
PUBLISHED = "published"
SECRET_SUFFIXES = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
# Shorter values (EMPTY, none) are placeholders, and replacing them would mangle ordinary text.
SHORTEST_SECRET = 6
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "openai", "xllamacpp", "numpy")


class ArtefactError(OSError):
    """An artefact that cannot be written or read; the message names the file and the fix."""


# ---------------------------------------------------------------- files


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
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or str(error.filename or path) not in (str(path), str(temporary)):
            raise
        raise ArtefactError(f"{path}: cannot write ({error.strerror}); check permissions and space") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, without secrets."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def redacted(value: Any) -> Any:
    """Strings redacted before they are serialized: escaping would hide a secret, numbers are no text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redacted(k): redacted(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(v) for v in value]
    return value


def read_json(path: str | Path) -> Any:
    """Read JSON; raises ArtefactError naming the file if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: missing; run the stage that writes it first") from error
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error


def file_sha256(path: str | Path) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# ---------------------------------------------------------------- secrets


_REGISTERED: set[str] = set()


def register_secret(value: str | None) -> None:
    """Have ``value`` redacted too: a key from a variable whose name does not show that it holds one."""
    if value and len(value) >= SHORTEST_SECRET:
        _REGISTERED.add(value)


def secrets() -> list[str]:
    """Values of environment variables that hold keys, and registered ones, longest first."""
    values = {v for k, v in os.environ.items() if k.upper().endswith(SECRET_SUFFIXES) and len(v) >= SHORTEST_SECRET}
    return sorted(values | _REGISTERED, key=len, reverse=True)


def redact(text: str) -> str:
    """``text`` with every secret of the environment replaced by ``[redacted]``."""
    for value in secrets():
        text = text.replace(value, "[redacted]")
    return text


# ---------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Metric:
    """One number with all that is needed to quote it. Intervals are 95 % unless the unit says otherwise."""

    name: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unit: str = ""
    source: str = THIS_RUN

    def __str__(self) -> str:
        text = f"{self.value:.4g}" if isinstance(self.value, float) else f"{self.value:,}"
        if self.ci_low is not None:
            text += f" [{self.ci_low:.4g}, {self.ci_high:.4g}]"
        return text


class Metrics:
    """The flat records of one stage, in the order they were added; ``save`` writes ``metrics.json``."""

    def __init__(self, records: list[Metric] | None = None):
        self._records = {r.name: r for r in records or []}

    def add(self, name: str, value: float, *, ci: tuple[float, float] | None = None, **fields: Any) -> Metric:
        """Add or replace a record. ``fields``: n, unit, source. Raises ValueError for a value that is no number."""
        if isinstance(value, bool) or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"metric {name} has no finite value: {value}")
        number = int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
        if ci is not None and not all(math.isfinite(limit) for limit in ci):
            raise ValueError(f"metric {name} has an interval that is not finite: {ci}")
        low, high = (float(ci[0]), float(ci[1])) if ci is not None else (None, None)
        self._records[name] = Metric(name, number, low, high, **fields)
        return self._records[name]

    def __getitem__(self, name: str) -> Metric:
        try:
            return self._records[name]
        except KeyError:
            raise KeyError(f"no metric {name}; there are: {', '.join(self._records)}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._records.values())

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(r) for r in self]

    def save(self, folder: str | Path) -> Path:
        path = Path(folder) / "metrics.json"
        write_json(path, self.rows())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Metrics:
        return cls([Metric(**r) for r in read_json(Path(folder) / "metrics.json")])


# ---------------------------------------------------------------- manifest


def manifest(seed: int, profile: dict[str, Any], assets: dict[str, str] | None = None) -> dict[str, Any]:
    """What is needed to repeat a run: profile values, seed, commit, versions, device, asset hashes."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "profile": profile,
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONED_PACKAGES},
        "device": device_name(),
        "assets": assets or {},
    }


def git_commit() -> str:
    """The commit of the working tree, with ``+changes`` where it differs; empty outside a checkout."""
    here = Path(__file__).parent
    ask = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True)  # noqa: E731
    try:
        head = ask("rev-parse", "HEAD")
        # figures/ is what a run writes: it does not make the code another one.
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ":/lib", ":/notebooks", ":/profiles")
    except OSError:
        return ""
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "") if head.returncode == 0 else ""


def device_name() -> str:
    import joblib  # slow to import, both; most readers of this room never need them
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"CPU, {joblib.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
