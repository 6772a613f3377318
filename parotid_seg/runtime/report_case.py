"""What a report says of a case: its flags in plain words, how grave they are, and which case comes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.runtime.journal import Entry
from parotid_seg.scan.labels import is_parotid, words

LARGEST_RATIO = 1.6
"""Of the larger to the smaller gland without a flag. In 187 of the 191 contoured training and validation patients it is
less; their median is 1.12."""
WEIGHTS = (
    ("missing", 8),
    ("no ", 8),
    ("may be swapped", 8),
    ("uncertain", 4),
    ("cut by", 4),
    ("unusual volume", 3),
    ("sides differ", 2),
)
"""How grave a flag is, by words in it; the first that fits counts. Anything else, mostly on geometry, weighs 1."""


@dataclass(frozen=True)
class Judged:
    """A case as the report shows it.

    Attributes:
        entry: what the journal has of it.
        name: what it is called.
        failed: whether it has no mask.
        ratio: volume of the larger to that of the smaller parotid gland; None unless there are one left and one right.
        flags: the entry's, and one if the sides differ too much; of a failed case none.
        reason: why it failed, without the folders of its scan, whose names may tell who the patient is.
        weight: sum over the flags.
    """

    entry: Entry
    name: str
    failed: bool
    ratio: float | None
    flags: tuple[str, ...]
    reason: str
    weight: int

    @property
    def rank(self) -> tuple[object, ...]:
        """Worst first: failed, then the weight of the flags, low agreement, unequal sides; then by name."""
        agreement = min(self.entry.agreement.values(), default=1.0)
        return (not self.failed, -self.weight, agreement, -(self.ratio or 1.0), self.name)

    @property
    def status(self) -> str:
        """One word: "failed", "check" if there are flags, else "done"."""
        return "failed" if self.failed else "check" if self.flags else "done"


def judge(entry: Entry) -> Judged:
    """What a report says of an entry."""
    ratio = asymmetry(entry.volumes_ml)
    differ = f"sides differ (the larger gland is {ratio:.2f} times the smaller)" if ratio else ""
    flags = (*entry.flags, differ) if ratio and ratio > LARGEST_RATIO else tuple(entry.flags)
    source = Path(entry.source)
    reason = entry.reason.replace(entry.source, source.name)
    if source.parent != source:
        reason = reason.replace(f"{source.parent}/", "")
    return Judged(
        entry=entry,
        name=entry.case or source.name,
        failed=entry.status == "failed",
        ratio=ratio,
        flags=flags,
        reason=reason,
        weight=sum(map(weight_of, flags)),
    )


def worst_first(entries: Iterable[Entry]) -> list[Judged]:
    """All cases in the report's order, see `Judged.rank`."""
    return sorted(map(judge, entries), key=lambda case: case.rank)


def asymmetry(volumes_ml: dict[str, float]) -> float | None:
    """Volume of the larger to that of the smaller parotid gland; None unless there are one left and one right."""
    sides = {
        side: size
        for name, size in volumes_ml.items()
        for side in words(name) & {"left", "right"}
        if is_parotid(name) and size > 0
    }
    return max(sides.values()) / min(sides.values()) if len(sides) == 2 else None


def weight_of(flag: str) -> int:
    """How grave a flag is, see `WEIGHTS`."""
    return next((weight for word, weight in WEIGHTS if word in flag), 1)
