"""A structure set that is there as the start of a new one, which has its structures and more."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from parotid_seg.dicom.discreet import discreet
from parotid_seg.dicom.identity import UTF8, fits
from parotid_seg.dicom.objects import add_contributor
from parotid_seg.dicom.references import refer_to
from parotid_seg.dicom.rt_read import check_frame, read_structure_set
from parotid_seg.dicom.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import Structure, plain_uid, structures_of

GONE = ("ReviewDate", "ReviewTime", "ReviewerName", "DigitalSignaturesSequence", "MACParametersSequence")
"""Attributes that are true of the structure set that was there only: its approval and its signatures."""
NUMBERS = (
    ("StructureSetROISequence", "ROINumber"),
    ("ROIContourSequence", "ReferencedROINumber"),
    ("RTROIObservationsSequence", "ObservationNumber"),
)
"""Sequences that structures are added to, and the numbers in their items."""


def opened(
    path: Path, series: Series, source: Dataset, labels: tuple[str, ...], model: str
) -> tuple[Dataset, tuple[Structure, ...]]:
    """A new structure set with all that one has, and the structures of a mask by names and numbers not taken yet.

    Args:
        path: the structure set that is there.
        series, source: what is to be added belongs to, and the header of its first slice.
        labels: names by value, background first.
        model: what made the mask.

    Raises:
        ScanError: if it cannot be read, or is of another patient, study or frame of reference.
    """
    dataset = read_structure_set(path)
    with discreet(path, "RT structure set"):
        _check(path, dataset, series, source)
        for sequence, _ in NUMBERS:
            setattr(dataset, sequence, list(dataset.get(sequence) or ()))
        _check_numbers(dataset)
        structures = structures_of(labels, [str(each.get("ROIName") or "") for each in dataset.StructureSetROISequence])
        if not fits([model, *(each.name for each in structures)], dataset):
            dataset.decode()
            dataset.SpecificCharacterSet = UTF8
        before = Dataset()
        before.ReferencedSOPClassUID, before.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        dataset.PredecessorStructureSetSequence = [before]
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        add_contributor(dataset)
        for keyword in GONE:
            if keyword in dataset:
                del dataset[keyword]
        refer_to(series, dataset, source.get("NumberOfFrames"))
    return dataset, structures


def _check(path: Path, dataset: Dataset, series: Series, source: Dataset) -> None:
    """Raise ScanError unless a structure set is of the series' patient, study and frame of reference."""
    if dataset.StudyInstanceUID != series.study_uid:
        found, expected = plain_uid(dataset.StudyInstanceUID), plain_uid(series.study_uid)
        raise ScanError(f"of another study: found {found}, expected {expected}", path=path)
    if (dataset.get("PatientID") or "") != (source.get("PatientID") or ""):
        raise ScanError("of another patient than the series: the PatientIDs differ", path=path)
    frames = {str(each.FrameOfReferenceUID) for each in dataset.get("ReferencedFrameOfReferenceSequence") or ()}
    frames |= {str(each.ReferencedFrameOfReferenceUID) for each in dataset.get("StructureSetROISequence") or ()}
    check_frame(frames, series, str(path))


def _check_numbers(dataset: Dataset) -> None:
    """Have every number decoded, so that a damaged one is found before something is added."""
    for sequence, keyword in NUMBERS:
        for each in dataset[sequence].value:
            int(each[keyword].value)
