"""Recognises faults by how masks differ from others: sides exchanged, a shift by whole voxels, a part that is missing.

A model's ordinary errors differ from patient to patient. A fault of names, geometry or processing does the same to all
of them, or leaves the rest of a structure right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parotid_seg.commission.record import FaultKind, FaultRecord
from parotid_seg.metrics import dice, mean_with_interval
from parotid_seg.runtime.evaluation import dsc_of_sides, exchanged_in
from parotid_seg.scan.components import label_boxes
from parotid_seg.scan.labels import plain_name
from parotid_seg.scan.volume import Mask
from parotid_seg.wording import counted, some_of

REACH = 2
"""Largest shift that is tried, in voxels along each axis."""
STEPS = tuple(itertools.product(range(-REACH, REACH + 1), repeat=3))
"""Shifts of a mask in voxels (slices, rows, columns), in the order of `Signs.shifted`."""
HERE = STEPS.index((0, 0, 0))
FEWEST = 3
"""Fewest patients in which a shift that does not make masks equal is recognised."""
LEAST_GAIN = 0.005
"""Least gain of mean DSC by a shift."""
LEAST_SHARE = 0.7
"""Least share of the patients whose DSC gains by it."""
EQUAL = 0.98
"""DSC from which masks count as the same but for the fault."""
LEAST_PART = 0.35
"""Least share of a structure that lies beyond the end of the other mask."""
REST = 0.6
"""Least DSC of the rest of the structure: only then is it cut off, and not wrong as a whole."""
TOWARDS = (("inferior", "superior"), ("anterior", "posterior"), ("the right", "the left"))
"""Directions of falling and rising indices along each canonical axis."""
PARTS = (("lower", "upper"), ("front", "back"), ("right", "left"))
"""Parts of a structure at the beginning and the end of each axis."""


class End(NamedTuple):
    """One end of a structure.

    Attributes:
        structure: its name.
        axis: 0 to 2, of the canonical order.
        rising: whether it is the end of the highest index.
    """

    structure: str
    axis: int
    rising: bool

    def __str__(self) -> str:
        return f"{PARTS[self.axis][self.rising]} part of the {plain_name(self.structure)}"


@dataclass(frozen=True)
class Signs:
    """How a patient's mask differs from another one.

    Attributes:
        shifted: DSC of all structures together if the mask is shifted by each of `STEPS`.
        exchanged: DSC as it is and with the sides exchanged, over the structures with a side; None without sides.
        missing, beyond: for each end the share of the other mask's structure that lies beyond this one's, and of this
            mask's that lies beyond the other's; only where the rest agrees.
        absent: structures that only the other mask has.
    """

    shifted: NDArray[np.float64]
    exchanged: tuple[float, float] | None
    missing: Mapping[End, float]
    beyond: Mapping[End, float]
    absent: tuple[str, ...]


def signs_of(mask: Mask, other: Mask, names: Sequence[str]) -> Signs:
    """Compare a patient's mask with another one of the same voxels.

    Args:
        mask, other: label maps (D, H, W), slices to superior, rows to posterior, columns to the patient's left.
        names: of the labels of both by value, background first.
    """
    boxes = label_boxes(np.asarray((mask > 0) | (other > 0), np.uint8), 1)
    if boxes[0] is None:
        return Signs(np.zeros(len(STEPS)), None, {}, {}, ())
    mask, other = mask[boxes[0]], other[boxes[0]]
    missing: dict[End, float] = {}
    beyond: dict[End, float] = {}
    absent = []
    for value, name in enumerate(names[1:], start=1):
        this, that = mask == value, other == value
        if that.any() and not this.any():
            absent.append(name)
        missing |= dict(_cut_off(this, that, name))
        beyond |= dict(_cut_off(that, this, name))
    return Signs(_shifted(mask, other), dsc_of_sides(mask, other, names), missing, beyond, tuple(absent))


def _shifted(mask: Mask, other: Mask) -> NDArray[np.float64]:
    mask, other = np.pad(mask, REACH), np.pad(other, REACH)
    inside, total = other > 0, int(np.count_nonzero(mask)) + int(np.count_nonzero(other))
    shared = [np.count_nonzero((np.roll(mask, step, (0, 1, 2)) == other) & inside) for step in STEPS]
    return 2.0 * np.array(shared) / total


def _cut_off(short: NDArray[np.bool_], whole: NDArray[np.bool_], name: str) -> Iterator[tuple[End, float]]:
    """Ends of a structure at which one mask stops short of the other, with the share that lies beyond."""
    if not short.any() or not whole.any():
        return
    for axis in range(3):
        across = tuple(each for each in range(3) if each != axis)
        ends = np.flatnonzero(short.any(axis=across))
        for rising, kept in ((False, slice(ends[0], None)), (True, slice(None, ends[-1] + 1))):
            index = tuple(kept if each == axis else slice(None) for each in range(3))
            share = 1 - np.count_nonzero(whole[index]) / np.count_nonzero(whole)
            if share >= LEAST_PART and dice(short[index], whole[index]) >= REST:
                yield End(name, axis, rising), float(share)


@dataclass(frozen=True)
class _Compared:
    """The signs of all patients, and what was compared.

    Attributes:
        signs: by patient.
        others, counted: see `faults_in`.
    """

    signs: Mapping[str, Signs]
    others: str
    counted: str

    def fault(self, kind: FaultKind, text: str, names: Sequence[str]) -> FaultRecord:
        """A fault, in words that end with the patients that show it."""
        count = f"{len(names)} of {len(self.signs)} {self.counted} ({some_of(names)})"
        return FaultRecord(kind=kind, text=f"{text}: {count}", patients=[*names], of=len(self.signs))


def faults_in(signs: Mapping[str, Signs], others: str, counted: str = "patients") -> list[FaultRecord]:
    """The faults that patients show, in words.

    Args:
        signs: by patient.
        others: what the masks were compared with, in the plural: "references".
        counted: what the patients are called.
    """
    compared = _Compared(signs, others, counted)
    return [
        *_sides(compared),
        *_shift(compared),
        *_parts(compared, "part_missing", "masks", others, lambda each: each.missing),
        *_parts(compared, "part_beyond", others, "masks", lambda each: each.beyond),
        *_absent(compared),
    ]


def _sides(compared: _Compared) -> Iterator[FaultRecord]:
    dsc = {name: each.exchanged for name, each in compared.signs.items() if each.exchanged}
    text, exchanged = exchanged_in(dsc, "masks", compared.others)
    if exchanged:
        yield compared.fault("sides_exchanged", text, exchanged)


def _shift(compared: _Compared) -> Iterator[FaultRecord]:
    whole = [each for each in compared.signs.values() if not (each.missing or each.beyond)]
    shifted = np.array([each.shifted for each in whole if each.shifted.any()])
    if not len(shifted):
        return
    best = int(np.argmax(shifted.mean(axis=0)))
    gains = shifted[:, best] - shifted[:, HERE]
    now, then = float(shifted[:, HERE].mean()), float(shifted[:, best].mean())
    if best == HERE or gains.mean() < LEAST_GAIN or (gains > 0).mean() < LEAST_SHARE:
        return
    if then < EQUAL:
        _, low, _ = mean_with_interval(list(gains))
        if len(gains) < FEWEST or not low > 0:
            return
    text = (
        f"the masks seem shifted against the {compared.others} by {_step_in_words(STEPS[best])}, mean DSC "
        f"{now:.3f}, {then:.3f} when shifted back"
    )
    seen = [name for name, each in compared.signs.items() if each.shifted[best] > each.shifted[HERE]]
    yield compared.fault("shifted", text, seen)


def _step_in_words(back: tuple[int, ...]) -> str:
    """The shift that a shift by these voxels takes back."""
    parts = [f"{counted(abs(step), 'voxel')} to {TOWARDS[axis][step < 0]}" for axis, step in enumerate(back) if step]
    return " and ".join(parts)


def _parts(
    compared: _Compared, kind: FaultKind, short: str, whole: str, parts: Callable[[Signs], Mapping[End, float]]
) -> Iterator[FaultRecord]:
    """Ends of structures at which the short ones lack what the whole ones have."""
    by_end: dict[End, dict[str, float]] = {}
    for name, each in compared.signs.items():
        for end, share in parts(each).items():
            by_end.setdefault(end, {})[name] = share
    for end, shares in by_end.items():
        mean = np.mean([*shares.values()])
        text = f"the {end} is missing in the {short}, {mean:.0%} of its volume in the {whole}, while the rest agrees"
        yield compared.fault(kind, text, [*shares])


def _absent(compared: _Compared) -> Iterator[FaultRecord]:
    for structure in dict.fromkeys(name for each in compared.signs.values() for name in each.absent):
        lacking = [name for name, each in compared.signs.items() if structure in each.absent]
        text = f"the {plain_name(structure)} is missing in the masks, but not in the {compared.others}"
        yield compared.fault("structure_missing", text, lacking)
