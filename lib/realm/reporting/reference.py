"""The committed runs: where their metrics are. Apart from the report, on which no notebook's results rest."""

from __future__ import annotations

from pathlib import Path

from realm.core.files import REPOSITORY, read_json
from realm.core.metrics import Metric

REFERENCE_METRICS = REPOSITORY / "figures" / "reference_metrics.json"
REFERENCE_PROFILE = "cpu"  # its run fills figures/ itself; a run of another profile has a folder there
LONG_PROFILE = "cpu-long"


def reference_metrics_path(profile: str) -> Path:
    """Where the published run of a profile has its metrics, and beside them its figures."""
    folder = REFERENCE_METRICS.parent
    return (folder if profile == REFERENCE_PROFILE else folder / profile) / REFERENCE_METRICS.name


def reference_metrics(profile: str = REFERENCE_PROFILE) -> dict[str, Metric]:
    """All metrics of the committed run of a profile by name. Raises ArtefactError if there is none."""
    joined = read_json(reference_metrics_path(profile))
    return {r["name"]: Metric(**r) for stage in joined.values() for r in stage["metrics"]}
