"""Verifies that a DICOM object contains the mask it was made from.

The object is read back from disk, and each contour or frame is placed on the slice that it refers to or lies in, by
that slice's own header. The result must equal the mask voxel for voxel, and lie at the mask's place in the patient by
the series' affine. A slice in the wrong place or order, a mirrored row or a shift by half a voxel fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dicom.contours import filled
from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import read_object
from parotid_seg.dicom.read.planes import Plane, plane_of_frame, read_planes
from parotid_seg.dicom.read.rt_read import contour_points
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.stack import UNEVEN_MM
from parotid_seg.errors import ScanError
from parotid_seg.metrics import dice
from parotid_seg.scan.codes import ALL_ROIS, LONGEST_LINE, Rois, Structure, plain, structures_of
from parotid_seg.scan.volume import Mask, spacing_of

Kind = Literal["rtstruct", "binary", "labelmap"]

LEAST_DSC = 1.0
"""All voxels must agree: contours run half a voxel from the centres, and segmentations store the voxels."""
OFF_MM = 0.1
"""Most mm between a contour and the plane of its slice, and between a frame and its slice."""
CENTROID_OFF_MM = 0.2
"""Most mm between the centroid and its place by the affine. A slice may lie off an even stack by half of it."""
SLICE_OFF = 0.25
"""Share of a voxel: most distance of a slice's corners from their place by the affine. `UNEVEN_MM` is always allowed:
slices that are read may lie off by so much."""
VOLUME_OFF = 0.01
"""Most difference as a share of the volume."""
WHOSE = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")

Slices = dict[int, NDArray[np.bool_]]
"""A structure's voxels (rows, columns) by the slice's index in the series; empty slices may be missing."""


def verify_round_trip(
    path: Path,
    series: Series,
    mask: Mask,
    labels: tuple[str, ...],
    kind: Kind,
    *,
    shown: Path | None = None,
    rois: Rois = ALL_ROIS,
) -> None:
    """Raise ScanError unless a DICOM object reproduces a mask, with the right patient.

    Args:
        path: the object's file.
        series: the scan the mask belongs to.
        mask: (slices, rows, columns), in the order of the series' slices.
        labels: names by value, background first. Of a structure set the last structures are compared, one per label.
        kind: the kind of object.
        shown: the name for errors; default: the file's.
        rois: which labels the object has, and their names.
    """
    shown, structures = shown or path, structures_of(labels, rois=rois)
    planes = read_planes(series)
    _check_planes(planes, series, shown)
    with phi_safe(shown, "DICOM object"):
        written = pydicom.dcmread(path)
        source = read_object(series.slices[0].path, WHOSE)
        for keyword in WHOSE:
            if (written.get(keyword) or "") != (source.get(keyword) or ""):
                raise ScanError(f"found another {keyword} than in {series.slices[0].path.name}", path=shown)
        _check_names(written, structures, kind, shown)
        read = _read_contours if kind == "rtstruct" else _read_segments
        found = read(written, series, planes, len(structures), shown)
        for structure, slices in zip(structures, found, strict=True):
            _compare(slices, mask == structure.value, planes, series, shown, structure.label)


def _check_planes(planes: tuple[Plane, ...], series: Series, shown: Path) -> None:
    """Raise ScanError unless all slices lie at their places by the affine."""
    corners = _corners(series)
    for index, plane in enumerate(planes):
        voxels = np.column_stack([np.full(len(corners), index), corners])
        expected = voxels @ series.affine[:3, :3].T + series.affine[:3, 3]
        off_mm = float(np.linalg.norm(plane.to_patient(corners) - expected, axis=1).max())
        most_mm = max(UNEVEN_MM, SLICE_OFF * min(spacing_of(series.affine)))
        if off_mm > most_mm:
            raise ScanError(
                f"found {series.slices[index].path.name} {off_mm:.3f} mm from where the series has it, "
                f"expected at most {most_mm:.3f}",
                path=shown,
            )


def _check_names(written: Dataset, expected: tuple[Structure, ...], kind: Kind, shown: Path) -> None:
    """Raise ScanError unless the structures have the labels' names, except for distinguishing numbers."""
    if kind == "rtstruct":
        names = [str(each.ROIName) for each in written.StructureSetROISequence]
    else:
        names = [str(each.SegmentLabel) for each in written.SegmentSequence]
    for name, structure in zip(names[-len(expected) :], expected, strict=True):
        if not name.startswith(structure.name[: LONGEST_LINE - 5]):
            raise ScanError(
                f"found the name {plain(name)!r} for {plain(structure.label)}, expected {structure.name!r}", path=shown
            )


def _corners(series: Series) -> NDArray[np.float64]:
    """Row and column of three corners of a slice."""
    return np.array([[0, 0], [0, series.columns - 1], [series.rows - 1, 0]], dtype=np.float64)


def _read_contours(
    written: Dataset, series: Series, planes: tuple[Plane, ...], count: int, shown: Path
) -> Iterator[Slices]:
    """Voxels of the last structures, each contour in the plane of the image it refers to."""
    places = {(each.sop_instance_uid, each.frame): index for index, each in enumerate(series.slices)}
    numbers = Counter(int(each.ROINumber) for each in written.StructureSetROISequence)
    drawn = [(int(each.ReferencedROINumber), each) for each in written.ROIContourSequence]
    for roi in written.StructureSetROISequence[-count:]:
        slices: Slices = {}
        items, named = [each for number, each in drawn if number == roi.ROINumber], numbers[int(roi.ROINumber)]
        if (named, len(items)) != (1, 1):
            raise ScanError(
                f"found the ROINumber {roi.ROINumber} {named} times with a name and {len(items)} times with contours, "
                "expected once each",
                path=shown,
            )
        if roi.ReferencedFrameOfReferenceUID != series.frame_of_reference_uid:
            raise ScanError("found a structure in another frame of reference than the series", path=shown)
        for contour in items[0].get("ContourSequence") or ():
            image = contour.ContourImageSequence[0]
            frame = image.get("ReferencedFrameNumber")
            index = places[str(image.ReferencedSOPInstanceUID), None if frame is None else int(frame) - 1]
            points = contour_points(contour)
            if points is None:
                raise ScanError("found a contour that is not a list of points", path=shown)
            voxels, off_mm = planes[index].to_voxels(points)
            if np.abs(off_mm).max() > OFF_MM:
                raise ScanError(
                    f"found a contour {np.abs(off_mm).max():.3f} mm off the plane of "
                    f"{series.slices[index].path.name}, expected at most {OFF_MM}",
                    path=shown,
                )
            enclosed = filled([voxels], series.rows, series.columns)
            if index in slices and (slices[index] & enclosed).any():
                raise ScanError(
                    f"found contours that overlap on {series.slices[index].path.name}, which not all programs read "
                    "alike",
                    path=shown,
                )
            slices[index] = slices[index] | enclosed if index in slices else enclosed
        yield slices


def _read_segments(
    written: Dataset, series: Series, planes: tuple[Plane, ...], count: int, shown: Path
) -> Iterator[Slices]:
    """Voxels of all segments, each frame in the slice at the frame's position."""
    positions, corners = np.stack([each.position for each in planes]), _corners(series)
    pixels = written.pixel_array.reshape(-1, written.Rows, written.Columns)
    slices: dict[int, Mask] = {}
    for number, frame in enumerate(pixels):
        plane = plane_of_frame(written, number)
        index = int(np.argmin(np.linalg.norm(positions - plane.position, axis=1)))
        off_mm = np.linalg.norm(plane.to_patient(corners) - planes[index].to_patient(corners), axis=1).max()
        if frame.shape != (series.rows, series.columns) or off_mm > OFF_MM:
            raise ScanError(
                f"found a frame {off_mm:.3f} mm off the nearest slice {series.slices[index].path.name}, "
                f"expected at most {OFF_MM}",
                path=shown,
            )
        segment = written.PerFrameFunctionalGroupsSequence[number].get("SegmentIdentificationSequence")
        if segment:
            slices[index] = np.where(frame > 0, int(segment[0].ReferencedSegmentNumber), slices.get(index, 0))
        else:
            slices[index] = frame
    yield from ({index: frame == value for index, frame in slices.items()} for value in range(1, count + 1))


def _compare(
    slices: Slices, expected: NDArray[np.bool_], planes: tuple[Plane, ...], series: Series, shown: Path, label: str
) -> None:
    """Raise ScanError if voxels, volume or place of a structure differ."""
    places = np.array(sorted({*slices, *np.flatnonzero(expected.any(axis=(1, 2))).tolist()}), dtype=np.int64)
    if not len(places):
        return
    none = np.zeros((series.rows, series.columns), dtype=np.bool_)
    read, expected = np.stack([slices.get(int(place), none) for place in places]), expected[places]
    dsc = dice(read, expected)
    if dsc < LEAST_DSC:
        other = int(np.count_nonzero(read != expected))
        raise ScanError(
            f"{label}: found {other} voxels that differ (DSC {dsc:.4f}), expected a DSC of {LEAST_DSC}", path=shown
        )
    if not expected.any():
        return
    volume_ml, centroid_mm = _measured(np.argwhere(read), places, planes)
    voxels = np.argwhere(expected)
    expected_ml = len(voxels) * abs(float(np.linalg.det(series.affine))) / 1000.0
    if abs(volume_ml - expected_ml) > VOLUME_OFF * expected_ml:
        raise ScanError(f"{label}: found {volume_ml:.3f} ml, expected {expected_ml:.3f}", path=shown)
    middle = np.array([places[voxels[:, 0]].mean(), *voxels[:, 1:].mean(axis=0)])
    off_mm = float(np.linalg.norm(centroid_mm - (series.affine[:3, :3] @ middle + series.affine[:3, 3])))
    if off_mm > CENTROID_OFF_MM:
        raise ScanError(
            f"{label}: found its centroid {off_mm:.3f} mm off, expected at most {CENTROID_OFF_MM}", path=shown
        )


def _measured(
    voxels: NDArray[np.int64], places: NDArray[np.int64], planes: tuple[Plane, ...]
) -> tuple[float, NDArray[np.float64]]:
    """Volume in ml and centroid in mm of voxels (index in `places`, row, column), by the planes."""
    heights = [each.position @ planes[0].normal for each in planes]
    thickness_mm = abs(float(heights[-1] - heights[0])) / max(1, len(planes) - 1)
    volume_mm3, total = 0.0, np.zeros(3)
    for number, place in enumerate(places):
        points = planes[place].to_patient(voxels[voxels[:, 0] == number, 1:].astype(np.float64))
        volume_mm3 += len(points) * float(np.prod(planes[place].spacing_mm)) * thickness_mm
        total += points.sum(axis=0)
    return volume_mm3 / 1000.0, total / len(voxels)
