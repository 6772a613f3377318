"""The plane of each slice of a series, from its own header."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import fill_blank, read_object
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.scan.geometry import EXACT

Vector = NDArray[np.float64]

PLANE_TAGS: list[str | int] = [
    "SOPInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, eq=False)
class Plane:
    """The lattice of one slice's voxel centres (DICOM PS3.3, C.7.6.2).

    Attributes:
        position: of the first voxel, x, y, z in mm (LPS).
        row, column: unit vectors along a row and along a column, at a right angle.
        spacing_mm: between rows and between columns.
    """

    position: Vector
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]

    @property
    def normal(self) -> Vector:
        """Unit vector."""
        normal = np.cross(self.row, self.column)
        return normal / np.linalg.norm(normal)

    def to_voxels(self, points: Vector) -> tuple[Vector, Vector]:
        """Convert points (N, 3) in mm to rows and columns (N, 2) in voxels, with their distances (N,) from the plane in
        mm."""
        offsets = points - self.position
        return offsets @ np.linalg.pinv(self._steps), offsets @ self.normal

    def to_patient(self, voxels: Vector) -> Vector:
        """Convert rows and columns (N, 2) to points (N, 3) in mm."""
        return np.asarray(self.position + voxels @ self._steps)

    @property
    def _steps(self) -> Vector:
        """Vectors (2, 3) in mm from a row to the next and from a column to the next."""
        return np.stack([self.column * self.spacing_mm[0], self.row * self.spacing_mm[1]])


def read_planes(series: Series) -> tuple[Plane, ...]:
    """The planes of a series' slices, in order, from its files' headers.

    Raises:
        ScanError: if a file cannot be read, has no position, or has changed since the series was found.
    """
    headers: dict[Path, Dataset] = {}
    planes = []
    for each in series.slices:
        with phi_safe(each.path, "DICOM image"):
            if each.path not in headers:
                headers = {each.path: read_object(each.path, PLANE_TAGS)}
            header = headers[each.path]
            fill_blank(header)
            if header.SOPInstanceUID != each.sop_instance_uid:
                raise ScanError("found another image than when the series was read", path=each.path)
            planes.append(plane_of_frame(header, each.frame))
    return tuple(planes)


def plane_of_frame(header: Dataset, frame: int | None) -> Plane:
    """The plane of a single-frame image, or of one frame of a multi-frame one (counted from 0)."""
    if frame is None:
        position, orientation, measures = header, header, header
    else:
        groups = header.PerFrameFunctionalGroupsSequence[frame]
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        position, orientation, measures = (
            (groups if name in groups else shared[0])[name].value[0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
    cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64)
    row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
    position_mm = np.array(position.ImagePositionPatient, dtype=np.float64)
    row, column = at_right_angle(*(each / np.linalg.norm(each) for each in (cosines[:3], cosines[3:])))
    return Plane(position_mm, row, column, (row_mm, column_mm))


def at_right_angle(row: Vector, column: Vector) -> tuple[Vector, Vector]:
    """Unit vectors along a row and along a column, both rotated by the same amount to a right angle.

    Rounded vectors, as in an ImageOrientationPatient with three decimals, are not orthogonal. The plane stays the same.
    """
    if abs(row @ column) <= EXACT:
        return row, column
    along, across = row + column, row - column
    along, across = along / np.linalg.norm(along), across / np.linalg.norm(across)
    return (along + across) / math.sqrt(2), (along - across) / math.sqrt(2)
