"""Reading along: JupyterLab on the notebooks, with a kernel that is this environment's whatever others are installed.

``./run_all.sh --lab`` calls this. The notebooks name the kernel ``realm-repro``; installing the package puts it where
JupyterLab of the same environment looks, so plain ``jupyter lab`` finds it too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from realm.core.errors import exit_code
from realm.core.files import ArtefactError, atomic_path
from realm.pipeline.stages import NOTEBOOKS

KERNEL = "realm-repro"
SPEC = Path(__file__).parent / "kernel.json"
# Nobody is asked, by a window over the first notebook, whether news may be fetched.
QUIET = ("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None")


def install_kernel(prefix: Path) -> Path:
    """The kernel among those of an environment; returns its folder. Raises ArtefactError where it cannot be written."""
    folder = prefix / "share" / "jupyter" / "kernels" / KERNEL
    wanted = SPEC.read_text(encoding="utf-8")
    try:
        if not (folder / SPEC.name).exists() or (folder / SPEC.name).read_text(encoding="utf-8") != wanted:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / SPEC.name) as temporary:
                temporary.write_text(wanted, encoding="utf-8")
    except OSError as error:
        raise ArtefactError(
            f"{folder}: cannot write here ({error.strerror}); use an environment of your own, such as .venv"
        ) from error
    return folder


def command(folder: Path, options: Sequence[str]) -> list[str]:
    """JupyterLab on a folder of notebooks. ``options``: as ``jupyter lab`` takes them."""
    return [sys.executable, "-m", "jupyterlab", str(folder), *QUIET, *options]


def environment(prefix: Path) -> dict[str, str]:
    """This process's, with the kernels of an environment found before all others."""
    places = [str(prefix / "share" / "jupyter"), os.environ.get("JUPYTER_PATH", "")]
    return {**os.environ, "JUPYTER_PATH": os.pathsep.join(filter(None, places))}


def main(options: Sequence[str]) -> int:
    def open_lab() -> None:
        prefix = Path(sys.prefix)
        install_kernel(prefix)
        os.execvpe(sys.executable, command(NOTEBOOKS, options), environment(prefix))

    return exit_code(open_lab, "interrupted")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
