"""From ``git clone`` to the first figure seen in JupyterLab: ``python -m benchmarks.first_figure``.

A clone of this repository with an environment and a cache of its own, ``./run_all.sh --lab`` in it, and a reader at the
system's Chromium who opens notebook 01 and runs all cells. Nothing is there before; what is downloaded counts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pandas as pd

from realm.core.files import REPOSITORY

RESULTS = Path(__file__).parent / "results" / "first_figure.csv"
PATIENCE = 1_800  # seconds for all of it
FIRST = "01_data_inspection.ipynb"
SHOWN = ".jp-OutputArea-output img[alt]"  # a figure; each has words of its own for who cannot see it


def begun(folder: Path, port: int) -> subprocess.Popen:
    """The two commands of the README."""
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
    own = {"REALM_CACHE": str(folder / "cache"), "REALM_RUNS": str(folder / "runs")}
    left_out = ("VIRTUAL_ENV", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | own
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    with (folder / "lab.log").open("w") as log:
        words = [folder / "run_all.sh", "--lab", *options]
        return subprocess.Popen(words, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def answered(address: str, lab: subprocess.Popen, until: float) -> None:
    while time.monotonic() < until and lab.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    said = (lab.args[0].parent / "lab.log").read_text(encoding="utf-8")
    raise SystemExit(f"JupyterLab is not there; the last that was said: {said[-2_000:]}")


def figure_seen(address: str) -> None:
    """Notebook 01 by *Run All Cells*, until a figure is in the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_default_timeout(1_000 * PATIENCE)
        page.goto(f"{address}/lab/tree/{FIRST}?reset")
        page.get_by_text(re.compile(r"ReaLM-repro \| Idle$")).wait_for()
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        page.locator(SHOWN).first.wait_for(state="attached")
        chromium.close()


def chromium_path() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("no browser is installed: apt-get install chromium")
    return found


def main() -> None:
    chromium_path()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, moments = f"http://127.0.0.1:{port}", {}
    with tempfile.TemporaryDirectory(prefix="realm-first-") as place:
        since = time.monotonic()
        lab = begun(Path(place) / "realm", port)
        try:
            answered(f"{address}/api/status", lab, since + PATIENCE)
            moments["JupyterLab answers"] = time.monotonic() - since
            figure_seen(address)
            moments["first figure seen"] = time.monotonic() - since
        finally:
            os.killpg(lab.pid, signal.SIGTERM)
            lab.wait(60)
    table = pd.DataFrame({"moment": moments.keys(), "seconds since git clone": [round(s) for s in moments.values()]})
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
