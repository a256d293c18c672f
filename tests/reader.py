"""A reader at a browser: JupyterLab as ``./run_all.sh --lab`` opens it, and the system's Chromium that looks at it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from realm.pipeline import lab

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# All cells stand in the page, also those out of sight; nothing is fetched for who never said whether it may be.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = "ReaLM-repro"  # the kernel's name for readers
STARTS_WITHIN, PATIENT, ANSWERS_WITHIN = 300, 300, 1_800  # seconds: a server, one click, a notebook
TALLEST = 12_000  # pixels of one picture


def why_not() -> str | None:
    """Why there is no browser to drive here, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install --editable '.[dev]'"
    return None if found() else f"no browser is installed ({', '.join(BROWSERS)}): apt-get install chromium"


def found() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def browser() -> Iterator:
    """The system's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=found(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Seen:
    """What a page complained of, and where it went for more."""

    def __init__(self, page):
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.strangers.append(request.url)


@contextlib.contextmanager
def jupyterlab(notebooks: Path, place: Path, **variables: str) -> Iterator[str]:
    """The address of a JupyterLab on copies of notebooks. ``place``: for its settings, its kernel and its log."""
    for name, values in SETTINGS.items():
        file = place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    lab.install_kernel(place / "environment")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    where = {
        "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(place / "config"),
        "JUPYTER_DATA_DIR": str(place / "data"),
        **lab.environment(place / "environment"),
        **variables,
    }
    with (place / "lab.log").open("w") as log:
        server = subprocess.Popen(lab.command(notebooks, options), env=where, stdout=log, stderr=log, cwd=place)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api/status", server)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(address: str, server: subprocess.Popen) -> None:
    since = time.monotonic()
    while time.monotonic() - since < STARTS_WITHIN and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(address, timeout=5)
            return
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start within {STARTS_WITHIN} s; see lab.log")


class OpenNotebook:
    """A notebook in a tab of its own, with a fresh kernel."""

    def __init__(self, page, address: str, path: Path):
        self.page, self.address, self.path, self.seen = page, address, path, Seen(page)
        page.set_default_timeout(1_000 * PATIENT)
        page.goto(f"{address}/lab/tree/{path.name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        # The status bar knows whether a kernel is there; what is run before is answered by a question for one.
        page.get_by_text(re.compile(rf"{READY} \| Idle$")).wait_for()

    def run_all(self) -> None:
        """*Run All Cells* of the menu, until no cell is at work or waits; then it is saved."""
        self.choose("Run", "Run All Cells")
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt")
        prompts.filter(has_text=re.compile(r"[\d*]")).first.wait_for()  # at work, or done already
        waiting = prompts.filter(has_text="*")
        since = time.monotonic()
        while waiting.count() and time.monotonic() - since < ANSWERS_WITHIN:
            self.page.wait_for_timeout(500)
        self.page.wait_for_timeout(1_500)  # formulas would be typeset and pictures decoded by now
        self.choose("File", "Save Notebook")
        self.page.wait_for_timeout(1_500)

    def choose(self, menu: str, item: str) -> None:
        """An item of a menu, as soon as it can be chosen: while a notebook is being made ready it is grey."""
        from playwright.sync_api import TimeoutError

        active = self.page.locator(".lm-Menu-item:not(.lm-mod-disabled) .lm-Menu-itemLabel")
        since = time.monotonic()
        while time.monotonic() - since < PATIENT:
            self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
            try:
                return active.filter(has_text=re.compile(f"^{item}$")).click(timeout=2_000)
            except TimeoutError:
                self.page.keyboard.press("Escape")
        raise AssertionError(f"{menu}, {item}: stayed grey for {PATIENT} s")

    def outputs(self, kind: str) -> list[dict]:
        """Of the notebook as it was saved: ``error`` or ``stream``."""
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        return [o for c in cells for o in c.get("outputs", ()) if o["output_type"] == kind]

    def not_run(self) -> list[str]:
        """The first lines of code cells without a number."""
        cells = [c for c in json.loads(self.path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        return [c["source"][0] for c in cells if c["execution_count"] is None]

    def pictures(self) -> list[dict]:
        script = "found => found.map(i => ({alt: i.alt, width: i.naturalWidth}))"
        return self.page.eval_on_selector_all(".jp-OutputArea-output img", script)

    def keep(self, path: Path) -> None:
        """Pictures of the whole notebook, from the top: ``NAME.png``, and of a long one ``NAME_2.png`` and so on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pane = self.page.locator(".jp-NotebookPanel-notebook .jp-WindowedPanel-outer")
        height, part = pane.evaluate("e => e.scrollHeight"), 1
        self.page.set_viewport_size({"width": 1300, "height": min(height + 150, TALLEST)})
        for top in range(0, height, TALLEST - 300):
            pane.evaluate("(e, top) => e.scrollTo(0, top)", top)
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=path.with_stem(path.stem + (f"_{part}" if part > 1 else "")))
            part += 1

    def close(self) -> None:
        """The tab, and its kernel."""
        token = next(c["value"] for c in self.page.context.cookies() if c["name"] == "_xsrf")
        for session in self.page.request.get(f"{self.address}/api/sessions").json():
            address = f"{self.address}/api/sessions/{session['id']}"
            assert self.page.request.delete(address, headers={"X-XSRFToken": token}).ok
        self.page.close()
