"""Which metrics there may be, and what a reader calls them: ``metric_names.yaml``, by patterns."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("metric_names.yaml")
PLACE = re.compile(r"\{(\w+)\}")
ANY = r"[\w.+-]+?"  # a model's or a judge's own name


class MetricNames:
    """Patterns of names with their words: those of listed words alone come first, then the more literal."""

    def __init__(self, text: str):
        blocks = yaml.safe_load(text)
        self._words: dict[str, dict[str, str]] = blocks.pop("words")
        self.patterns: dict[str, str] = {p: words for block in blocks.values() for p, words in block.items()}
        self._compiled = [(self._expression(p), self.patterns[p]) for p in sorted(self.patterns, key=self._order)]

    def readable(self, name: str) -> str | None:
        """The words for a metric; None where no pattern fits, and so no such metric is known."""
        for expression, words in self._compiled:
            if found := expression.fullmatch(name):
                return PLACE.sub(lambda place, found=found: self.told(place[1], found[place[1]]), words)
        return None

    def _order(self, pattern: str) -> tuple[bool, int]:
        return not set(PLACE.findall(pattern)) <= set(self._words), -len(PLACE.sub("", pattern))

    def _expression(self, pattern: str) -> re.Pattern[str]:
        parts = PLACE.split(pattern)  # literal, place, literal, place, ...
        places = (
            f"(?P<{p}>{'|'.join(map(re.escape, self._words[p])) if p in self._words else ANY})" for p in parts[1::2]
        )
        return re.compile("".join(a + b for a, b in zip(map(re.escape, parts[::2]), [*places, ""], strict=True)))

    def told(self, place: str, word: str) -> str:
        """A word of a list in its words; itself where the list has it not."""
        return self._words.get(place, {}).get(word, word.replace("_", " "))


@cache
def metric_names() -> MetricNames:
    return MetricNames(FILE.read_text(encoding="utf-8"))


def readable(name: str) -> str:
    """A metric's name in words; the name itself where none are known."""
    return metric_names().readable(name) or name
