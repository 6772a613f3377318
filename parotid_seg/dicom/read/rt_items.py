"""Assigns contours and names to the structures of an RT Structure Set.

A structure has an item in StructureSetROISequence with its name, and one in ROIContourSequence with its contours; a
number links the two. This module handles files with wrong numbers or character sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydicom.dataset import Dataset

from parotid_seg.dicom.read.identity_words import contains_any, secrets_of
from parotid_seg.dicom.read.text import Text, text_of
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.codes import plain

SHORTEST_SECRET = 3
"""Fewest characters of a part of a name; shorter ones occur in too many words."""
SECRET = "(a name that tells who the patient is)"


class RoiItem(NamedTuple):
    """A structure as in its file.

    Attributes:
        roi: its item in StructureSetROISequence.
        number: its ROINumber; other structures may have the same.
        name: its name, with other readings of its bytes.
        shown: the name for messages and lists: on one line, and hidden if it contains the patient's name.
        contours: items of its ContourSequence.
        fault: why its contours cannot be separated from those of others; empty if they can.
        flags: remarks on its name and number.
    """

    roi: Dataset
    number: int
    name: Text
    shown: str
    contours: tuple[Dataset, ...]
    fault: str
    flags: tuple[Flag, ...]


def items_of(dataset: Dataset) -> Iterator[RoiItem]:
    """The structures of a structure set, in its order.

    If several have the same number, the first gets the first contours with this number, the second the second, and so
    on. This requires that both sequences have the number equally often, and all numbers in the same order; otherwise
    none of these structures gets contours.
    """
    rois = list(dataset.StructureSetROISequence or ())
    drawn = [(int(each.ReferencedROINumber), each) for each in dataset.get("ROIContourSequence") or ()]
    numbers = [int(each.ROINumber) for each in rois]
    in_order = _common(numbers, [number for number, _ in drawn]) == _common([number for number, _ in drawn], numbers)
    names, secrets = [text_of(each, "ROIName", dataset) for each in rois], secrets_of(dataset, SHORTEST_SECRET)
    shown = [SECRET if contains_any(name, secrets) else plain(name.value) for name in names]
    seen = Counter[int]()
    for roi, number, name, title in zip(rois, numbers, names, shown, strict=True):
        place, seen[number] = seen[number], seen[number] + 1
        items = [tuple(each.get("ContourSequence") or ()) for other, each in drawn if other == number]
        sharing = [other for other, its in zip(shown, numbers, strict=True) if its == number]
        contours, fault, flags = _own(items, place, sharing, number, in_order)
        if name.undeclared:
            flags = (*flags, Flag(FlagCode.NAME_NOT_DECLARED))
        yield RoiItem(roi, number, name, title, contours, fault, flags)


def _common(numbers: Iterable[int], others: Iterable[int]) -> list[int]:
    known = set(others)
    return [number for number in numbers if number in known]


def _own(
    items: list[tuple[Dataset, ...]], place: int, sharing: list[str], number: int, in_order: bool
) -> tuple[tuple[Dataset, ...], str, tuple[Flag, ...]]:
    """Contours, fault and flags of a structure.

    Args:
        items: contours of the items in ROIContourSequence with its number.
        place: how many earlier structures have the number.
        sharing: names of all structures that have it.
        number: the number.
        in_order: whether both sequences have their numbers in the same order.
    """
    with_contours = [each for each in items if each]
    if not with_contours:
        return (), "", ()
    if len(sharing) == 1 and len(with_contours) == 1:
        return with_contours[0], "", ()
    if len(sharing) > 1 and len(items) == len(sharing) and in_order:
        return items[place], "", (Flag(FlagCode.NUMBER_TWICE, value=len(sharing)),)
    owners = f"{len(sharing)} structures ({', '.join(sharing)})" if len(sharing) > 1 else "one structure"
    return (), f"found the ROINumber {number} for {owners} and for contours of {len(items)}, expected it once each", ()
