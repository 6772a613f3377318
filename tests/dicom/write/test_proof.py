"""Objects that are not the mask they were made from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.find import find_series
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.round_trip import verify_round_trip
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.errors import ScanError
from tests.dicom.for_writers import LABELS, MODEL, changed, numbers, refused
from tests.dicom_series import ct_voxels, lay, write_series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over what is wrong here on purpose


def shifted(affine: NDArray[Any], axis: int, voxels: float) -> NDArray[Any]:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, axis] * voxels
    return moved


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda series: replace(series, affine=shifted(series.affine, 1, 0.5)), "mm from where the series has it"),
        (lambda series: replace(series, affine=shifted(series.affine, 2, 0.24)), "centroid 0.240 mm off"),
        (lambda series: replace(series, slices=series.slices[::-1]), "mm from where the series has it"),
        (lambda series: replace(series, affine=series.affine[:, [0, 2, 1, 3]]), "mm from where the series has it"),
    ],
    ids=["half a voxel", "a quarter of one", "order of slices", "rows for columns"],
)
def test_a_series_that_is_not_as_it_says_is_not_written(
    wrong: Callable[..., Any], message: str, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    with refused(ScanError, message):
        write_rtstruct(wrong(series), mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    assert not list(tmp_path.iterdir())


def test_fine_voxels_are_written_where_their_slices_may_be_read(tmp_path: Path) -> None:
    def off(index: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [-10, -12, index + 0.09 * (index == 15)]

    write_series(tmp_path / "ct", ct_voxels((40, 60, 60)), lay((1.0, 0.3, 0.3)), change=off)
    (series,) = find_series(sorted((tmp_path / "ct").iterdir())).series
    mask = np.zeros((40, 60, 60), np.uint8)
    mask[10:20, 20:40, 20:40] = 1
    write_rtstruct(series, mask, LABELS[:2], tmp_path / "rt.dcm", model=MODEL)


def moved_contour(dataset: Dataset, by: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[2]
    contour.ContourData = [f"{value:.4f}" for value in (numbers(contour) + by).ravel()]


def contour_again(dataset: Dataset, times: int) -> None:
    contours = dataset.ROIContourSequence[0].ContourSequence
    contours.extend(times * [contours[2]])


def number_twice(dataset: Dataset) -> None:
    dataset.StructureSetROISequence[0].ROINumber = dataset.StructureSetROISequence[1].ROINumber


def contours_before(dataset: Dataset) -> None:
    """More contours under a number that is taken, before the right ones."""
    more = copy.deepcopy(dataset.ROIContourSequence[1])
    more.ReferencedROINumber = dataset.StructureSetROISequence[0].ROINumber
    dataset.ROIContourSequence.insert(0, more)


def without_frame(dataset: Dataset) -> None:
    dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dataset: dataset.ROIContourSequence[0].ContourSequence.pop(1), "voxels that differ (DSC 0.9"),
        (lambda dataset: moved_contour(dataset, (1.0, 0.0, 0.0)), "voxels that differ (DSC 0.9"),
        (lambda dataset: moved_contour(dataset, (0.0, 0.0, 3.0)), "found a contour 3.000 mm off the plane of"),
        (lambda dataset: dataset.ROIContourSequence[0].ContourSequence[0].ContourData.pop(), "not a list of points"),
        (lambda dataset: dataset.StructureSetROISequence.reverse(), "found the name 'Parotid_R' for parotid_left"),
        (lambda dataset: setattr(dataset, "PatientID", "0815"), "found another PatientID than in"),
        (lambda dataset: setattr(dataset, "StudyInstanceUID", "1.2"), "found another StudyInstanceUID than in"),
        (lambda dataset: contour_again(dataset, 1), "found contours that overlap on"),
        (lambda dataset: contour_again(dataset, 2), "found contours that overlap on"),
        (number_twice, "found the ROINumber 2 2 times with a name and 1 times with contours, expected once each"),
        (contours_before, "found the ROINumber 1 1 times with a name and 2 times with contours, expected once each"),
        (without_frame, "found a structure in another frame of reference than the series"),
    ],
    ids=[
        *("slice lost", "slice moved", "plane", "damaged", "name", "patient", "study"),
        *("contour twice", "contour three times", "number twice", "contours twice", "frame"),
    ],
)
def test_the_proof_fails_for_an_object_that_is_not_the_mask(
    change: Callable[..., Any], message: str, series: Series, mask: NDArray[np.uint8], written: Path, tmp_path: Path
) -> None:
    verify_round_trip(written, series, mask, LABELS, "rtstruct")
    with refused(ScanError, message):
        verify_round_trip(changed(written, tmp_path / "rt.dcm", change), series, mask, LABELS, "rtstruct")


def test_the_proof_tells_left_from_right(series: Series, mask: NDArray[np.uint8], written: Path) -> None:
    with pytest.raises(ScanError, match=r"parotid_left: found \d+ voxels that differ \(DSC 0\.0"):
        verify_round_trip(written, series, (3 - mask) % 3, LABELS, "rtstruct")
