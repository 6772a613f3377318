"""left_out.csv: every file, series, structure set and ROI that was not used, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import ParotidSegError
from parotid_seg.scan.codes import plain
from parotid_seg.tables import write_csv

FILE, SERIES, STRUCTURES, ROI = "file", "series", "structure set", "ROI"


@dataclass(frozen=True)
class NotUsed:
    """An item that was not used.

    Attributes:
        kind: FILE, SERIES, STRUCTURES or ROI.
        place: its file, or a series' folder.
        reason: one line, without the place.
        name: of a ROI.
        wanted: whether it looks usable and needs review.
    """

    kind: str
    place: Path
    reason: str
    name: str = ""
    wanted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", plain(self.reason))

    @classmethod
    def because(cls, kind: str, place: Path, error: ParotidSegError) -> NotUsed:
        """An item that cannot be used because of an error; the error's path is named if it differs from the place."""
        return cls(kind, place, error.reason if error.path in (None, place) else str(error), wanted=True)

    def __str__(self) -> str:
        """One line."""
        return ": ".join(filter(None, (f"{self.kind} {self.place}", self.name, self.reason)))


def write_left_out(items: Iterable[NotUsed], path: Path) -> None:
    """Write a row for each item; no cell can act as a spreadsheet formula.

    Raises:
        OutputError: if that fails.
    """
    rows = [[each.kind, each.name, each.reason, "yes" if each.wanted else "", str(each.place)] for each in items]
    write_csv([["kind", "name", "reason", "look_at_it", "place"], *rows], path)
