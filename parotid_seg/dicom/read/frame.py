"""The images of a DICOM file: the series of each, its position, and what distinguishes it from others at its
position."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.file import DicomFile
from parotid_seg.dicom.read.groups import MODALITIES, Place, images_in
from parotid_seg.dicom.read.layout import layout_of, scaling_of
from parotid_seg.dicom.read.planes import at_right_angle
from parotid_seg.dicom.read.series import Slice
from parotid_seg.dicom.read.values import Unusable, integer_of, number_of, numbers_of, text_of, uid_of, words_of
from parotid_seg.scan.nifti import MIN_DEPTH_MM

NO_SCAN = {
    "LOCALIZER": "localizer",
    "SCOUT": "localizer",
    "MIP": "projection",
    "MAX_IP": "projection",
    "MINIP": "projection",
    "MIN_IP": "projection",
    "PROJECTION": "projection",
    "PROJECTION IMAGE": "projection",
    "SCREEN SAVE": "screen capture",
    "DOSE_INFO": "dose report",
    "MOSAIC": "mosaic",
}
"""Values of ImageType of images that are never part of a scan."""
OF_THE_SCANNER = {"WATER", "W", "IN_PHASE", "IP"}
"""Image types of Dixon images: scanners mark them as derived, but there are no original images with their content."""
DISTINGUISHING = ("acquisition", "time", "echo", "te", "b", "stack", "kind", "kernel", "thickness", "event", "started")
"""Attributes that may distinguish volumes of one series: number of acquisition, temporal position and echo, echo time,
b-value, stack, image type, convolution kernel, slice thickness, irradiation event, start time of the acquisition."""
WAY_OUT = "de-identification must replace identifiers, not blank them; the series can be used as NIfTI"
"""Advice in errors about missing identifiers."""
LARGEST_NUMBER = (1 << 31) - 1
"""Largest value of an integer string (DICOM PS3.5, 6.2)."""
FARTHEST_MM = 1e5
"""Most mm from the origin of the frame of reference."""
SKEW = 1e-2
"""Tolerance of the directions of rows and columns, which should be unit vectors at a right angle."""


class Owner(NamedTuple):
    """The patient and the series of some images.

    Attributes:
        patient: hash of name, ID and birth date; names that differ by empty components at their end are equal.
        study_uid, series_uid: UIDs.
        modality: "CT" or "MR".
    """

    patient: str
    study_uid: str
    series_uid: str
    modality: str


class Frame(NamedTuple):
    """One image.

    Attributes:
        slice: its file and frame.
        number: of its series.
        frame_of_reference_uid: of its coordinates.
        size: rows and columns.
        spacing: between rows and between columns, in mm.
        orientation: direction of a row and of a column, unit vectors.
        position: x, y, z of the first voxel in mm (LPS).
        scaling: slope and intercept of its values.
        derived: whether it was computed from other images.
        distinguishing: values of the attributes in `DISTINGUISHING`; empty where an attribute is missing.
        pixels_at: where in the file its pixels begin.
    """

    slice: Slice
    number: int | None
    frame_of_reference_uid: str
    size: tuple[int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    scaling: tuple[float, float]
    derived: bool
    distinguishing: tuple[str, ...]
    pixels_at: int


def owner_of(file: DicomFile) -> Owner:
    """The patient and the series of a CT or MR object.

    Raises:
        Unusable: if it does not name its series.
    """
    header = file.header
    series = uid_of(header, "SeriesInstanceUID")
    if not series:
        cut = file.bytes_left == 0 and header.get_item("PixelData") is None and not header.get_item("Rows")
        raise Unusable("cut off before SeriesInstanceUID" if cut else f"no SeriesInstanceUID; {WAY_OUT}")
    patient = hashlib.sha256()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate"):
        element = header.get_item(keyword)
        value = getattr(element, "value", None) or b""
        content = (value if isinstance(value, bytes) else str(value).encode()).strip(b" \0")
        patient.update((_same_name(content) if keyword == "PatientName" else content) + b"\\")
    modality = MODALITIES[text_of(header, "SOPClassUID")]
    return Owner(patient.hexdigest(), uid_of(header, "StudyInstanceUID"), series, modality)


def _same_name(name: bytes) -> bytes:
    """A name without empty components at its end and spaces around them, which mean nothing (DICOM PS3.5, 6.2.1.2)."""
    groups = [b"^".join(part.strip() for part in group.split(b"^")).rstrip(b"^") for group in name.split(b"=")]
    return b"=".join(groups).rstrip(b"=")


def is_short(frames: Sequence[Frame], paths: Sequence[Path]) -> bool:
    """Whether the images of some files are axial and too few to show a gland, even if they are incomplete."""
    if len({frame.slice.path for frame in frames}) < len(paths):
        return False
    axial = all(abs(each) < 0.5 for frame in frames for each in (frame.orientation[2], frame.orientation[5]))
    heights = np.unique([frame.position[2] for frame in frames])
    return axial and float(np.ptp(heights) + np.diff(heights).max(initial=0.0)) < MIN_DEPTH_MM


def frames_of(file: DicomFile) -> tuple[list[Frame], set[str]]:
    """The images of a CT or MR object.

    Returns:
        Images of scans, and the kinds of the others, such as localizers.

    Raises:
        Unusable: if an image lacks a required attribute, or its pixels have an unsupported format.
    """
    header = file.header
    sop_class = text_of(header, "SOPClassUID")
    modality = MODALITIES[sop_class]
    types = words_of(header, "ImageType")
    if (kind := _kind(types)) is not None:
        return [], {kind}
    sop_instance = uid_of(header, "SOPInstanceUID")
    if not sop_instance:
        raise Unusable(f"no SOPInstanceUID; {WAY_OUT}")
    number = series_number(header)
    reference = uid_of(header, "FrameOfReferenceUID")
    layout = layout_of(file)
    frames, others = [], set[str]()
    for index, place in images_in(header):
        own_types = words_of(place(f"{modality}ImageFrameTypeSequence"), "FrameType") or types
        if (kind := _kind(own_types)) is not None:
            others.add(kind)
            continue
        frame = Frame(
            slice=Slice(file.path, index, sop_class, sop_instance),
            number=number,
            frame_of_reference_uid=reference,
            size=(layout.rows, layout.columns),
            spacing=spacing_of(place),
            orientation=orientation_of(place),
            position=position_of(place),
            scaling=scaling_of(place, modality),
            derived=own_types[:1] == ("DERIVED",) and not OF_THE_SCANNER & set(own_types),
            distinguishing=(*_acquisition(place), "/".join(own_types), *_reconstruction(place)),
            pixels_at=file.pixels_at,
        )
        frames.append(frame)
    return frames, others


def _kind(types: tuple[str, ...]) -> str | None:
    """The kind of an image that is not part of a scan, by its image type."""
    return next((NO_SCAN[each] for each in types if each in NO_SCAN), None)


def series_number(header: Dataset) -> int | None:
    """SeriesNumber, used in messages only; None if it is not a number."""
    try:
        number = integer_of(header, "SeriesNumber")
    except Unusable:  # it is used in messages only
        return None
    return number if abs(number) <= LARGEST_NUMBER else None


def position_of(place: Place) -> tuple[float, ...]:
    """ImagePositionPatient, checked."""
    position = numbers_of(place("PlanePositionSequence"), "ImagePositionPatient", 3)
    if max(map(abs, position)) > FARTHEST_MM:
        raise Unusable(f"no usable ImagePositionPatient, expected at most {FARTHEST_MM:.0f} mm")
    return position


def spacing_of(place: Place) -> tuple[float, ...]:
    """PixelSpacing, checked."""
    spacing = numbers_of(place("PixelMeasuresSequence"), "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise Unusable("no usable PixelSpacing, expected positive numbers")
    return spacing


def orientation_of(place: Place) -> tuple[float, ...]:
    """ImageOrientationPatient as unit vectors at a right angle, checked."""
    cosines = numbers_of(place("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    row, column = cosines[:3], cosines[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    across = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(across)) > SKEW:
        raise Unusable("no usable ImageOrientationPatient, expected two unit vectors at a right angle")
    unit_row, unit_column = np.array(row) / lengths[0], np.array(column) / lengths[1]
    return tuple(map(float, np.concatenate(at_right_angle(unit_row, unit_column))))


def _acquisition(place: Place) -> tuple[str, ...]:
    """Values of the attributes in `DISTINGUISHING`, up to the stack."""
    content, echo, diffusion = (
        place(name) for name in ("FrameContentSequence", "MREchoSequence", "MRDiffusionSequence")
    )
    converted = place("UnassignedPerFrameConvertedAttributesSequence")
    numbers = (
        _first(content, "FrameAcquisitionNumber", "AcquisitionNumber") or _first(converted, "AcquisitionNumber"),
        _first(content, "TemporalPositionIndex", "TemporalPositionIdentifier"),
        _first(content, "EchoNumbers") or _first(converted, "EchoNumbers"),
        _first(echo, "EffectiveEchoTime", "EchoTime") or _first(converted, "EchoTime"),
        _first(diffusion, "DiffusionBValue"),
    )
    return *numbers, text_of(content, "StackID")


def _reconstruction(place: Place) -> tuple[str, str, str, str]:
    """Values of the attributes in `DISTINGUISHING` from the kernel on."""
    kernel = "/".join(words_of(place("CTReconstructionSequence"), "ConvolutionKernel"))
    thickness = _first(place("PixelMeasuresSequence"), "SliceThickness")
    event = text_of(place("IrradiationEventIdentificationSequence"), "IrradiationEventUID")
    return kernel, thickness, event, _first(place("FrameContentSequence"), "AcquisitionTime")


def _first(dataset: Dataset, *keywords: str) -> str:
    """The first of some attributes that is a number, as text; empty if none is."""
    for keyword in keywords:
        try:
            number = number_of(dataset, keyword)
        except Unusable:  # the position does not depend on it
            continue
        if number is not None:
            return f"{number:g}"
    return ""
