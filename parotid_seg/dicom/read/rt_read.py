"""Reads RT Structure Sets: each structure as a mask on the voxels of a series.

A voxel belongs to a structure if its centre lies inside its contours in that slice. `combined` joins the contours of
one slice, including holes; `rt_items` assigns contours to structures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.config import strict_reading
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RTStructureSetStorage

from parotid_seg.dicom.combined import combined
from parotid_seg.dicom.contours import Points
from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import read_object
from parotid_seg.dicom.read.rt_items import RoiItem, items_of
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.codes import LONGEST_LINE, plain, plain_uid

EXCLUSIVE = ("CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Type of contours that are combined by exclusive or, in its two spellings."""
CLOSED = ("CLOSED_PLANAR", *EXCLUSIVE)
"""Types of contour that enclose an area (PS3.3, C.8.8.6)."""
OFF_SLICE = 0.25
"""Share of the slice distance: how far a contour may lie off the plane of its slice."""


class RasterizedRoi(NamedTuple):
    """A structure's voxels.

    Attributes:
        mask: bool (slices, rows, columns), in the order of the series' slices.
        flags: remarks on its name, number and contours.
    """

    mask: NDArray[np.bool_]
    flags: tuple[Flag, ...]


class _Contour(NamedTuple):
    """A contour.

    Attributes:
        place: index of its slice; None outside the scan.
        points: as row and column (N, 2).
        exclusive: whether it is combined with others by exclusive or.
        images: UIDs of the images that it refers to.
    """

    place: int | None
    points: Points
    exclusive: bool
    images: frozenset[str]

    def is_of_other(self, series: Series) -> bool:
        """Whether it refers to images of the series, but not to the slice that it lies on."""
        if self.place is None or series.slices[self.place].sop_instance_uid in self.images:
            return False
        return not self.images.isdisjoint(each.sop_instance_uid for each in series.slices)


@dataclass(frozen=True, eq=False)
class Roi:
    """A structure of a structure set, with its contours still encoded.

    Attributes:
        name: as in the file, without control characters; it may be empty, and several structures may have the same.
        shown: the name for messages, without patient data.
        number: in the file; several structures may have the same.
        frame_of_reference_uid: its own, or that of the series if it has none and the references fit.
        fault: why its contours cannot be separated from those of other structures; empty if they can.
        flags: see `RasterizedRoi`.
    """

    name: str
    shown: str
    number: int
    path: Path
    series: Series
    frame_of_reference_uid: str
    contours: tuple[Dataset, ...]
    fault: str
    flags: tuple[Flag, ...]

    def drawn(self) -> RasterizedRoi:
        """The structure's voxels; none if it has no contours.

        Raises:
            ScanError: if its contours cannot be separated from those of other structures; if it lies in another frame
                of reference; if a contour is damaged, open or a point, or lies between or across slices; if too many
                contours overlap; or if all contours lie outside the scan.
        """
        if self.fault:
            raise ScanError(f"{self._where}: {self.fault}", path=self.path)
        series = self.series
        check_frame({self.frame_of_reference_uid}, series, self.path, f"{self._where}: ")
        with phi_safe(self.path, "RT structure set"):
            placed = [self._placed(number) for number in range(len(self.contours))]
        usable = [each for each in placed if each.place is not None and len(each.points) >= 3]
        limit = (series.rows - 0.5, series.columns - 0.5)
        counts = {
            FlagCode.CONTOURS_TOO_SHORT: sum(len(each.points) < 3 for each in placed),
            FlagCode.CONTOURS_BEYOND_SCAN: sum(each.place is None and len(each.points) >= 3 for each in placed),
            FlagCode.CONTOURS_OF_OTHER_IMAGES: sum(each.is_of_other(series) for each in usable),
            FlagCode.CONTOURS_OVER_EDGE: sum(
                bool(((each.points < -0.5) | (each.points > limit)).any()) for each in usable
            ),
        }
        if placed and counts[FlagCode.CONTOURS_BEYOND_SCAN] == len(placed):
            raise ScanError(
                f"{self._where}: found all {len(placed)} contours beyond the scan's first or last slice", path=self.path
            )
        mask, on_slices = self._filled(usable)
        left_out = [Flag(code, value=count, detail=str(len(placed))) for code, count in counts.items() if count]
        slices = [Flag(code, value=count) for code, count in on_slices.items()]
        return RasterizedRoi(mask, (*self.flags, *left_out, *slices))

    def _filled(self, contours: list[_Contour]) -> tuple[NDArray[np.bool_], Counter[FlagCode]]:
        """The voxels that contours enclose, and flags with the number of slices that each concerns."""
        series = self.series
        mask = np.zeros((len(series.slices), series.rows, series.columns), dtype=np.bool_)
        noted: Counter[FlagCode] = Counter()
        slices: dict[int, list[_Contour]] = {}
        for each in contours:
            assert each.place is not None
            slices.setdefault(each.place, []).append(each)
        for index, closed in slices.items():
            exclusive = all(each.exclusive for each in closed)
            try:
                region = combined([each.points for each in closed], series.rows, series.columns, exclusive=exclusive)
            except ScanError as error:
                raise ScanError(f"{self._where}: {error.reason}", path=self.path) from None
            mask[index] = region.mask
            overlapping = FlagCode.CONTOURS_EXCLUSIVE if exclusive else FlagCode.CONTOURS_OVERLAP
            noted.update({FlagCode.CONTOURS_REPEATED} if region.repeated else ())
            noted.update({overlapping} if region.overlapping else ())
            noted.update({FlagCode.CONTOURS_HOLLOW} if region.hollow else ())
        return mask, noted

    def _placed(self, number: int) -> _Contour:
        """A contour in voxel coordinates of the series."""
        contour, title = self.contours[number], f"{self._where}: contour {number + 1} of {len(self.contours)}"
        kind, points = plain(str(contour.ContourGeometricType)), contour_points(contour)
        images = images_of(contour)
        if kind not in CLOSED:
            raise ScanError(f"{title} is of type {kind[:20]}, expected {CLOSED[0]}", path=self.path)
        if any(float(each) for each in contour.get("ContourOffsetVector") or ()):
            raise ScanError(f"{title} has a ContourOffsetVector that is not 0, expected none", path=self.path)
        if points is None:
            raise ScanError(f"{title} is damaged, expected three finite numbers for each of its points", path=self.path)
        voxels = points @ self._to_voxels[:3, :3].T + self._to_voxels[:3, 3]
        depths, last = voxels[:, 0], len(self.series.slices) - 1
        if len(points) < 3 or (depths < -OFF_SLICE).all() or (depths > last + OFF_SLICE).all():
            return _Contour(None, voxels[:, 1:], kind in EXCLUSIVE, images)
        index = round(float(depths.mean()))
        off = float(np.abs(depths - index).max())
        if off > OFF_SLICE:
            lies = "between slices" if np.ptp(depths) < OFF_SLICE else "across slices"
            raise ScanError(
                f"{title} lies {lies}, {off:.2f} of their distance off the next one, expected at most {OFF_SLICE}",
                path=self.path,
            )
        return _Contour(index, voxels[:, 1:], kind in EXCLUSIVE, images)

    @cached_property
    def _to_voxels(self) -> NDArray[np.float64]:
        """Matrix from x, y, z in mm to slice, row and column."""
        return np.asarray(np.linalg.inv(self.series.affine), dtype=np.float64)

    @property
    def _where(self) -> str:
        return f"structure {self.shown[:LONGEST_LINE]!r}"


def read_rtstruct(path: Path, series: Series) -> tuple[Roi, ...]:
    """All structures of a structure set, in its order.

    Args:
        path: the structure set.
        series: the scan whose voxels the masks have.

    Raises:
        ScanError: if it cannot be read, is not a structure set, or has no structure in the series' frame of reference.
    """
    dataset = read_structure_set(path)
    with phi_safe(path, "RT structure set"):
        rois = tuple(_roi(each, dataset, path, series) for each in items_of(dataset))
    if rois:
        check_frame({each.frame_of_reference_uid for each in rois}, series, path)
    return rois


def _roi(item: RoiItem, dataset: Dataset, path: Path, series: Series) -> Roi:
    frame, flags = str(item.roi.get("ReferencedFrameOfReferenceUID") or ""), item.flags
    if not frame and _fits(item.contours, dataset, series):
        frame, flags = series.frame_of_reference_uid, (*flags, Flag(FlagCode.FRAME_NOT_STATED))
    name = plain(item.name.value).strip()
    return Roi(name, item.shown, item.number, path, series, frame, item.contours, item.fault, flags)


def _fits(contours: tuple[Dataset, ...], dataset: Dataset, series: Series) -> bool:
    """Whether a structure without a frame of reference lies in that of a series, by its other references.

    The set must name that frame or none. The contours must refer to images of the series; if they refer to no images,
    the set must name that frame only, or the series.
    """
    frames = frames_of(dataset)
    if frames and series.frame_of_reference_uid not in frames:
        return False
    images = frozenset[str]().union(*map(images_of, contours))
    if images:
        return bool(images & {each.sop_instance_uid for each in series.slices})
    return len(frames) == 1 or series.series_uid in {str(each.get("SeriesInstanceUID")) for each in series_in(dataset)}


def images_of(contour: Dataset) -> frozenset[str]:
    """UIDs of the images that a contour refers to."""
    return frozenset(str(each.get("ReferencedSOPInstanceUID")) for each in contour.get("ContourImageSequence") or ())


def frames_of(dataset: Dataset) -> set[str]:
    """The frames of reference that a structure set as a whole names."""
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    return {str(each.get("FrameOfReferenceUID") or "") for each in frames} - {""}


def series_in(dataset: Dataset) -> list[Dataset]:
    """The items of a structure set that each name a series and its images."""
    return [
        series
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]


def check_frame(frame_uids: set[str], series: Series, path: Path, where: str = "") -> None:
    """Raise ScanError unless a series' frame of reference is among some.

    Args:
        frame_uids: UIDs; an empty UID does not count.
        series: the scan.
        path: the structure set.
        where: the part of it, for the error.
    """
    expected = series.frame_of_reference_uid
    if not expected or expected not in frame_uids:
        names = ", ".join(sorted(map(plain_uid, frame_uids))) or "none"
        raise ScanError(
            f"{where}in another frame of reference: found {names}, expected {plain_uid(expected)}", path=path
        )


def read_structure_set(path: Path) -> FileDataset:
    """A structure set as in its file.

    Raises:
        ScanError: if it cannot be read or is another object.
    """
    with phi_safe(path, "RT structure set"):
        with strict_reading():  # otherwise pydicom reads a truncated file without an error
            dataset = read_object(path, pixels=True)
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
    """Points (N, 3) of a contour in mm; None if they are not finite numbers, or not as many as stated."""
    element = contour.get_item("ContourData")
    text = element.value if element else None
    try:
        numbers = [float(each) for each in text.strip(b" \0").split(b"\\")] if text else []  # quicker than pydicom
    except ValueError:
        return None
    stated_count = contour.get("NumberOfContourPoints")
    if (
        len(numbers) % 3
        or not np.isfinite(numbers).all()
        or (stated_count is not None and stated_count != len(numbers) // 3)
    ):
        return None
    return np.array(numbers).reshape(-1, 3)
