"""Starts a new structure set from an existing one, with its structures and the new ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.rt_items import items_of
from parotid_seg.dicom.read.rt_read import check_frame, frames_of, read_structure_set
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.text import decode_undeclared
from parotid_seg.dicom.write.identity import UTF8, fits, refer_to
from parotid_seg.dicom.write.objects import add_contributor
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.codes import ALL_ROIS, Rois, Structure, plain_uid, structures_of

DROPPED = ("ReviewDate", "ReviewTime", "ReviewerName", "DigitalSignaturesSequence", "MACParametersSequence")
"""Attributes that apply to the existing structure set only: its approval and its signatures."""
NUMBERS = (
    ("StructureSetROISequence", "ROINumber"),
    ("ROIContourSequence", "ReferencedROINumber"),
    ("RTROIObservationsSequence", "ObservationNumber"),
)
"""Sequences that structures are added to, and the numbers in their items."""


def copy_for_appending(
    path: Path, series: Series, source: Dataset, labels: tuple[str, ...], model: str, rois: Rois = ALL_ROIS
) -> tuple[Dataset, tuple[Structure, ...], tuple[Flag, ...]]:
    """A new structure set with the content of an existing one, and the structures of a mask under unused names.

    Args:
        path: the existing structure set.
        series, source: the series of the mask, and the header of its first slice.
        labels: names by value, background first.
        model: the model that made the mask.
        rois: which labels become structures, and their names and colours.

    Returns:
        The new set, the structures, and flags on the existing set.

    Raises:
        ScanError: if it cannot be read, is of another patient, study or frame of reference, or has a number twice.
    """
    dataset = read_structure_set(path)
    with phi_safe(path, "RT structure set"):
        _check(path, dataset, series, source)
        for sequence, _ in NUMBERS:
            setattr(dataset, sequence, list(dataset.get(sequence) or ()))
        items = list(items_of(dataset))
        _check_numbers(dataset, [each.shown for each in items], path)
        structures = structures_of(labels, [each.name.value for each in items], rois)
        if not fits([model, *(each.name for each in structures)], dataset):
            decode_undeclared(dataset)
            dataset.decode()
            dataset.SpecificCharacterSet = UTF8
        before = Dataset()
        before.ReferencedSOPClassUID, before.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        dataset.PredecessorStructureSetSequence = [before]
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        add_contributor(dataset)
        for keyword in DROPPED:
            if keyword in dataset:
                del dataset[keyword]
        refer_to(series, dataset, source.get("NumberOfFrames"))
        if not dataset.get("FrameOfReferenceUID"):  # of the whole set, which many systems omit
            dataset.FrameOfReferenceUID = series.frame_of_reference_uid
            dataset.PositionReferenceIndicator = dataset.get("PositionReferenceIndicator") or ""
    without = sum(not each.roi.get("ReferencedFrameOfReferenceUID") for each in items)
    flags = (Flag(FlagCode.APPENDED_WITHOUT_FRAME, value=without),) if without else ()
    return dataset, structures, flags


def _check(path: Path, dataset: Dataset, series: Series, source: Dataset) -> None:
    """Raise ScanError unless a structure set is of the series' patient, study and frame of reference."""
    if dataset.StudyInstanceUID != series.study_uid:
        found, expected = plain_uid(dataset.StudyInstanceUID), plain_uid(series.study_uid)
        raise ScanError(f"of another study: found {found}, expected {expected}", path=path)
    if (dataset.get("PatientID") or "") != (source.get("PatientID") or ""):
        raise ScanError("of another patient than the series: the PatientIDs differ", path=path)
    stated = {
        str(each.get("ReferencedFrameOfReferenceUID") or "") for each in dataset.get("StructureSetROISequence") or ()
    }
    check_frame((frames_of(dataset) | stated) - {""}, series, path)
    if frame_uid := str(dataset.get("FrameOfReferenceUID") or ""):
        check_frame({frame_uid}, series, path, "as a whole ")


def _check_numbers(dataset: Dataset, shown: list[str], path: Path) -> None:
    """Decode every number, so that a damaged one is found before anything is added, and check that none is used twice.

    Args:
        dataset: the structure set.
        shown: names of its structures for messages.
        path: its file.

    Raises:
        ScanError: if several structures have one number, or several items have its contours.
    """
    numbers = {keyword: [int(each[keyword].value) for each in dataset[sequence].value] for sequence, keyword in NUMBERS}
    for keyword in ("ROINumber", "ReferencedROINumber"):
        number, count = max(Counter(numbers[keyword]).items(), key=lambda item: item[1], default=(0, 1))
        if count > 1:
            names = [name for name, its in zip(shown, numbers["ROINumber"], strict=True) if its == number]
            raise ScanError(
                f"found the {keyword} {number} {count} times ({', '.join(names) or 'no name'}), expected once: "
                "structures that share a number can be confused, so nothing is added to them",
                path=path,
            )
