"""A wheel, as far as fetching looks: an archive of given members."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
