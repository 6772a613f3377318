"""References of DICOM objects to the images of a series and to frames (PS3.3, C.8.8.5 and 10.3)."""

from __future__ import annotations

from pydicom.dataset import Dataset

from parotid_seg.dicom.read.series import Series, Slice

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: retired, but still the SOP class by which a structure set refers to a study."""


def slice_reference(image: Slice) -> Dataset:
    """A reference to a slice: its image, and its frame if the image has several."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    if image.frame is not None:
        item.ReferencedFrameNumber = image.frame + 1
    return item


def image_references(series: Series, frames_in_file: int | None) -> list[Dataset]:
    """A reference to each image of a series, with frame numbers only if not all frames belong to the series.

    Args:
        frames_in_file: of a multi-frame source.
    """
    frames: dict[str, list[int]] = {}
    for each in series.slices:
        if each.frame is not None:
            frames.setdefault(each.sop_instance_uid, []).append(each.frame + 1)
    references = {each.sop_instance_uid: slice_reference(each) for each in series.slices}
    for uid, numbers in frames.items():
        del references[uid].ReferencedFrameNumber
        if len(numbers) != frames_in_file:
            references[uid].ReferencedFrameNumber = sorted(numbers)
    return list(references.values())


def refer_to(series: Series, structure_set: Dataset, frames_in_file: int | None) -> None:
    """Make a structure set refer to a series and all its images, adding missing references."""
    frame = _item(
        structure_set, "ReferencedFrameOfReferenceSequence", "FrameOfReferenceUID", series.frame_of_reference_uid
    )
    study = _item(frame, "RTReferencedStudySequence", "ReferencedSOPInstanceUID", series.study_uid)
    if "ReferencedSOPClassUID" not in study:
        study.ReferencedSOPClassUID = STUDY_CLASS
    referenced_series = _item(study, "RTReferencedSeriesSequence", "SeriesInstanceUID", series.series_uid)
    images = list(referenced_series.get("ContourImageSequence") or ())
    there = {each.get("ReferencedSOPInstanceUID") for each in images}
    new = [each for each in image_references(series, frames_in_file) if each.ReferencedSOPInstanceUID not in there]
    referenced_series.ContourImageSequence = [*images, *new]


def _item(dataset: Dataset, sequence: str, key: str, value: str) -> Dataset:
    """The item of a sequence that has a value, added if it is missing."""
    items = list(dataset.get(sequence) or ())
    for each in items:
        if each.get(key) == value:
            return each
    item = Dataset()
    setattr(item, key, value)
    setattr(dataset, sequence, [*items, item])
    return item
