"""Images that are no scans, such as localizers, projections and derived images, are left out by kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage, SecondaryCaptureImageStorage

from parotid_seg.dicom.read.series_volume import Skipped
from tests.dicom.read.test_find import SHAPE, all_in, turned
from tests.dicom_series import ct_voxels, lay, save, uid, write_series


@pytest.mark.parametrize(("kind", "said"), [("LOCALIZER", "localizer"), ("MIP", "projection"), ("MOSAIC", "mosaic")])
def test_images_of_other_kinds_are_left_out(tmp_path: Path, kind: str, said: str) -> None:
    def change(index: int, dataset: Dataset) -> None:
        if index < 2:
            turned(dataset)
            dataset.ImageType = ["ORIGINAL", "PRIMARY", kind]

    write_series(tmp_path / "ct", ct_voxels((11, 16, 20)), change=change)
    found = all_in(tmp_path)
    assert found.left_out == (Skipped(tmp_path / "ct", f"{said} images", 2),)
    assert len(found.series[0].slices) == 9


def test_a_few_images_in_each_of_three_planes_are_a_localizer_whatever_they_are_called(tmp_path: Path) -> None:
    for name, where in (
        ("axial", lay()),
        ("sagittal", lay(row=(0, 1, 0), column=(0, 0, -1))),
        ("coronal", lay(column=(0, 0, -1))),
    ):

        def change(index: int, dataset: Dataset, name: str = name) -> None:
            dataset.SOPInstanceUID = uid(name, str(index))

        write_series(tmp_path / "mr", ct_voxels((3, 24, 24)) + 1000, where, modality="MR", names=name, change=change)
    found = all_in(tmp_path)
    assert found.series == ()
    (left,) = found.left_out
    assert (left.count, left.refused) == (9, False)
    assert "9 images in 3 planes, as of a localizer" in str(left)


def test_parts_of_a_dixon_sequence_count_as_original(tmp_path: Path) -> None:
    def water(index: object, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "PRIMARY", "DIXON", "WATER"]
        dataset.StudyInstanceUID = uid("t1", "study")

    write_series(tmp_path / "t1", ct_voxels(SHAPE) + 1000, modality="MR")
    write_series(tmp_path / "water", ct_voxels(SHAPE, 1) + 1000, modality="MR", change=water)
    found = all_in(tmp_path)
    assert [series.folder.name for series in found.series] == ["t1", "water"]


def test_derived_images_are_used_only_where_there_are_no_original_ones(tmp_path: Path) -> None:
    def derived(index: object, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
        dataset.StudyInstanceUID = uid("ct", "study")

    write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "reformatted", ct_voxels(SHAPE, 1), change=derived)
    both = all_in(tmp_path)
    assert [series.folder.name for series in both.series] == ["ct"]
    assert [str(left) for left in both.left_out] == [
        f"{tmp_path / 'reformatted'}: images derived from others of a study that has original ones (9 files)"
    ]
    (alone,) = all_in(tmp_path / "reformatted").series
    assert alone.folder.name == "reformatted"


def test_what_is_no_scan_is_left_out_by_kind(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE))
    for number, kind in enumerate([RTStructureSetStorage, RTStructureSetStorage, SecondaryCaptureImageStorage]):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = kind, uid("other", str(number))
        save(dataset, tmp_path / "ct" / f"other{number}.dcm")
    (tmp_path / "ct" / "notes.txt").write_text("stray")
    (tmp_path / "ct" / "picture.png").write_bytes(b"\x89PNG" + bytes(500))
    (tmp_path / "ct" / "nothing").touch()
    write_series(tmp_path / "single", ct_voxels((1, 16, 20)))
    write_series(tmp_path / "short", ct_voxels((3, 16, 20)))
    found = all_in(tmp_path)
    assert [series.folder.name for series in found.series] == ["ct"]
    lines = {str(left).removeprefix(f"{tmp_path}/") for left in found.left_out}
    short = next(line for line in lines if line.startswith("short"))
    assert lines - {short} == {
        "ct: DICOM, but neither CT nor MR: RT Structure Set (2 files)",
        "ct/other2.dcm: DICOM, but neither CT nor MR: Secondary Capture Image",
        "ct: not DICOM (2 files)",
        "ct/nothing: empty",
        f"single/{next((tmp_path / 'single').iterdir()).name}: a single image, expected a stack of slices",
    }
    assert "3 slices cover 9.0 mm from inferior to superior, expected at least 20 mm (3 files)" in short
    assert not any(left.refused for left in found.left_out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda dataset: setattr(dataset, "ImagePositionPatient", [0, 0, 0]), "9 images at one position"),
        (lambda dataset: setattr(dataset, "SamplesPerPixel", 3), "9 of 9 files cannot be used, such as IM"),
        (lambda dataset: setattr(dataset, "RescaleType", "Z_EFF"), "9 of 9 files cannot be used, such as IM"),
    ],
)
def test_series_that_are_no_scans_are_left_out_but_not_refused(
    tmp_path: Path, change: Callable[..., Any], said: str
) -> None:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=lambda index, dataset: change(dataset))
    (left_out,) = all_in(tmp_path).left_out
    assert said in left_out.reason
    assert not left_out.refused


def test_a_rescale_type_that_dicom_does_not_define_is_refused(tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.RescaleType = "HOUNSFIELD"

    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=change)
    (left_out,) = all_in(tmp_path).left_out
    assert left_out.refused
    assert "a RescaleType that DICOM does not define, expected HU" in left_out.reason
