"""Errors that a reader is meant to see: one line with what is wrong, where, and the fix."""

from __future__ import annotations

import sys
from collections.abc import Callable

from realm.core.secrets import redact


class OneLineError(Exception):
    """The base of this library's own errors: the message is for the reader, no traceback is needed beside it."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook in place of a traceback."""
        return [f"{type(self).__name__}: {redact(str(self))}"]


class TooFewError(OneLineError, ValueError):
    """Less is there than the profile asks for; the message names the step, the counts and the key to change."""


def exit_code(action: Callable[[], int | None], interrupted: str | Callable[[], str]) -> int:
    """Do what a command line asks for; its exit code, with one line on standard error where it failed.

    130 and the line ``interrupted`` where the reader stopped it. Other errors are faults of ours and are raised.
    """
    try:
        return action() or 0
    except OneLineError as error:
        tell(str(error))
    except PermissionError as error:
        tell(f"{error.filename}: cannot write here ({error.strerror}); check permissions")
    except KeyboardInterrupt:
        print(interrupted if isinstance(interrupted, str) else interrupted(), file=sys.stderr, flush=True)
        return 130
    return 1


def tell(message: str) -> None:
    """``error: MESSAGE`` on standard error, on one line, without keys."""
    print(f"error: {redact(' '.join(message.split()))}", file=sys.stderr, flush=True)


def note(message: str) -> None:
    """``note: MESSAGE`` on standard error, on one line, without keys: something is other than usual, not wrong."""
    print(f"note: {redact(' '.join(message.split()))}", file=sys.stderr, flush=True)
