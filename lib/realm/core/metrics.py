"""The numbers of a stage: flat records with interval, n, unit and source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from realm.core.files import read_json, write_json

THIS_RUN = "this run"
PUBLISHED = "published"
ROUNDING = 1e-12  # nothing measured here is nearer to 0 than that, and not 0


@dataclass(frozen=True)
class Metric:
    """One number with all that is needed to quote it. Intervals are 95 % unless the unit says otherwise."""

    name: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unit: str = ""
    source: str = THIS_RUN

    def __str__(self) -> str:
        limits = "" if self.ci_low is None else f" [{number(self.ci_low)}, {number(self.ci_high)}]"
        return number(self.value) + limits


class Metrics:
    """The flat records of one stage, in the order they were added; ``save`` writes ``metrics.json``."""

    def __init__(self, records: list[Metric] | None = None):
        self._records = {r.name: r for r in records or []}

    def add(self, name: str, value: float, *, ci: tuple[float, float] | None = None, **fields: Any) -> Metric:
        """Add or replace a record. ``fields``: n, unit, source. Raises ValueError for a value that is no number."""
        if isinstance(value, bool) or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"metric {name} has no finite value: {value}")
        number = int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
        if ci is not None and fields.get("n") == 1 and all(map(math.isnan, ci)):
            ci = None  # one conversation has no interval, and n says so
        if ci is not None and not all(math.isfinite(limit) for limit in ci):
            raise ValueError(f"metric {name} has an interval that is not finite: {ci}")
        low, high = (float(ci[0]), float(ci[1])) if ci is not None else (None, None)
        self._records[name] = Metric(name, number, low, high, **fields)
        return self._records[name]

    def __getitem__(self, name: str) -> Metric:
        try:
            return self._records[name]
        except KeyError:
            raise KeyError(f"no metric {name}; there are: {', '.join(self._records)}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._records.values())

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(r) for r in self]

    def save(self, folder: str | Path) -> Path:
        path = Path(folder) / "metrics.json"
        write_json(path, self.rows())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Metrics:
        return cls([Metric(**r) for r in read_json(Path(folder) / "metrics.json")])


def number(value: float) -> str:
    """Whole numbers with separators, others to four significant digits; what rounding alone left of zero is 0."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{0.0 if abs(value) < ROUNDING else value:.4g}"


def interval(metric: Metric) -> str:
    return "" if metric.ci_low is None else f"{number(metric.ci_low)} to {number(metric.ci_high)}"
