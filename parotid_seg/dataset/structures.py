"""RTSTRUCT files: their structures, the labels that these mean, and the series they refer to. No contour is drawn here.

An RTSTRUCT names the images it was drawn on (Referenced Frame of Reference Sequence, DICOM PS3.3, C.8.8.5). If those
are not among the files, for example because UIDs were changed, the frame of reference may still identify the series.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import RTStructureSetStorage

from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import patient_id_of, read_object
from parotid_seg.dicom.read.rt_items import RoiItem, items_of
from parotid_seg.dicom.read.rt_read import frames_of, read_structure_set, series_in
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.text import Text, text_of
from parotid_seg.dicom.write.objects import MAKER
from parotid_seg.errors import ScanError
from parotid_seg.files import open_input

APPROVED, REJECTED = "APPROVED", "REJECTED"
FRAME = "frame of reference"
"""How a set was matched whose images are not among the files."""


@dataclass(frozen=True)
class ListedRoi:
    """One structure of a set.

    Attributes:
        place: index in the set, from 0.
        name: as in the file, with other readings of its bytes.
        shown: the name for messages and lists: on one line, and hidden if it contains the patient's name.
        contours: number of contours.
        drawn_on_uids: images that they refer to.
        frame_of_reference_uid: of its contours.
        fault: why its contours cannot be separated from those of other structures; empty if they can.
        own: whether this package drew it.
    """

    place: int
    name: Text
    shown: str
    contours: int
    drawn_on_uids: frozenset[str]
    frame_of_reference_uid: str
    fault: str = ""
    own: bool = False


@dataclass(frozen=True)
class StructureSet:
    """An RTSTRUCT file.

    Attributes:
        label: StructureSetLabel.
        approval: ApprovalStatus.
        made: date and time as sortable text; empty if there is none.
        patient_id: PatientID.
        series_uids, instance_uids, frame_uids: series, images and frames of reference that the set or its contours
            refer to.
    """

    path: Path
    sop_instance_uid: str
    label: str
    approval: str
    made: str
    rois: tuple[ListedRoi, ...]
    series_uids: frozenset[str]
    instance_uids: frozenset[str]
    frame_uids: frozenset[str]
    patient_id: str = field(repr=False)

    def has_label(self, label: str) -> bool:
        """Whether this is its label, in upper or lower case."""
        return self.label.strip().casefold() == label.strip().casefold()


def is_rtstruct(path: Path) -> bool:
    """Whether a file is an RTSTRUCT by its header; False if it is not DICOM."""
    try:
        with phi_safe(path, "DICOM file"):
            with open_input(path) as file:
                start = file.read(132)
            if start[128:] == b"DICM":
                return bool(read_file_meta_info(path).get("MediaStorageSOPClassUID") == RTStructureSetStorage)
            if start[:2] != b"\x08\x00":  # a data set without a file header begins with group 0008
                return False
            header = read_object(path, ["SOPClassUID"])
            return bool(header.get("SOPClassUID") == RTStructureSetStorage)
    except ScanError:
        return False


def read_structures(path: Path) -> StructureSet:
    """Read the structures of an RTSTRUCT and its references.

    Raises:
        ScanError: if it cannot be read.
    """
    dataset = read_structure_set(path)
    with phi_safe(path, "RT structure set"):
        items = list(items_of(dataset))
        series = series_in(dataset)
        rois = tuple(_roi(place, item, dataset) for place, item in enumerate(items))
        return StructureSet(
            path=path,
            sop_instance_uid=str(dataset.SOPInstanceUID),
            label=text_of(dataset, "StructureSetLabel", dataset).value,
            approval=str(dataset.get("ApprovalStatus") or ""),
            made=_moment(dataset, "StructureSet") or _moment(dataset, "InstanceCreation"),
            rois=rois,
            series_uids=frozenset(str(each.SeriesInstanceUID) for each in series),
            instance_uids=_images_of(series).union(*(roi.drawn_on_uids for roi in rois)),
            frame_uids=frozenset(frames_of(dataset) | {roi.frame_of_reference_uid for roi in rois}) - {""},
            patient_id=patient_id_of(dataset),
        )


def _images_of(items: Iterable[Dataset]) -> frozenset[str]:
    """UIDs of the images in the ContourImageSequence of each item."""
    return frozenset(
        str(image.ReferencedSOPInstanceUID) for each in items for image in each.get("ContourImageSequence") or ()
    )


def series_of(structures: StructureSet, series: Sequence[Series], names: RoiNames) -> tuple[Series, str]:
    """The series that a set was drawn on, and how it was identified: "images", "series" or `FRAME`.

    The contours of the labels decide; those of other structures only if none of them refers to an image.

    Raises:
        ScanError: if it is not among the given series, several fit, or labels are drawn on images of several series.
    """
    of_labels = [roi for roi in structures.rois if names.meaning(roi.name.value, roi.name.readings).label]
    ways = (
        ("images", _drawn_on(of_labels, series, structures.path)),
        ("images", _drawn_on(structures.rois, series)),
        ("images", _with_most(structures.instance_uids, series)),
        ("series", [each for each in series if each.series_uid in structures.series_uids]),
        (FRAME, [each for each in series if each.frame_of_reference_uid in structures.frame_uids]),
    )
    for way, candidates in ways:
        if len(candidates) == 1:
            return candidates[0], way
        if candidates:
            raise ScanError(f"{len(candidates)} series fit its {way}, expected one", path=structures.path)
    raise ScanError("refers to a series that is not among the scans found", path=structures.path)


def _drawn_on(rois: Iterable[ListedRoi], series: Sequence[Series], of_one: Path | None = None) -> list[Series]:
    """The series with the most of the images that the contours of some structures refer to, see `_with_most`.

    Args:
        of_one: the file, if it is an error that the images are of several series.

    Raises:
        ScanError: if they are.
    """
    uids = frozenset[str]().union(*(roi.drawn_on_uids for roi in rois))
    found = {each.series_uid for each in series if any(image.sop_instance_uid in uids for image in each.slices)}
    if of_one and len(found) > 1:
        raise ScanError(f"its labels are drawn on images of {len(found)} series, expected one", path=of_one)
    return _with_most(uids, series)


def _with_most(uids: frozenset[str], series: Sequence[Series]) -> list[Series]:
    """The series with the most of some images; several if they have as many; none if no series has any."""
    counts = [len(uids & {image.sop_instance_uid for image in each.slices}) for each in series]
    return [each for each, count in zip(series, counts, strict=True) if count and count == max(counts)]


def _roi(place: int, item: RoiItem, dataset: Dataset) -> ListedRoi:
    frame = str(item.roi.get("ReferencedFrameOfReferenceUID") or "")
    made_here = text_of(item.roi, "ROIGenerationDescription", dataset).value.startswith(MAKER)
    contours = sum(map(_has_points, item.contours))
    return ListedRoi(place, item.name, item.shown, contours, _images_of(item.contours), frame, item.fault, made_here)


def _has_points(contour: Dataset) -> bool:
    """Whether a contour has any points; the numbers are not decoded."""
    return "ContourData" in contour and bool(contour.get_item("ContourData").value)


def _moment(header: Dataset, what: str) -> str:
    """Date and time as sortable digits."""
    date, time = (str(header.get(what + part) or "") for part in ("Date", "Time"))
    return f"{date}{time.ljust(6, '0')}" if date.isdecimal() and len(date) == 8 else ""


@dataclass(frozen=True)
class Unused:
    """A ROI that is not used as a label.

    Attributes:
        shown: its name for lists.
        reason: why not.
        review: whether a person should look at it, because it may have been meant as one.
    """

    shown: str = field(repr=False)
    reason: str
    review: bool


@dataclass(frozen=True)
class Contoured:
    """The labels in a structure set.

    Attributes:
        by: how it was matched to the series, see `series_of`.
        rois: for each label the contoured ROIs whose names mean it.
        unused: the other ROIs.
        near: whether the name of any ROI that was not drawn by this package mentions a gland.
    """

    structures: StructureSet
    by: str
    rois: dict[str, tuple[ListedRoi, ...]]
    unused: tuple[Unused, ...]
    near: bool


def read_meaning(structures: StructureSet, by: str, names: RoiNames, frame_of_reference_uid: str) -> Contoured:
    """Assign the ROIs of a set to labels by name; the user's names override the rules.

    Args:
        frame_of_reference_uid: of the series; contours in another frame of reference do not count.
    """
    meanings = [(roi, names.meaning(roi.name.value, roi.name.readings)) for roi in structures.rois]
    labels_by_user = {meaning.label for roi, meaning in meanings if meaning.own and roi.contours}
    rois: dict[str, tuple[ListedRoi, ...]] = {}
    others = []
    for roi, meaning in meanings:
        reason, look_at_it = meaning.reason, meaning.near
        if meaning.label and roi.fault:
            reason, look_at_it = roi.fault, True
        elif meaning.label and not roi.contours:
            reason = "it has no contours"
        elif meaning.label and roi.own and structures.approval != APPROVED:
            reason = f"{MAKER} drew it and nobody has approved it"
        elif meaning.label and meaning.label in labels_by_user and not meaning.own:
            reason = f"another ROI is {meaning.label} by --names"
        elif meaning.label and roi.frame_of_reference_uid not in ("", frame_of_reference_uid):
            reason, look_at_it = "its contours are in another frame of reference than the series", True
        if reason:
            others.append((roi, meaning, reason, look_at_it))
        else:
            rois[meaning.label] = (*rois.get(meaning.label, ()), roi)
    lacks = any(label not in rois for label in names.structures)
    unused = tuple(
        Unused(roi.shown, reason, look_at_it or (lacks and meaning.gland and not meaning.label and roi.contours > 0))
        for roi, meaning, reason, look_at_it in others
    )
    near = any(meaning.gland and not roi.own for roi, meaning in meanings)
    return Contoured(structures, by, rois, unused, near)


def choose(candidates: Sequence[Contoured], prefer: str | None) -> Contoured:
    """Choose one of several structure sets of a series.

    The one whose label is `prefer`; else the one with the most labels; else an approved one; else the newest.

    Args:
        candidates: sets with at least one of the labels each.

    Raises:
        ScanError: if these rules do not decide.
    """

    def rank(each: Contoured) -> tuple[bool, int, bool, str]:
        structures = each.structures
        preferred = prefer is not None and structures.has_label(prefer)
        return preferred, len(each.rois), structures.approval == APPROVED, structures.made

    ranked = sorted(candidates, key=rank, reverse=True)
    equal = [each for each in ranked if rank(each) == rank(ranked[0])]
    if len(equal) > 1:
        raise ScanError(
            f"{len(equal)} structure sets of the series are of equal standing and date, expected one that counts "
            "(--prefer names its label)"
        )
    return ranked[0]
