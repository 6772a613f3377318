"""Finds the attributes of each image in a DICOM file.

The image of a classic object is described in the file's data set, a frame of an enhanced object in functional groups,
per frame or shared by all (DICOM PS3.3, C.7.6.16). This module hides the difference.
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
    UID_dictionary,
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
"""Modalities of the SOP classes that are read."""

Place = Callable[[str], Dataset]
"""The data set that holds the attributes of a functional group, by its sequence's keyword; empty if there is none."""


def words_for(sop_class: str) -> str:
    """What an object of a SOP class is, for messages about other objects than images of CT and MR."""
    name = UID_dictionary[sop_class][0].removesuffix(" Storage") if sop_class in UID_dictionary else "an unknown kind"
    return f"DICOM, but neither CT nor MR: {name}"


def name_of_class(sop_class: str) -> str:
    """The name of a SOP class in counts, such as "RT dose"."""
    if sop_class not in UID_dictionary:
        return "unknown DICOM object"
    words = UID_dictionary[sop_class][0].removesuffix(" Storage").split()
    return " ".join(word if word.isupper() else word.lower() for word in words)


def images_in(header: Dataset) -> Iterator[tuple[int | None, Place]]:
    """The images of a CT or MR object: index of the frame (None in a classic object), and a function that finds its
    groups.

    Raises:
        Unusable: if the functional groups are missing, or their number differs from that of the frames.
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
