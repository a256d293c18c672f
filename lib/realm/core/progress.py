"""What long work says of itself while it runs: a line that moves in a notebook, a bar at a terminal, and in a log a new
line now and then.

A carriage return moves a bar at a terminal and floods a log, so a log gets none. Work that counts nothing for a while
is shown again, with the time that passed.
"""

from __future__ import annotations

import html
import sys
import threading
import time
import weakref
from typing import Any

from tqdm import tqdm

EVERY = 10.0  # seconds between two lines of a log
LIVE = 0.5  # seconds between two looks of a line that moves
BEAT = 5.0  # seconds after which a line that moves is shown again, whatever was counted
BRIEF = 1.0  # seconds; a notebook shows nothing of what is over before
PROGRESS = "progress"  # in the metadata of what a notebook displays: here is a bar; true when it is over


class Bar(tqdm):
    """As ``tqdm``, shown where it reads well. ``unit`` in the plural, ``3 of 8 turns``; an empty one counts nothing."""

    def __init__(self, *things: Any, **values: Any):
        self._shell = _notebook()
        self._moves = self._shell is None and getattr(sys.stderr, "isatty", bool)()
        self._handle, self._shown, self._over = None, time.monotonic(), threading.Event()
        if not self._moves:
            values |= {"gui": True, "mininterval": LIVE, "miniters": 1}  # as tqdm calls what draws by itself
        elif values.get("unit") == "":
            values["bar_format"] = "{desc}: {elapsed}"
        super().__init__(*things, **values)
        if not self._moves and not self.disable:
            self.display()
            beat = (weakref.ref(self), self._over, self._shell, getattr(self._shell, "execution_count", None))
            threading.Thread(target=_keep_showing, args=beat, daemon=True).start()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self._moves:
            super().display(msg, pos)
        elif self._shell is not None:
            self._display_in_notebook(over=False)
        elif time.monotonic() - self._shown >= EVERY:
            self._print()

    def clear(self, nolock: bool = False) -> None:
        if self._moves:
            super().clear(nolock)

    def note(self, words: str) -> None:
        """What stands behind the count from here on, shown as soon as a count would be."""
        self.set_postfix_str(words, refresh=time.monotonic() - self._shown >= LIVE)

    def close(self) -> None:
        live = not getattr(self, "disable", True)
        super().close()
        if not live or self._moves:
            return
        self._over.set()
        if self._shell is not None:
            self._display_in_notebook(over=True)
        else:
            self._print()

    def words(self) -> str:
        """The bar in one line of words."""
        amount = tqdm.format_sizeof if self.unit_scale else "{:,}".format
        count = f"{amount(self.n)} of {amount(self.total)}" if self.total else amount(self.n)
        spent = time.time() - self.start_t
        counted = f"{count} {self.unit}, " if self.unit else ""
        words = f"{self.desc.removesuffix(': ') or 'progress'}: {counted}{tqdm.format_interval(spent)}"
        done = self.n - self.initial
        if self.total and done > 0 and self.n < self.total and not self._over.is_set():
            words += f", about {tqdm.format_interval(spent / done * (self.total - self.n))} left"
        return f"{words}; {self.postfix}" if self.postfix else words

    def _print(self) -> None:
        self._shown = time.monotonic()
        print(self.words(), file=sys.stderr, flush=True)

    def _display_in_notebook(self, over: bool) -> None:
        from IPython.display import display

        if self._handle is None and time.time() - self.start_t < BRIEF:
            return
        self._shown, words = time.monotonic(), self.words()
        share = f' value="{self.n / self.total:.3f}"' if self.total else ""
        line = f'<div style="font-size:90%;opacity:.8"><progress max="1"{share}></progress> {html.escape(words)}</div>'
        shown = {"text/plain": words, "text/html": line}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True, metadata={PROGRESS: over})
        else:
            self._handle.update(shown, raw=True, metadata={PROGRESS: over})


def _notebook() -> Any:
    """The shell of the notebook that this runs in, or None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _keep_showing(bar: weakref.ref, over: threading.Event, shell: Any, cell: int | None) -> None:
    """Show a bar again where nothing was counted, until it is closed, or gone, or its cell has ended without it."""
    while not over.wait(1.0) and (shown := bar()) is not None and getattr(shell, "execution_count", None) == cell:
        first = shell is not None and shown._handle is None
        if first or time.monotonic() - shown._shown >= (EVERY if shell is None else BEAT):
            shown.refresh()
        del shown
