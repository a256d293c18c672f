"""What is needed to repeat a run: values, seed, commit, versions, device, hashes of assets."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TRAINED_ON = "trained_on"  # in a stage's manifest: artefact of the run -> SHA-256
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "openai", "xllamacpp", "numpy")


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
