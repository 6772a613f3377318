"""RT Structure Sets in: each structure as a mask on the voxels of a series.

A voxel belongs to a structure if its centre lies inside an odd number of the structure's contours in its slice: a
contour within another is a hole, and so is what a keyhole encloses.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import strict_reading
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RTStructureSetStorage

from parotid_seg.dicom.contours import Points, filled
from parotid_seg.dicom.discreet import discreet
from parotid_seg.dicom.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import LONGEST_LINE, plain, plain_uid

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Types of contour that enclose an area (PS3.3, C.8.8.6)."""
OFF_SLICE = 0.25
"""Of the distance between slices: how far a contour may lie off a slice's plane and be one of that slice."""
FEW, AGAIN, BEYOND, OVER_EDGE = (
    "have fewer than three points and are left out",
    "are there already and are left out",
    "lie beyond the scan's first or last slice and are left out",
    "reach over the slices' edges and are cut there",
)


class Drawn(NamedTuple):
    """A structure's voxels.

    Attributes:
        mask: bool (slices, rows, columns), in the order of the series' slices.
        notes: what of the contours is not in the mask, one sentence each.
    """

    mask: NDArray[np.bool_]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Roi:
    """A structure of a structure set, with its contours still encoded.

    Attributes:
        name: as it stands in the file, without control characters; it may be empty, and several may have one.
        number: in the file.
    """

    name: str
    number: int
    path: Path
    series: Series
    frame_of_reference_uid: str
    contours: tuple[Dataset, ...]

    def drawn(self) -> Drawn:
        """The structure's voxels; none if it has no contours.

        Raises:
            ScanError: if the structure lies in another frame of reference, if a contour is damaged, open or a point,
                or lies between slices or across them, or if all contours lie beyond the scan.
        """
        series = self.series
        check_frame({self.frame_of_reference_uid}, series, self._where)
        slices: dict[int, dict[bytes, Points]] = {}
        noted: Counter[str] = Counter()
        with discreet(self.path, "RT structure set"):
            placed = [self._placed(number) for number in range(len(self.contours))]
        for index, points in placed:
            if len(points) < 3:
                noted[FEW] += 1
            elif index is None:
                noted[BEYOND] += 1
            elif points.tobytes() in slices.setdefault(index, {}):
                noted[AGAIN] += 1
            else:
                slices[index][points.tobytes()] = points
                over = (points < -0.5) | (points > (series.rows - 0.5, series.columns - 0.5))
                noted[OVER_EDGE] += bool(over.any())
        if placed and noted[BEYOND] == len(placed):
            raise ScanError(f"{self._where}: found all {len(placed)} contours beyond the scan's first or last slice")
        mask = np.zeros((len(series.slices), series.rows, series.columns), dtype=np.bool_)
        for index, closed in slices.items():
            mask[index] = filled(list(closed.values()), series.rows, series.columns)
        return Drawn(mask, tuple(f"{count} of {len(placed)} contours {what}" for what, count in noted.items() if count))

    def _placed(self, number: int) -> tuple[int | None, Points]:
        """The slice of a contour, None if it lies beyond all, and its points as row and column (N, 2)."""
        contour, where = self.contours[number], f"{self._where}: contour {number + 1} of {len(self.contours)}"
        kind, points = plain(str(contour.ContourGeometricType)), contour_points(contour)
        if kind not in CLOSED:
            raise ScanError(f"{where} is of type {kind[:20]}, expected {CLOSED[0]}")
        if points is None:
            raise ScanError(f"{where} is damaged, expected three finite numbers for each of its points")
        voxels = points @ self._to_voxels[:3, :3].T + self._to_voxels[:3, 3]
        depths, last = voxels[:, 0], len(self.series.slices) - 1
        if len(points) < 3 or (depths < -OFF_SLICE).all() or (depths > last + OFF_SLICE).all():
            return None, voxels[:, 1:]
        index = round(float(depths.mean()))
        off = float(np.abs(depths - index).max())
        if off > OFF_SLICE:
            lies = "between slices" if np.ptp(depths) < OFF_SLICE else "across slices"
            raise ScanError(
                f"{where} lies {lies}, {off:.2f} of their distance off the next one, expected at most {OFF_SLICE}"
            )
        return index, voxels[:, 1:]

    @cached_property
    def _to_voxels(self) -> NDArray[np.float64]:
        """From x, y, z in mm to slice, row and column."""
        return np.asarray(np.linalg.inv(self.series.affine), dtype=np.float64)

    @property
    def _where(self) -> str:
        return f"{self.path}: structure {self.name[:LONGEST_LINE]!r}"


def read_rtstruct(path: Path, series: Series) -> tuple[Roi, ...]:
    """All structures of a structure set, in its order.

    Args:
        path: the structure set.
        series: the scan on whose voxels masks are wanted.

    Raises:
        ScanError: if it cannot be read, is no structure set, or has no structure in the series' frame of reference.
    """
    dataset = read_structure_set(path)
    with discreet(path, "RT structure set"):
        contours: dict[int, list[Dataset]] = {}
        for each in dataset.get("ROIContourSequence") or ():
            contours.setdefault(int(each.ReferencedROINumber), []).extend(each.get("ContourSequence") or ())
        rois = tuple(
            Roi(
                name=plain(str(each.get("ROIName") or "")).strip(),
                number=int(each.ROINumber),
                path=path,
                series=series,
                frame_of_reference_uid=str(each.get("ReferencedFrameOfReferenceUID") or ""),
                contours=tuple(contours.get(int(each.ROINumber), ())),
            )
            for each in dataset.get("StructureSetROISequence") or ()
        )
    if rois:
        check_frame({each.frame_of_reference_uid for each in rois}, series, str(path))
    return rois


def check_frame(found: set[str], series: Series, where: str) -> None:
    """Raise ScanError unless a series' frame of reference is among some."""
    expected = series.frame_of_reference_uid
    if not expected or expected not in found:
        names = ", ".join(sorted(map(plain_uid, found)))
        raise ScanError(f"{where}: in another frame of reference: found {names}, expected {plain_uid(expected)}")


def read_structure_set(path: Path) -> FileDataset:
    """A structure set as it stands in its file.

    Raises:
        ScanError: if it cannot be read or is another object.
    """
    with discreet(path, "RT structure set"):
        with strict_reading():  # else pydicom takes the end of a file that is cut off for the end of its content
            dataset = pydicom.dcmread(path, force=True)
        if dataset.SOPClassUID != RTStructureSetStorage:
            raise ScanError(
                f"found SOP class {plain(dataset.SOPClassUID.name)[:64]}, expected an RT Structure Set", path=path
            )
        cut_off = any(
            isinstance(each, RawDataElement) and len(each.value or b"") < each.length for each in dataset.elements()
        )
        if cut_off or "ROIContourSequence" not in dataset:
            raise ScanError("not a whole RT Structure Set: it is cut off or has no contours", path=path)
    return dataset


def contour_points(contour: Dataset) -> NDArray[np.float64] | None:
    """Points (N, 3) of a contour in mm; None if they are no finite numbers, or not as many as the contour says."""
    element = contour.get_item("ContourData")
    text = element.value if element else None
    try:
        numbers = [float(each) for each in text.strip(b" \0").split(b"\\")] if text else []  # quicker than pydicom
    except ValueError:
        return None
    said = contour.get("NumberOfContourPoints")
    if len(numbers) % 3 or not np.isfinite(numbers).all() or (said is not None and said != len(numbers) // 3):
        return None
    return np.array(numbers).reshape(-1, 3)
