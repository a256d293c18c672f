"""What a reader saw of a file: records read, skipped and noted, and what of them was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from realm.conversations.conversation import ConversationFileError

EXAMPLES_KEPT = 5
NAME_SHOWN = 40  # characters of a role's or a key's name
KEYS_KEPT = 30
LEFT_OUT = " left out"


@dataclass
class ReadReport:
    """What a reader saw. ``skipped`` records yielded nothing; ``noted`` ones were yielded as they are, or without
    what ``left_out`` counts: rejected answers, tool turns, branches, parts that are no text.

    ``lost_bytes`` counts bytes after the last complete record of a truncated file, or after an array's end;
    they begin at byte ``lost_from``. ``keys``: those of records in which no turns were found. ``stopped``: a Hub data
    set was read no further than asked.
    """

    path: str = ""
    layout: str = ""
    records: int = 0
    bytes_read: int = 0
    lost_bytes: int = 0
    lost_from: int = 0
    truncated: bool = False
    stopped: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    skipped_ids: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        return self.records - self.skipped.total()

    @property
    def file_defect(self) -> str:
        """What is wrong with the file as a whole."""
        return "truncated file" if self.truncated else "text after the array" if self.lost_bytes else ""

    def account(self, name: str, skipped: bool, defects: list[str], left_out: Counter[str]) -> None:
        """Count one record. A skipped one has one defect, the first that was met, so that read + skipped = records."""
        if skipped:
            self.skipped_ids.append(name)
            left_out = Counter()
        self.left_out.update(+left_out)
        for defect in dict.fromkeys([*defects, *(kind + LEFT_OUT for kind in +left_out)]):
            (self.skipped if skipped else self.noted)[defect] += 1
            examples = self.examples.setdefault(defect, [])
            if len(examples) < EXAMPLES_KEPT:
                examples.append(name)

    def see_keys(self, record: Any) -> None:
        """Remember the keys of a record in which no turns were found, so that the reader can be told them."""
        for key in record if isinstance(record, dict) else ():
            name = shown(key)
            if name in self.keys or len(self.keys) < KEYS_KEPT:
                self.keys[name] += 1

    def require_conversations(self) -> None:
        """Raise ConversationFileError if there were records and none of them could be used."""
        if self.read == 0:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self.skipped.most_common()) or "no record at all"
            keys = f"; keys of its records: {', '.join(self.keys)}" if self.keys else ""
            raise ConversationFileError(
                f"{self.path}: holds no conversation ({reasons}){keys}; see README, Your own data"
            )

    def rows(self) -> list[dict[str, Any]]:
        """One row a defect, for a table."""
        rows = [
            {"defect": name, "records": n, "treatment": self._treatment(name, how), "examples": self.examples[name]}
            for how, counts in (("skipped", self.skipped), ("kept, noted", self.noted))
            for name, n in counts.most_common()
        ]
        if self.file_defect:
            place = f"record {self.records} at byte {self.lost_from}"
            lost = f"{self.lost_bytes:,} bytes lost"
            rows.append({"defect": self.file_defect, "records": 1, "treatment": lost, "examples": [place]})
        return rows

    def _treatment(self, defect: str, how: str) -> str:
        if defect == "no turns" and self.keys:
            return f"{how}; their keys: {', '.join(self.keys)}"
        left_out = self.left_out[defect.removesuffix(LEFT_OUT)] if defect.endswith(LEFT_OUT) else 0
        return f"kept without, {left_out:,} in all" if left_out else how


def shown(name: Any) -> str:
    """A name out of a file, short and in characters that can be written."""
    return str(name)[:NAME_SHOWN].encode("utf-8", "backslashreplace").decode()
