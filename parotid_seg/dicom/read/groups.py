"""Which part of a DICOM file speaks of which image.

An image of a classic object is described in its file's data set, a frame of an enhanced one in functional groups, its
own or shared by all (DICOM PS3.3, C.7.6.16). Here both look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from parotid_seg.dicom.read.values import Unusable, integer_of, item_of, items_of, text_of

SINGLE: dict[str, str] = {CTImageStorage: "CT", MRImageStorage: "MR"}
MULTI: dict[str, str] = {
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
}
MODALITIES = SINGLE | MULTI
"""Of the SOP classes that are read."""

Place = Callable[[str], Dataset]
"""The data set that holds the attributes of a functional group, by its sequence's keyword; empty if there is none."""


def images_in(header: Dataset) -> Iterator[tuple[int | None, Place]]:
    """The images of a CT or MR object: number of the frame, None in a classic object, and where it is described.

    Raises:
        Unusable: if the functional groups are missing, or of another number than the frames.
    """
    if text_of(header, "SOPClassUID") in SINGLE:
        if integer_of(header, "NumberOfFrames", 1) != 1:
            raise Unusable("several frames in an object that is defined for one")
        yield None, lambda sequence: header
        return
    shared = item_of(header, "SharedFunctionalGroupsSequence") or Dataset()
    per_frame, frames = items_of(header, "PerFrameFunctionalGroupsSequence"), integer_of(header, "NumberOfFrames")
    if len(per_frame) != frames:
        raise Unusable(f"functional groups of {len(per_frame)} frames, expected {frames}")
    for index, groups in enumerate(per_frame):
        yield index, _in_groups(groups, shared)


def _in_groups(per_frame: Dataset, shared: Dataset) -> Place:
    def place(sequence: str) -> Dataset:
        return item_of(per_frame, sequence) or item_of(shared, sequence) or Dataset()

    return place
