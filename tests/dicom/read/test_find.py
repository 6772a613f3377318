"""Which files are a series: by position alone, each volume whole or refused with the reason; nothing left unsaid."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.series_volume import Found, Skipped, find_series, read_series
from parotid_seg.flags import Flag, FlagCode
from tests.dicom.reading import files_in
from tests.dicom_series import ct_voxels, lay, save, uid, write_enhanced, write_series

pytestmark = pytest.mark.slow


SHAPE = (9, 16, 20)


def all_in(folder: Path) -> Found:
    return find_series(files_in(folder))


def refusal(folder: Path) -> str:
    """Why the one series in a folder is refused; everything there is left out for it."""
    found = all_in(folder)
    assert found.series == ()
    (left_out,) = found.left_out
    assert left_out.refused
    return str(left_out)


def shifted(change_mm: Any) -> Callable[..., None]:
    """A change of the slices' positions, by the slice's number, in mm (x, y, z)."""

    def change(index: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [
            float(old) + new for old, new in zip(dataset.ImagePositionPatient, change_mm(index), strict=True)
        ]

    return change


def phase(number: int, name: str | None) -> Callable[..., None]:
    """A change that makes images another phase of the same series by one attribute; None is none."""

    def change(index: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = uid("phase", str(number), str(index))
        if name == "ImageType":
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "M" if number == 1 else "P"]
        elif name is not None:
            setattr(dataset, name, number)

    return change


def test_order_comes_from_positions_not_from_names_or_numbers(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    (series,) = find_series(sorted(paths, key=lambda path: path.name)).series
    assert [each.path for each in series.slices] == paths
    assert [path.name for path in paths] != sorted(path.name for path in paths)


def test_two_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    first = write_series(tmp_path / "ct", ct_voxels(SHAPE), number=2, names="A")
    second = write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), number=1, uids="2", names="B")
    found = all_in(tmp_path)
    assert found.left_out == ()
    assert [{each.path for each in series.slices} for series in found.series] == [set(second), set(first)]
    assert len({series.key for series in found.series}) == 2


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_series_uid_used_twice_makes_two_series(tmp_path: Path, keyword: str) -> None:
    def change(index: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, "1.2.3" if keyword.endswith("UID") else "Someone^Else")
        dataset.SOPInstanceUID = uid(keyword, str(index))

    write_series(tmp_path / "ct", ct_voxels(SHAPE), names="A")
    write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), names="B", change=change)
    found = all_in(tmp_path)
    assert found.left_out == ()
    assert [len(series.slices) for series in found.series] == [9, 9]
    assert len({series.key for series in found.series}) == 2
    assert len({series.key[:8] for series in found.series}) == 1


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("AcquisitionNumber", ["acquisition-1", "acquisition-2"]),
        ("TemporalPositionIdentifier", ["time-1", "time-2"]),
        ("EchoNumbers", ["echo-1", "echo-2"]),
        ("EchoTime", ["te-1", "te-2"]),
        ("DiffusionBValue", ["b-1", "b-2"]),
        ("ImageType", ["1", "2"]),
    ],
)
def test_images_at_the_same_positions_are_told_apart_by_number(tmp_path: Path, name: str, keys: list[str]) -> None:
    first, second = ct_voxels(SHAPE), ct_voxels(SHAPE, 1)
    write_series(tmp_path / "mr", first + 1000, modality="MR", names="A", change=phase(1, name))
    write_series(tmp_path / "mr", second + 1000, modality="MR", names="B", change=phase(2, name))
    found = all_in(tmp_path)
    assert found.left_out == ()
    assert [series.key[9:] for series in found.series] == keys
    for series, voxels in zip(found.series, (first, second), strict=True):
        scan = read_series(series)
        np.testing.assert_array_equal(scan.volume.voxels[0], voxels + 1000)
        assert Flag(FlagCode.PART_OF_SERIES, detail=series.part) in scan.volume.flags


def test_images_at_the_same_positions_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), names="A", change=phase(1, None))
    write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), names="B", change=phase(2, None))
    assert "up to 2 images at one position (at 9 positions), and no number tells them apart" in refusal(tmp_path)


def test_a_phase_with_a_gap_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), names="A", change=phase(1, "AcquisitionNumber"))
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), names="B", change=phase(2, "AcquisitionNumber"))
    paths[4].unlink()
    assert "by acquisition 1 slice missing, at -38.00 mm" in refusal(tmp_path)


def test_phases_in_one_multi_frame_file_are_told_apart(tmp_path: Path) -> None:
    def change(index: object, dataset: Dataset) -> None:
        for place, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.FrameContentSequence[0].TemporalPositionIndex = 1 + place // 9
            frame.PlanePositionSequence = dataset.PerFrameFunctionalGroupsSequence[place % 9].PlanePositionSequence

    voxels = ct_voxels((18, 16, 20))
    write_enhanced(tmp_path / "all.dcm", voxels, order=range(18), change=change)
    found = all_in(tmp_path)
    assert found.left_out == ()
    assert [series.part for series in found.series] == ["time-1", "time-2"]
    for half, series in enumerate(found.series):
        np.testing.assert_array_equal(
            read_series(series).volume.orientation.to_storage(read_series(series).volume.voxels[0]).T,
            voxels[9 * half : 9 * half + 9],
        )


def test_copies_are_used_once_and_told(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    shutil.copytree(tmp_path / "ct", tmp_path / "ct again")
    found = all_in(tmp_path)
    assert found.left_out == (Skipped(tmp_path / "ct again", "copies of images that are used", 9),)
    assert [each.path for each in found.series[0].slices] == paths
    assert str(found.left_out[0]) == f"{tmp_path / 'ct again'}: copies of images that are used (9 files)"


def test_a_copy_under_another_uid_is_a_copy(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    dataset = pydicom.dcmread(paths[3])
    dataset.SOPInstanceUID = "1.2.3"
    save(dataset, tmp_path / "ct" / "again.dcm")
    assert [left.reason for left in all_in(tmp_path).left_out] == ["copies of images that are used"]


def test_a_shared_instance_uid_is_refused(tmp_path: Path) -> None:
    def change(index: int, dataset: Dataset) -> None:
        if index == 4:
            dataset.SOPInstanceUID = uid("ct", "", "instance", "5")

    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=change)
    assert "2 different images share their SOPInstanceUID with another" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ([4], "1 slice missing, at -38.00 mm along the slices' normal (spacing 3 mm)"),
        ([2, 3, 6, 7], "4 slices missing, at -44.00, -41.00, -32.00, ... mm"),
    ],
)
def test_missing_slices_are_named_by_position(tmp_path: Path, gone: list[int], said: str) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    for index in gone:
        paths[index].unlink()
    assert said in refusal(tmp_path)


def test_varying_spacing_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=shifted(lambda index: (0, 0, max(0, index - 4))))
    assert "uneven: slices lie 3 mm (4 times) and 4 mm (4 times) apart, expected one distance" in refusal(tmp_path)


@pytest.mark.parametrize("rounded", [4, 1])
def test_rounded_positions_are_even(tmp_path: Path, rounded: int) -> None:
    step = 2.625
    moved = shifted(lambda index: (0, 0, round(step * index, rounded) - step * index))
    write_series(tmp_path / "ct", ct_voxels(SHAPE), lay((step, 1, 1)), change=moved)
    (series,) = all_in(tmp_path).series
    assert read_series(series).volume.spacing_mm[0] == pytest.approx(step, abs=0.1 / 8)


def test_rounding_aside_makes_no_tilted_gantry(tmp_path: Path) -> None:
    moved = shifted(lambda index: (0.004 * index, 0.01 * (index % 2), 0))
    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=moved)
    scan = read_series(all_in(tmp_path).series[0])
    assert scan.volume.flags == ()
    assert int(scan.header["qform_code"]) == 1


def test_slices_out_of_line_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=shifted(lambda index: (5 * (index == 4), 0, 0)))
    assert "slices are shifted against each other by up to 5.00 mm" in refusal(tmp_path)


def resized(dataset: Dataset) -> None:
    dataset.Rows, dataset.PixelData = 14, dataset.PixelData[: 14 * 20 * 2]


def turned(dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (resized, "its images differ in size: 8 of 16 x 20 at 1 x 1 mm, 1 of 14 x 20 at 1 x 1 mm (such as IM"),
        (turned, "its images differ in orientation: 8 of 16 x 20"),
        (lambda dataset: setattr(dataset, "PixelSpacing", [2, 2]), "its images differ in spacing: 8 of 16 x 20 at 1 x"),
        (lambda dataset: setattr(dataset, "FrameOfReferenceUID", "1.2"), "its images differ in frame of reference"),
        (
            lambda dataset: delattr(dataset, "ImagePositionPatient"),
            "no usable ImagePositionPatient, expected 3 numbers",
        ),
        (lambda dataset: delattr(dataset, "PixelData"), "cut off: found 0 bytes of pixel data, expected 640"),
        (lambda dataset: setattr(dataset, "SamplesPerPixel", 3), "a colour image: found 3 samples a pixel, expected 1"),
        (lambda dataset: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"), "MONOCHROME1, of which"),
        (lambda dataset: setattr(dataset, "PhotometricInterpretation", "PALETTE COLOR"), "not grey values"),
        (lambda dataset: delattr(dataset, "RescaleSlope"), "no RescaleSlope and RescaleIntercept"),
        (lambda dataset: setattr(dataset, "RescaleSlope", 0), "RescaleSlope is 0"),
        (lambda dataset: setattr(dataset, "RescaleType", "Z_EFF"), "not in Hounsfield units (RescaleType)"),
        (lambda dataset: setattr(dataset, "RescaleType", "HOUNSFIELD"), "a RescaleType that DICOM does not define"),
        (lambda dataset: setattr(dataset, "BitsStored", 17), "found 16 bits a pixel, 17 of them stored"),
        (lambda dataset: setattr(dataset, "PixelSpacing", [0, 1]), "no usable PixelSpacing, expected positive numbers"),
        (lambda dataset: setattr(dataset, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "two unit vectors"),
        (lambda dataset: setattr(dataset, "SOPInstanceUID", "no UID"), "no usable SOPInstanceUID"),
    ],
)
@pytest.mark.parametrize("bad", [0, 4, 8], ids=["first", "middle", "last"])
def test_one_bad_slice_refuses_its_series_wherever_it_lies(
    tmp_path: Path, bad: int, change: Callable[..., Any], said: str
) -> None:
    write_series(
        tmp_path / "ct", ct_voxels(SHAPE), change=lambda index, dataset: change(dataset) if index == bad else None
    )
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'ct'}: CT series ")
    assert said in message
    assert message.endswith("(9 files)")
    if "differ" not in said:
        assert "1 of 9 files cannot be used, such as IM" in message


def test_a_damaged_file_of_no_known_series_is_told_and_the_series_beside_it_are_flagged(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), uids="2", names="B")
    write_series(tmp_path / "other", ct_voxels(SHAPE))
    paths[-1].write_bytes(paths[-1].read_bytes()[:400])  # the last one: no gap shows
    found = all_in(tmp_path)
    assert [(series.folder.name, len(series.slices)) for series in found.series] == [("ct", 8), ("ct", 9), ("other", 9)]
    flag = Flag(FlagCode.DAMAGED_FILE_BESIDE, detail=paths[-1].name)
    assert [series.flags for series in found.series] == [(flag,), (flag,), ()]
    assert read_series(found.series[0]).volume.flags == (flag,)
    (left,) = found.left_out
    assert (left.path, left.refused, left.reason) == (paths[-1], True, "cut off before SeriesInstanceUID")


def test_a_damaged_file_refuses_the_series_that_has_a_gap_for_it_and_no_other(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), uids="2", names="B")
    paths[4].write_bytes(paths[4].read_bytes()[:400])
    found = all_in(tmp_path)
    assert [len(series.slices) for series in found.series] == [9]
    (refused,) = [each for each in found.left_out if each.count == 8]
    assert (
        f"1 slice missing, at -38.00 mm along the slices' normal (spacing 3 mm); {paths[4].name} beside it cannot"
        in (refused.reason)
    )


def test_a_damaged_file_that_says_its_series_refuses_that_one(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "ct", ct_voxels(SHAPE, 1), uids="2", names="B")
    content = bytearray(paths[-1].read_bytes())
    at = content.index(b"\x20\x00\x32\x00DS")  # ImagePositionPatient, which comes after SeriesInstanceUID
    content[at + 6 : at + 8] = b"\xff\xff"
    paths[-1].write_bytes(content)
    found = all_in(tmp_path)
    assert [(len(series.slices), series.flags) for series in found.series] == [(9, ())]
    assert any(f"{paths[-1].name}, one of its files, cannot be read" in each.reason for each in found.left_out) or any(
        f"1 of 9 files cannot be used, such as {paths[-1].name}" in each.reason for each in found.left_out
    )


def test_a_damaged_copy_of_an_image_that_is_used_refuses_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    (tmp_path / "ct" / "part.dcm").write_bytes(paths[3].read_bytes()[:-100])
    found = all_in(tmp_path)
    assert len(found.series[0].slices) == 9
    assert [(left.reason, left.refused) for left in found.left_out] == [
        ("damaged copies of images that are used", False)
    ]


def test_complete_volumes_of_two_orientations_in_one_series_are_both_used(tmp_path: Path) -> None:
    def change(index: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = uid("sagittal", str(index))

    write_series(tmp_path / "mr", ct_voxels((9, 24, 24)) + 1000, modality="MR", names="A")
    sagittal = lay(row=(0, 1, 0), column=(0, 0, -1))
    write_series(tmp_path / "mr", ct_voxels((9, 24, 24), 1) + 1000, sagittal, modality="MR", names="B", change=change)
    found = all_in(tmp_path)
    assert found.left_out == ()
    assert [series.part for series in found.series] == ["plane-1", "plane-2"]


@pytest.mark.parametrize("number", [2**31, "1e300", "<b>"])
def test_series_numbers_that_are_none_are_not_shown(tmp_path: Path, number: int | str) -> None:
    def change(index: object, dataset: Dataset) -> None:
        dataset.add(pydicom.DataElement("SeriesNumber", "LO", str(number)))

    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=change)
    (series,) = all_in(tmp_path).series
    assert series.number is None
    assert series.title == f"CT series ({series.key})"


@pytest.mark.parametrize("content", [b"", bytes(5000), b"<html>"])
@pytest.mark.parametrize("names", ["IM{:05d}", "{}.dcm"])
def test_lost_images_at_the_end_of_a_series_are_refused_and_flagged(tmp_path: Path, content: bytes, names: str) -> None:
    """A copy that broke off leaves files of the right name and size 0, or of the right size and zeros."""
    for index, path in enumerate(write_series(tmp_path / "ct", ct_voxels(SHAPE))):
        if index == 8:
            path.write_bytes(content)
        path.rename(path.with_name(names.format(index)))
    (tmp_path / "ct" / "DONE").touch()
    found = all_in(tmp_path)
    (series,) = found.series
    assert [flag.code for flag in series.flags] == [FlagCode.DAMAGED_FILE_BESIDE]
    assert [left.reason for left in found.left_out if left.refused] == [
        f"{'not DICOM' if content else 'empty'}, but named as a DICOM image"
    ]
    assert len(found.left_out) == 2


def test_names_of_files_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("<b>\n\x1b[31m.x", "..x", "caf\udce9"):
        Path(name).write_text("stray")
    relative, absolute = Path("<b>\n\x1b[31m.x"), [tmp_path / "..x", tmp_path / "caf\udce9"]
    assert [str(left) for left in find_series([relative]).left_out] == ["<b>__[31m.x: not DICOM"]
    assert [str(left) for left in find_series([relative, *absolute]).left_out] == [f"{tmp_path}: not DICOM (3 files)"]


def test_series_without_preamble_and_meta_information_is_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "ct", ct_voxels(SHAPE)):
        content = path.read_bytes()
        start = 132 + 12 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[start:])
    (series,) = all_in(tmp_path).series
    assert read_series(series).volume.shape == (9, 16, 20)


def test_files_that_are_not_there_or_no_files_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    found = find_series([tmp_path / "pipe", tmp_path / "gone", tmp_path])
    assert [str(left) for left in found.left_out] == [f"{tmp_path.parent}: no file (3 files)"]


def test_a_file_given_twice_counts_once(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    found = find_series(paths + paths)
    assert found.left_out == ()
    assert len(found.series[0].slices) == 9


def test_spacing_of_no_head_scan_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), lay((30, 1, 1)))
    assert "found spacing (30.0, 1.0, 1.0) mm, expected 0.05 to 20.0 mm" in refusal(tmp_path)
