"""Reads RT Dose objects (DICOM PS3.3, A.18.3): the dose of a plan on its grid in the patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTDoseStorage

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import DicomFile, patient_id_of, read_dicom, read_object
from parotid_seg.dicom.read.frame import orientation_of, position_of, spacing_of
from parotid_seg.dicom.read.frames import Frames
from parotid_seg.dicom.read.layout import layout_of
from parotid_seg.dicom.read.values import Unusable, number_of, numbers_of, text_of, uid_of, words_of
from parotid_seg.errors import ScanError
from parotid_seg.files import size_of
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.dose_grid import DoseGrid, check_gray
from parotid_seg.scan.foreign import check_room
from parotid_seg.scan.volume import LPS_TO_RAS

PLAN = "PLAN"
"""DoseSummationType of the dose of a whole plan; the others are parts of it, or sums of several."""
# fmt: off
TERMS = frozenset((
    "GY", "RELATIVE", "PHYSICAL", "EFFECTIVE", "ERROR", PLAN, "MULTI_PLAN", "PLAN_OVERVIEW", "FRACTION", "BEAM",
    "BRACHY", "FRACTION_SESSION", "BEAM_SESSION", "BRACHY_SESSION", "CONTROL_POINT", "RECORD",
))
# fmt: on
"""Values that the standard defines; others are not repeated in messages."""
SAME_MM = 0.01
"""Most distance in mm between two positions that count as equal."""
AXIAL = 1e-4
"""Most difference from 1 of the z component of an axial plane's normal."""
# fmt: off
ATTRIBUTES = (
    "SOPInstanceUID", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "DoseUnits", "DoseType",
    "DoseSummationType",
    "DoseGridScaling", "GridFrameOffsetVector", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
)
# fmt: on


@dataclass(frozen=True)
class RtDose:
    """An RT Dose object as far as its header tells to which scan it belongs.

    Attributes:
        path: its file.
        sop_instance_uid, study_uid, frame_of_reference_uid: UIDs; empty if it has none.
        summation: its DoseSummationType.
        patient_id: PatientID.
    """

    path: Path
    sop_instance_uid: str
    study_uid: str
    frame_of_reference_uid: str
    summation: str
    patient_id: str = field(default="", repr=False)


def find_dose(path: Path) -> RtDose | None:
    """The RT Dose object in a file; None if it holds anything else.

    Raises:
        ScanError: if the file is DICOM and cannot be read.
    """
    with _errors_of(path):
        file = read_dicom(path)
        if file is None or text_of(file.header, "SOPClassUID") != RTDoseStorage:
            return None
        header = read_object(path, ATTRIBUTES)
        instance, study, frame = (
            uid_of(header, f"{name}UID") for name in ("SOPInstance", "StudyInstance", "FrameOfReference")
        )
        return RtDose(path, instance, study, frame, _term(header, "DoseSummationType"), patient_id_of(header))


def read_dose(path: Path) -> DoseGrid:
    """Read the dose of an RT Dose object.

    Raises:
        ScanError: if it cannot be read; if it is not the dose of a plan in Gy on a grid of several planes; or if its
            size, scaling or position is missing or impossible.
    """
    with _errors_of(path):
        dose = _read(path)
        check_gray(dose, path)
    return dose


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn any exception over a file's content into its error."""
    with phi_safe(path, "RT Dose"):
        try:
            yield
        except Unusable as error:
            raise ScanError(error.reason, path=path) from None


def _term(header: Dataset, keyword: str) -> str:
    """The value of an attribute if it is one of `TERMS`; else that it is another, or none."""
    words = words_of(header, keyword)
    return "none" if not words else words[0] if len(words) == 1 and words[0] in TERMS else "another value"


def _read(path: Path) -> DoseGrid:
    file = read_dicom(path, pixels=True)
    if file is None or text_of(file.header, "SOPClassUID") != RTDoseStorage:
        raise Unusable("not an RT Dose object")
    header = read_object(path, ATTRIBUTES)
    _check_kind(header)
    scaling = number_of(header, "DoseGridScaling")
    if scaling is None or scaling <= 0:
        raise Unusable("no usable DoseGridScaling, expected a positive number")
    stored = _stored(file)
    affine, offsets = _geometry(header, len(stored))
    if offsets[0] > offsets[-1]:
        stored, offsets = stored[::-1], offsets[::-1]
    flags = (Flag(FlagCode.DOSE_EFFECTIVE),) if _term(header, "DoseType") == "EFFECTIVE" else ()
    return DoseGrid(stored, scaling, offsets, affine, flags)


def _check_kind(header: Dataset) -> None:
    """Raise Unusable unless it is the dose of a plan in Gy."""
    expected = {"DoseUnits": ("GY",), "DoseType": ("PHYSICAL", "EFFECTIVE"), "DoseSummationType": (PLAN,)}
    for keyword, allowed in expected.items():
        if (found := _term(header, keyword)) not in allowed:
            raise Unusable(f"found {keyword} {found}, expected {' or '.join(allowed)}")


def _stored(file: DicomFile) -> NDArray[np.number]:
    """The stored values (planes, rows, columns)."""
    layout = layout_of(file)
    shape = layout.frames, layout.rows, layout.columns
    if min(shape) < 2:
        raise Unusable(f"found a grid of {' x '.join(map(str, shape))} points, expected 2 or more along each axis")
    if layout.stored != layout.allocated:
        raise Unusable(f"found BitsStored {layout.stored}, expected {layout.allocated} as BitsAllocated")
    voxels = layout.frames * layout.rows * layout.columns
    check_room(file.path, voxels, voxels * layout.allocated // 4, size_of(file.path))
    stored = np.empty(shape, f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    for target, frame in zip(stored, Frames().of(file, layout), strict=True):
        target[...] = frame.words
    return stored


def _geometry(header: Dataset, planes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine from (offset, row, column, 1) to RAS in mm, and the planes' offsets along their normal.

    Offsets are relative to ImagePositionPatient if the first one is 0. If it is the z of ImagePositionPatient and the
    planes are axial, they are the planes' z (PS3.3, C.8.8.3.2).
    """
    position = np.array(position_of(lambda _: header))
    row_mm, column_mm = spacing_of(lambda _: header)
    directions = np.array(orientation_of(lambda _: header))
    along_row, along_column = directions[:3], directions[3:]
    normal = np.cross(along_row, along_column)
    offsets = np.array(numbers_of(header, "GridFrameOffsetVector", planes))
    steps = np.diff(offsets)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise Unusable("GridFrameOffsetVector neither rises nor falls from plane to plane")
    if abs(offsets[0]) > SAME_MM:
        if abs(offsets[0] - position[2]) > SAME_MM or abs(abs(normal[2]) - 1) > AXIAL:
            raise Unusable(
                f"GridFrameOffsetVector begins with {offsets[0]:g}, expected 0, or for axial planes the z of "
                "ImagePositionPatient"
            )
        offsets = (offsets - offsets[0]) * np.sign(normal[2])
    affine = np.eye(4)
    affine[:3] = np.stack([normal, along_column * row_mm, along_row * column_mm, position], axis=1)
    return LPS_TO_RAS @ affine, offsets
