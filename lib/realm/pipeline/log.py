"""What the plain log of a run shows of a notebook at work: each heading as it is reached, and its bars now and then.

papermill would show a bar of its own, which counts cells and moves by carriage returns.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from tqdm import tqdm

from realm.core.progress import EVERY, PROGRESS
from realm.core.secrets import redact

ENGINE = "realm"


class RedactedErrors:
    """Standard error for what notebooks write there, and for the log, without keys."""

    def write(self, text: str) -> int:
        return sys.stderr.write(redact(text))

    def flush(self) -> None:
        sys.stderr.flush()


class _Client(PapermillNotebookClient):
    """A notebook's kernel, heard while it works."""

    def __init__(self, *things: Any, **values: Any):
        super().__init__(*things, **values)
        self._heading, self._spoke = "", 0.0
        self._told: dict[str, tuple[float, bool]] = {}  # display id of a bar -> (when, was it told or only seen)

    def execute_cell(self, cell: Any, cell_index: int, *things: Any, **values: Any) -> Any:
        if heading := _heading_of(cell):
            self._heading = heading
        elif cell.cell_type == "code" and self._heading:
            self._tell(f"[{cell_index + 1} of {len(self.nb.cells)}] {self._heading}")
            self._heading = ""
        self._spoke, over = time.monotonic(), threading.Event()
        threading.Thread(target=self._keep_telling, args=(cell_index, over), daemon=True).start()
        try:
            return super().execute_cell(cell, cell_index, *things, **values)
        finally:
            over.set()

    def _keep_telling(self, cell_index: int, over: threading.Event) -> None:
        """Of a cell that shows no bar, that it is at work."""
        started = time.monotonic()
        while not over.wait(min(1.0, EVERY)):
            if time.monotonic() - self._spoke >= EVERY:
                spent = tqdm.format_interval(time.monotonic() - started)
                self._tell(f"   cell {cell_index + 1} is at work, {spent}")

    def process_message(self, msg: dict, cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if PROGRESS in content.get("metadata", {}):
            self._tell_bar(content)
        return super().process_message(msg, cell, cell_index)

    def _tell_bar(self, content: dict) -> None:
        name, now = content.get("transient", {}).get("display_id"), time.monotonic()
        self._spoke = now  # a bar is there, and will be told
        since, told = self._told.setdefault(name, (now, False))
        due = now - since >= EVERY
        if due or (told and content["metadata"][PROGRESS]):  # of a bar that was told, its end is told too
            self._tell(f"   {content['data']['text/plain']}")
            self._told[name] = now, True

    def _tell(self, words: str) -> None:
        self._spoke = time.monotonic()
        self.stderr_file.write(f"{words}\n")
        self.stderr_file.flush()


def _heading_of(cell: Any) -> str:
    """The last heading in a cell of text, without its marks."""
    found = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
    return found[-1] if found else ""


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **values: Any) -> Any:
        values = {k: v for k, v in values.items() if k not in ("input_path", "start_timeout", "execution_timeout")}
        return _Client(nb_man, kernel_name=kernel_name, timeout=None, **values).execute()


papermill_engines.register(ENGINE, _Engine)
