"""Several volumes in one series, slices that lie unevenly, blank identifiers, and kinds that come before geometry."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian

from parotid_seg.dicom.mr.sequences import sequence_of
from parotid_seg.dicom.mr.studies import kinds_taken
from parotid_seg.dicom.read.find import Found
from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.flags import Flag, FlagCode
from tests.dicom.reading import files_in
from tests.dicom_series import ct_voxels, lay, save, uid, write_enhanced, write_series
from tests.mr_studies import DIFFUSION, T1, write_mr

pytestmark = pytest.mark.slow


SHAPE = (9, 16, 20)


def found_in(folder: Path, *channels: str) -> Found:
    return find_series(files_in(folder), *([kinds_taken(channels)] if channels else []))


def refusal(folder: Path) -> str:
    found = found_in(folder)
    assert found.series == ()
    (left,) = found.left_out
    assert left.refused
    return left.reason


def scanned(number: int, **attributes: Any) -> Callable[..., None]:
    """A change that makes images those of another acquisition of the same series."""

    def change(index: int, dataset: pydicom.Dataset) -> None:
        dataset.SOPInstanceUID = uid("acquisition", str(number), str(index))
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    return change


def two_acquisitions(
    folder: Path,
    off_mm: float,
    slices: int = SHAPE[0],
    modality: str = "CT",
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A series of two acquisitions, the second shifted along the slices' normal; the voxels of both."""
    first = {"AcquisitionNumber": 1} if first is None else first
    second = {"AcquisitionNumber": 2} if second is None else second
    voxels = ct_voxels(SHAPE), ct_voxels((slices, *SHAPE[1:]), 1)
    base = 0 if modality == "CT" else 1000
    write_series(folder, voxels[0] + base, names="A", modality=modality, change=scanned(1, **first))
    shifted = lay(origin=(-100.0, -120.0, -50.0 + off_mm))
    write_series(folder, voxels[1] + base, shifted, names="B", modality=modality, change=scanned(2, **second))
    return voxels


@pytest.mark.parametrize("off_mm", [0.0, 1.5, 15.0, 13.5, 16.0, 22.6, -13.5])
def test_acquisitions_that_overlap_are_two_scans(tmp_path: Path, off_mm: float) -> None:
    voxels = two_acquisitions(tmp_path / "ct", off_mm)
    found = found_in(tmp_path)
    assert found.left_out == ()
    assert [series.part for series in found.series] == ["acquisition-1", "acquisition-2"]
    for series, expected in zip(found.series, voxels, strict=True):
        scan = read_series(series)
        np.testing.assert_array_equal(scan.volume.voxels[0], expected)
        assert scan.volume.spacing_mm[0] == pytest.approx(3)
        assert scan.volume.flags == (Flag(FlagCode.PART_OF_SERIES, detail=series.part),)


def test_three_acquisitions_of_which_each_overlaps_the_next(tmp_path: Path) -> None:
    for number in range(3):
        affine = lay(origin=(-100.0, -120.0, -50.0 + 22.5 * number))
        change = scanned(number, AcquisitionNumber=number + 1)
        write_series(tmp_path / "ct", ct_voxels(SHAPE, number), affine, names=f"{number}-", change=change)
    assert [series.part for series in found_in(tmp_path).series] == ["acquisition-1", "acquisition-2", "acquisition-3"]


def test_acquisitions_that_follow_each_other_are_one_scan_and_a_gap_between_them_is_one(tmp_path: Path) -> None:
    two_acquisitions(tmp_path / "whole", 27.0)
    (series,) = found_in(tmp_path).series
    assert len(series.slices) == 18
    two_acquisitions(tmp_path / "gap", 30.0)
    assert "1 slice missing, at -23.00 mm" in refusal(tmp_path / "gap")


def test_slices_of_an_mr_series_that_are_taken_in_turns_are_one_scan(tmp_path: Path) -> None:
    two_acquisitions(tmp_path / "mr", 1.5, modality="MR")
    (series,) = found_in(tmp_path).series
    assert len(series.slices) == 18


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B60f"}, ["kernel-1", "kernel-2"]),
        ({"SliceThickness": "3"}, {"SliceThickness": "1.25"}, ["thickness-1-25", "thickness-3"]),
        ({"IrradiationEventUID": "1.2.3"}, {"IrradiationEventUID": "1.2.4"}, ["acquisition-1", "acquisition-2"]),
        ({"AcquisitionTime": "101010"}, {"AcquisitionTime": "101530.5"}, ["acquisition-1", "acquisition-2"]),
    ],
)
@pytest.mark.parametrize("off_mm", [0.0, 13.0])
def test_what_tells_volumes_of_one_series_apart(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], parts: list[str], off_mm: float
) -> None:
    two_acquisitions(tmp_path / "ct", off_mm, first=first, second=second)
    found = found_in(tmp_path)
    assert found.left_out == ()
    assert sorted(series.part for series in found.series) == parts


def test_overlapping_acquisitions_that_nothing_tells_apart_are_refused_as_that(tmp_path: Path) -> None:
    two_acquisitions(tmp_path / "ct", 13.5, second={})
    assert (
        "uneven: slices lie 1.5 mm (9 times) and 3 mm (8 times) apart, expected one distance; like two acquisitions of "
        "9 and 9 slices that overlap, and no number tells which" in refusal(tmp_path)
    )


def test_an_acquisition_with_a_gap_is_refused_for_that(tmp_path: Path) -> None:
    two_acquisitions(tmp_path / "ct", 13.5)
    next(iter(sorted((tmp_path / "ct").glob("B*4.dcm")))).unlink()
    assert "2 volumes in one series; by acquisition 1 slice missing" in refusal(tmp_path)


def test_a_few_images_of_another_acquisition_among_the_slices_are_refused_for_their_number(tmp_path: Path) -> None:
    two_acquisitions(tmp_path / "ct", 13.5, slices=3)
    assert "by acquisition one has 3 images only, expected at least 5" in refusal(tmp_path)


def test_acquisitions_in_one_multi_frame_file(tmp_path: Path) -> None:
    def change(_: object, dataset: pydicom.Dataset) -> None:
        for place, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.FrameContentSequence[0].FrameAcquisitionNumber = 1 + place // 9
            z = -50.0 + 3 * (place % 9) + 13.5 * (place // 9)
            frame.PlanePositionSequence[0].ImagePositionPatient = [-100, -120, z]

    write_enhanced(tmp_path / "all.dcm", ct_voxels((18, 16, 20)), order=range(18), change=change)
    assert [series.part for series in found_in(tmp_path).series] == ["acquisition-1", "acquisition-2"]


def spaced(steps_mm: list[float]) -> Callable[..., None]:
    """A change of the slices' positions to these distances."""
    heights = [0.0, *itertools.accumulate(steps_mm)]

    def change(index: int, dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient = [-100, -120, -50 + heights[index]]

    return change


@pytest.mark.parametrize(
    ("steps_mm", "said"),
    [
        ([3] * 4 + [6] * 4, "uneven: slices lie 3 mm (4 times) and 6 mm (4 times) apart, expected one distance"),
        ([2] * 2 + [5] * 6, "uneven: slices lie 2 mm (2 times) and 5 mm (6 times) apart"),
        ([6] * 5 + [3] * 3, "uneven: slices lie 3 mm (3 times) and 6 mm (5 times) apart"),
        ([2] * 3 + [4] * 3 + [6] * 2, "uneven: slices lie 2 mm (3 times) and 4 mm (3 times) and 6 mm (2 times) apart"),
        ([3] * 4 + [3.08] * 4, "uneven: slices lie 3 to 3.08 mm apart, and up to 0.16 mm from where slices of one"),
        ([3, 4, 5, 6, 7, 8, 9, 10], "uneven: slices lie 3 to 10 mm apart, expected one distance"),
        ([3, 3, 6, 3, 3, 6, 3, 3], "2 slices missing, at -41.00, -29.00 mm along the slices' normal (spacing 3 mm)"),
        ([3, 3, 3, 12, 3, 3, 3, 3], "3 slices missing, at -38.00, -35.00, -32.00 mm"),
    ],
)
def test_two_distances_are_called_uneven_and_lost_slices_missing(
    tmp_path: Path, steps_mm: list[float], said: str
) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=spaced(steps_mm))
    assert said in refusal(tmp_path)


# --- blank identifiers


def blank(path: Path, keyword: str, value: str | None = "") -> None:
    """Blank an attribute of a file, or take it away (None); the meta information stays."""
    dataset = pydicom.dcmread(path)
    if value is None:
        delattr(dataset, keyword)
    else:
        setattr(dataset, keyword, value)
    pydicom.dcmwrite(path, dataset)  # without changes of the meta information


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("value", ["", None])
def test_blank_identifiers_are_those_of_the_meta_information(tmp_path: Path, keyword: str, value: str | None) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    known = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    for path in paths[2:]:
        blank(path, keyword, value)
    found = found_in(tmp_path)
    assert found.left_out == ()
    (series,) = found.series
    assert [each.sop_instance_uid for each in series.slices] == known
    scan = read_series(series)
    np.testing.assert_array_equal(scan.volume.voxels[0], ct_voxels(SHAPE))
    assert scan.volume.flags == (Flag(FlagCode.BLANK_IDENTIFIERS, value=7),)


def test_blank_identifiers_of_an_mr_series_do_not_hide_its_sequence(tmp_path: Path) -> None:
    for path in write_mr(tmp_path / "t1", T1):
        blank(path, "SOPInstanceUID")
    (series,) = found_in(tmp_path, "T1").series
    assert sequence_of(series) == "T1"


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
def test_identifiers_that_are_nowhere_are_refused_with_the_way_out(tmp_path: Path, keyword: str) -> None:
    for path in write_series(tmp_path / "ct", ct_voxels(SHAPE), transfer_syntax=ImplicitVRLittleEndian):
        blank(path, keyword)
        content = path.read_bytes()
        path.write_bytes(content[132 + 12 + int.from_bytes(content[140:144], "little") :])  # no meta information
    found = found_in(tmp_path)
    assert found.series == ()
    assert all(left.refused for left in found.left_out)
    assert f"no {keyword}; de-identification must replace identifiers, not blank them" in found.left_out[0].reason
    assert "can be used as NIfTI" in found.left_out[0].reason


# --- kinds before geometry


@pytest.mark.parametrize("spoil", ["gap", "slice", "damaged"])
def test_series_of_a_modality_that_is_not_taken_are_skipped_whatever_they_are_like(tmp_path: Path, spoil: str) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE))
    paths = write_series(tmp_path / "mr", ct_voxels(SHAPE) + 1000, modality="MR")
    if spoil == "gap":
        paths[4].unlink()
    elif spoil == "slice":
        blank(paths[4], "ImagePositionPatient", None)
    else:
        paths[4].write_bytes(paths[4].read_bytes()[:400])
    found = found_in(tmp_path, "CT")
    assert [series.modality for series in found.series] == ["CT"]
    assert found.left_out
    assert not any(left.refused for left in found.left_out)
    assert all("the model takes CT" in left.reason for left in found.left_out)
    assert any(left.refused for left in found_in(tmp_path, "MR").left_out), "a model that takes it has to know"


def test_a_sequence_that_is_not_taken_is_skipped_before_its_gap_is_judged(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1)
    write_mr(tmp_path / "dwi", DIFFUSION)[4].unlink()
    found = found_in(tmp_path, "T1")
    assert len(found.series) == 1
    (left,) = found.left_out
    assert not left.refused
    assert "diffusion, the model takes T1" in left.reason
    assert any(each.refused for each in found_in(tmp_path, "MR").left_out)


def test_derived_images_beside_original_ones_are_skipped_before_their_gap_is_judged(tmp_path: Path) -> None:
    def derived(_: object, dataset: pydicom.Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
        dataset.StudyInstanceUID = uid("ct", "study")

    write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "reformatted", ct_voxels(SHAPE, 1), change=derived)[4].unlink()
    (left,) = found_in(tmp_path).left_out
    assert (left.refused, left.kind, left.items) == (False, "derived series", 1)
    assert "1 slice missing" in refusal(tmp_path / "reformatted")


def test_a_few_images_over_a_short_way_are_skipped_before_their_distances_are_judged(tmp_path: Path) -> None:
    write_series(tmp_path / "short", ct_voxels((4, 16, 20)), change=spaced([3, 5, 4]))
    (left,) = found_in(tmp_path).left_out
    assert not left.refused
    assert "4 images over less than 20 mm" in left.reason


def test_damaged_files_of_different_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paths = write_series(tmp_path / name, ct_voxels(SHAPE))
        paths[0].write_bytes(paths[0].read_bytes()[:400])
    refused = [left.path.parent.name for left in found_in(tmp_path).left_out if left.refused]
    assert sorted(refused) == ["a", "b"]


def test_things_are_counted_by_kind(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "mr", ct_voxels(SHAPE) + 1000, modality="MR")
    for number, sop_class in enumerate(["1.2.840.10008.5.1.4.1.1.481.3"] * 2 + ["1.2.840.10008.5.1.4.1.1.481.2"]):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid("other", str(number))
        save(dataset, tmp_path / "ct" / f"other{number}.dcm")
    counts = {left.kind: left.items for left in found_in(tmp_path, "CT").left_out}
    assert counts == {"RT structure set": 2, "RT dose": 1, "MR series": 1}
