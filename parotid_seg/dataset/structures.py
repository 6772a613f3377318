"""RTSTRUCT files: what they contour, and of which series. No contour is drawn here.

An RTSTRUCT names the images it was drawn on (Referenced Frame of Reference Sequence, DICOM PS3.3, C.8.8.5). Where those
are not among the files, for example because UIDs were changed, the frame of reference may still tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import RTStructureSetStorage

from parotid_seg.dicom.discreet import discreet
from parotid_seg.dicom.objects import MAKER
from parotid_seg.dicom.rt_read import read_structure_set
from parotid_seg.dicom.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import plain

SHORTEST_SECRET = 3
"""Characters: parts of a name that are shorter are in too many words."""


@dataclass(frozen=True)
class Roi:
    """One structure of a set.

    Attributes:
        number: different for each.
        name: as it stands in the file.
        shown: the name for messages and lists: on one line, and not if it names the patient.
        contours: how many it has.
        frame_of_reference_uid: of its contours.
        own: whether this package drew it.
    """

    number: int
    name: str
    shown: str
    contours: int
    frame_of_reference_uid: str
    own: bool = False


@dataclass(frozen=True)
class StructureSet:
    """An RTSTRUCT file.

    Attributes:
        label: StructureSetLabel.
        approval: ApprovalStatus.
        made: date and time, which order as texts; empty if there is none.
        patient_id: PatientID.
        series_uids, instance_uids, frame_uids: what it refers to: series, images, frames of reference.
    """

    path: Path
    sop_instance_uid: str
    label: str
    approval: str
    made: str
    rois: tuple[Roi, ...]
    series_uids: frozenset[str]
    instance_uids: frozenset[str]
    frame_uids: frozenset[str]
    patient_id: str = field(repr=False)


def is_rtstruct(path: Path) -> bool:
    """Whether a file is an RTSTRUCT by its head; False for what is no DICOM."""
    try:
        with discreet(path, "DICOM file"):
            with path.open("rb") as file:
                start = file.read(132)
            if start[128:] == b"DICM":
                return bool(read_file_meta_info(path).get("MediaStorageSOPClassUID") == RTStructureSetStorage)
            if start[:2] != b"\x08\x00":  # a data set without a file header begins with group 0008
                return False
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return bool(header.get("SOPClassUID") == RTStructureSetStorage)
    except ScanError:
        return False


def read_structures(path: Path) -> StructureSet:
    """What an RTSTRUCT contains and refers to.

    Raises:
        ScanError: if it cannot be read.
    """
    found = read_structure_set(path)
    with discreet(path, "RT structure set"):
        secrets = _secrets(found)
        drawn = {int(each.ReferencedROINumber): _contours(each) for each in found.get("ROIContourSequence") or ()}
        rois = []
        for each in found.StructureSetROISequence:
            name = str(each.get("ROIName") or "")
            shown = "(a name that tells who the patient is)" if _tells(name, secrets) else plain(name)
            frame = str(each.get("ReferencedFrameOfReferenceUID") or "")
            number = int(each.ROINumber)
            own = str(each.get("ROIGenerationDescription") or "").startswith(MAKER)
            rois.append(Roi(number, name, shown, len(drawn.get(number, ())), frame, own))
        frames = found.get("ReferencedFrameOfReferenceSequence") or ()
        series = [each for frame in frames for each in _referenced_series(frame)]
        images = [image for each in series for image in each.get("ContourImageSequence") or ()]
        if not images:
            contours = [contour for each in drawn.values() for contour in each]
            images = [image for contour in contours for image in contour.get("ContourImageSequence") or ()]
        return StructureSet(
            path=path,
            sop_instance_uid=str(found.SOPInstanceUID),
            label=str(found.get("StructureSetLabel") or ""),
            approval=str(found.get("ApprovalStatus") or ""),
            made=_moment(found, "StructureSet") or _moment(found, "InstanceCreation"),
            rois=tuple(rois),
            series_uids=frozenset(str(each.SeriesInstanceUID) for each in series),
            instance_uids=frozenset(str(image.ReferencedSOPInstanceUID) for image in images),
            frame_uids=frozenset(
                [*(str(each.FrameOfReferenceUID) for each in frames), *(roi.frame_of_reference_uid for roi in rois)]
            )
            - {""},
            patient_id=str(found.get("PatientID") or "").strip(),
        )


def series_of(structures: StructureSet, found: Sequence[Series]) -> tuple[Series, str]:
    """The series that a set was drawn on, and what told so: "images", "series" or "frame of reference".

    Raises:
        ScanError: if none of those found is, or if it could be any of several.
    """
    shown = Counter(
        {each: len(structures.instance_uids & {image.sop_instance_uid for image in each.slices}) for each in found}
    )
    ways = {
        "images": [each for each, count in shown.items() if count and count == max(shown.values())],
        "series": [each for each in found if each.series_uid in structures.series_uids],
        "frame of reference": [each for each in found if each.frame_of_reference_uid in structures.frame_uids],
    }
    for way, candidates in ways.items():
        if len(candidates) == 1:
            return candidates[0], way
        if candidates:
            raise ScanError(f"{len(candidates)} series fit its {way}, expected one", path=structures.path)
    raise ScanError("refers to a series that is not among the scans found", path=structures.path)


def _contours(roi: Dataset) -> list[Dataset]:
    """Contours that have points; their numbers are not decoded."""
    return [
        each
        for each in roi.get("ContourSequence") or ()
        if "ContourData" in each and each.get_item("ContourData").value
    ]


def _referenced_series(frame: Dataset) -> Iterable[Dataset]:
    for study in frame.get("RTReferencedStudySequence") or ():
        yield from study.get("RTReferencedSeriesSequence") or ()


def _moment(header: Dataset, what: str) -> str:
    """Date and time as digits that order as texts."""
    date, time = (str(header.get(what + part) or "") for part in ("Date", "Time"))
    return f"{date}{time.ljust(6, '0')}" if date.isdecimal() and len(date) == 8 else ""


def _secrets(header: Dataset) -> list[str]:
    """Patient's names, ID and birth date, in pieces that may turn up in a text."""
    names = str(header.get("PatientName") or "").replace("^", " ").replace("=", " ").split()
    others = [str(header.get(keyword) or "") for keyword in ("PatientID", "PatientBirthDate")]
    return [secret.casefold() for secret in (*names, *others) if len(secret) >= SHORTEST_SECRET]


def _tells(text: str, secrets: Iterable[str]) -> bool:
    return any(secret in text.casefold() for secret in secrets)
