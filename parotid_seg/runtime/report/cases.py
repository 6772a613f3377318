"""What a report says of a case: its flags, how grave they are, and which case comes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.flag_text import severity_of
from parotid_seg.runtime.report.patients import Patient
from parotid_seg.scan.labels import is_parotid, side_of

LARGEST_RATIO = 1.6
"""Of the larger to the smaller gland without a flag. In 187 of the 191 contoured training and validation patients it is
less; their median is 1.12."""


@dataclass(frozen=True)
class Judged:
    """A case as the report shows it.

    Attributes:
        entry: what the journal has of it.
        name: what it is called.
        failed: whether it has no mask.
        ratio: volume of the larger to that of the smaller parotid gland; None unless there are one left and one right.
        flags: the entry's, and one if the sides differ too much; of a failed case none.
        reason: why it failed, with the file's name, but not its folders, whose names may tell who the patient is.
        severity: sum over the flags, see `flag_text.severity_of`.
        patient: None unless that is to be told.
    """

    entry: Entry
    name: str
    failed: bool
    ratio: float | None
    flags: tuple[Flag, ...]
    reason: str
    severity: int
    patient: Patient | None = None

    @property
    def rank(self) -> tuple[object, ...]:
        """Worst first: failed, then the severity of the flags, low agreement, unequal sides; then by name."""
        agreement = min(self.entry.agreement.values(), default=1.0)
        return (not self.failed, -self.severity, agreement, -(self.ratio or 1.0), self.name)

    @property
    def status(self) -> str:
        """One word: "failed", "check" if there are flags, else "done"."""
        return "failed" if self.failed else "check" if self.flags else "done"


def judge(entry: Entry) -> Judged:
    """What a report says of a case."""
    ratio = asymmetry(entry.volumes_ml)
    flags = entry.flags
    if ratio and ratio > LARGEST_RATIO:
        flags = (*flags, Flag(FlagCode.SIDES_DIFFER, value=ratio))
    return Judged(
        entry=entry,
        name=entry.case or _name_of(entry.source),
        failed=entry.status == "failed",
        ratio=ratio,
        flags=flags,
        reason=f"{_name_of(entry.path)}: {entry.reason}" if entry.path else entry.reason,
        severity=sum(severity_of(flag.code) for flag in flags),
    )


def _name_of(path: str) -> str:
    """The last part of a path; all of it where that has no name, such as "."."""
    return Path(path).name or path


def worst_first(entries: Iterable[Entry]) -> list[Judged]:
    """All cases in the report's order, see `Judged.rank`."""
    return sorted(map(judge, entries), key=lambda case: case.rank)


def asymmetry(volumes_ml: dict[str, float]) -> float | None:
    """Volume of the larger to that of the smaller parotid gland; None unless there are one left and one right."""
    sides = {
        side_of(name): size for name, size in volumes_ml.items() if is_parotid(name) and side_of(name) and size > 0
    }
    return max(sides.values()) / min(sides.values()) if len(sides) == 2 else None
