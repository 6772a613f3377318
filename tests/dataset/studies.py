"""Made studies: a CT series and an RTSTRUCT written by hand, without the package's own writer."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from parotid_seg.dataset.build import Built
from tests.dicom_series import Change, ct_voxels, lay, save, uid, write_series
from tests.small_files import read_table

Box = tuple[slice, slice, slice]
Rois = Sequence[tuple[str, Box | None]]

LEFT_BOX = (slice(3, 9), slice(4, 12), slice(13, 18))
"""Slices, rows, columns; in `lay()` columns run to the patient's left."""
RIGHT_BOX = (slice(2, 8), slice(5, 11), slice(2, 6))
GLANDS: Rois = (("Parotid_L", LEFT_BOX), ("Parotid_R", RIGHT_BOX))
SHAPE = (12, 16, 20)
Made = tuple[Built, Any, dict[str, str], list[str]]
"""What became of a study: the count, the mask or None, the row of cases.csv, and what was said."""


def unchanged(index: int, dataset: Dataset) -> None:
    """Leaves a slice as it is."""


def write_study(
    folder: Path, patient: str = "4711", rois: Rois | None = GLANDS, change: Change = unchanged, seed: int = 0
) -> list[Path]:
    """A folder with a CT series, and by default an RTSTRUCT of both glands beside it.

    Returns:
        The images in the order of the slices.
    """
    if change is unchanged:
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for name, content in _series(folder.name, patient, seed):
            images.append(folder / name)
            images[-1].write_bytes(content)
    else:
        images = _write_series(folder, patient, change, seed)
    if rois is not None:
        write_structures(folder / "contours.dcm", images, rois)
    return images


@functools.cache
def _series(name: str, patient: str, seed: int) -> list[tuple[str, bytes]]:
    """Names and contents of a series' files, in the order of the slices."""
    with tempfile.TemporaryDirectory() as folder:
        images = _write_series(Path(folder, name), patient, unchanged, seed)
        return [(image.name, image.read_bytes()) for image in images]


def _write_series(folder: Path, patient: str, change: Change, seed: int) -> list[Path]:
    def named(index: int, dataset: Dataset) -> None:
        dataset.PatientID = patient
        change(index, dataset)

    return write_series(folder, ct_voxels(SHAPE, seed), change=named)


def write_structures(
    path: Path,
    images: Sequence[Path],
    rois: Rois = GLANDS,
    *,
    affine: NDArray[np.float64] | None = None,
    label: str = "Plan",
    approval: str = "UNAPPROVED",
    date: str = "20200102",
    refers: bool = True,
    frame: str | None = None,
    change: Callable[[Dataset], None] = lambda dataset: None,
) -> Path:
    """Write an RTSTRUCT of boxes.

    Args:
        path: the file to make.
        images: the series, in the order of its slices.
        rois: names and boxes in voxels; None is a structure without contours.
        affine: where the contours lie; default: `lay()`.
        label, approval, date: StructureSetLabel, ApprovalStatus, StructureSetDate.
        refers: whether it names series and images, besides the frame of reference.
        frame: frame of reference of the contours; default: the images'.
        change: of the dataset, before it is written.
    """
    affine = lay() if affine is None else affine
    headers = [pydicom.dcmread(image, stop_before_pixels=True) for image in images]
    frame = frame or str(headers[0].FrameOfReferenceUID)
    dataset = Dataset()
    for keyword in ("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID"):
        setattr(dataset, keyword, headers[0].get(keyword))
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, uid(str(path))
    dataset.SeriesInstanceUID, dataset.Modality = uid(str(path), "series"), "RTSTRUCT"
    dataset.StructureSetLabel, dataset.StructureSetDate, dataset.StructureSetTime = label, date, "120000"
    dataset.ApprovalStatus = approval
    dataset.ReferencedFrameOfReferenceSequence = [_references(headers, frame, refers)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, box) in enumerate(rois, start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        roi.ROIGenerationAlgorithm = "MANUAL"
        drawn.ReferencedROINumber = number
        if box is not None:
            drawn.ContourSequence = [_contour(index, box, affine) for index in range(len(images))[box[0]]]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    change(dataset)
    save(dataset, path, ImplicitVRLittleEndian)
    return path


def box_mask(*boxes: Box, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Label 1 in the first box, 2 in the second, and so on."""
    mask = np.zeros(shape, np.uint8)
    for value, box in enumerate(boxes, start=1):
        mask[box] = value
    return mask


def _contour(index: int, box: Box, affine: NDArray[np.float64]) -> Dataset:
    """The edges of a box's voxels in a slice."""
    top, bottom, first, last = box[1].start - 0.5, box[1].stop - 0.5, box[2].start - 0.5, box[2].stop - 0.5
    corners = np.array(
        [[index, row, column, 1] for row, column in ((top, first), (top, last), (bottom, last), (bottom, first))]
    )
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
    contour.ContourData = [f"{value:.3f}" for value in (corners @ affine.T)[:, :3].ravel()]
    return contour


def _references(headers: Sequence[Dataset], frame: str, refers: bool) -> Dataset:
    item = Dataset()
    item.FrameOfReferenceUID = frame
    if refers:
        study, series = Dataset(), Dataset()
        study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = (
            "1.2.840.10008.3.1.2.3.1",
            headers[0].StudyInstanceUID,
        )
        series.SeriesInstanceUID, series.ContourImageSequence = headers[0].SeriesInstanceUID, []
        for header in headers:
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
            series.ContourImageSequence.append(image)
        study.RTReferencedSeriesSequence = [series]
        item.RTReferencedStudySequence = [study]
    return item


def rows(data: Path, name: str = "left_out.csv") -> list[dict[str, str]]:
    return read_table(data.with_name(f"{data.name}.private") / name)


def reasons(data: Path, kind: str) -> list[str]:
    return [f"{row['name']}: {row['reason']}".removeprefix(": ") for row in rows(data) if row["kind"] == kind]


def names(data: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (data / folder).iterdir())


def case_from(data: Path, folder: Path) -> str:
    return next(row["case"] for row in rows(data, "cases.csv") if row["folder"] == str(folder))


def change_file(path: Path, change: Callable[..., None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
