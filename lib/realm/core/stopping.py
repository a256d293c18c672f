"""Somebody asks this run to stop and means to go on later: a cluster that takes its node back, say.

The wish is a file whose name stands in an environment variable, so that a notebook, its kernel and the processes that
it launched hear of it alike, each at the next moment at which nothing is lost; ``cluster/job.sh`` makes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from realm.core.errors import OneLineError

STOP_VARIABLE = "REALM_STOP_FILE"


class Stopped(OneLineError, RuntimeError):
    """The run ends here because it was asked to; the message says what is kept."""


def may_be_stopped() -> bool:
    return bool(os.environ.get(STOP_VARIABLE))


def stop_is_asked() -> bool:
    """Whether that file is there."""
    path = os.environ.get(STOP_VARIABLE)
    return bool(path) and Path(path).exists()
