"""Does an environment hold what the lock file names? ``python lib/realm/pins.py requirements.lock``.

``python lib/realm/pins.py cluster/serving.txt --alone`` asks it of one that does not hold this package. Runs before
anything is installed, so it uses the standard library alone. Builds of a version (``+cpu``, ``+cu130``) count as that
version.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path


def read_lock(path: Path) -> dict[str, str]:
    """Package -> version of the ``name==version`` lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line)


def differences(lock: dict[str, str], alone: bool = False) -> list[str]:
    """One line for each package that is missing or has another version, and unless it is asked for ``alone`` one where
    the installed ``realm`` is not this one."""
    found = []
    for name, wanted in lock.items():
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name}: not installed, the lock file has {wanted}")
            continue
        if version != wanted:
            found.append(f"{name}: {version} is installed, the lock file has {wanted}")
    return found if alone else found + _not_this_checkout()


def _not_this_checkout() -> list[str]:
    here = Path(__file__).resolve().parent
    # Without this, a script's own folder would count as an installed package.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    try:
        import realm
    except ImportError:
        return ["realm-repro: not installed; pip install --no-deps --editable ."]
    place = Path(realm.__file__).resolve().parent
    return [] if place == here else [f"realm-repro: installed from {place}, not from {here}"]


if __name__ == "__main__":
    problems = differences(read_lock(Path(sys.argv[1])), alone="--alone" in sys.argv[2:])
    print("\n".join(problems) or "all pins are satisfied")
    sys.exit(bool(problems))
