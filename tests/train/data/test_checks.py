"""Label maps and scans that look right one by one, and are not: what is refused, and what is reported."""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.checks import check_labels, warnings
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import Patient, load_patients
from tests.train.data.test_data_set import rewrite
from tests.train.data.test_sampling import STILL

Labels = NDArray[np.uint8]


def loaded(folder: Path, cache: Path) -> tuple[list[str], list[Patient]]:
    """The remarks on a data set's label maps, and its patients."""
    data = open_data_set(folder)
    patients = load_patients(data, (*data.train, *data.validation), cache, (-200.0, 300.0))
    return check_labels(data, patients[: len(data.train)], patients[len(data.train) :], TrainConfig()), patients


def relabelled(path: Path, change: Callable[[Labels], Labels]) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_every_patient_that_cannot_be_used_is_named_at_once(data: Path, tmp_path: Path) -> None:
    for case in ("p1", "p3"):
        path = data / "imagesTr" / f"{case}_0000.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(1024), image.affine), path)
    relabelled(data / "labelsTr" / "p4.nii.gz", lambda labels: labels * 40)
    expected = r"3 of 6 patients .*p1_0000\.nii\.gz: .* not HU.*; .*p3_0000\.nii\.gz: .*; .*p4\.nii\.gz: found label 80"
    with pytest.raises(ScanError, match=expected):
        loaded(data, tmp_path / "cache")


@pytest.mark.parametrize("right", [0, 2])
def test_both_glands_under_one_label_are_refused(data: Path, tmp_path: Path, right: int) -> None:
    """The right one is also under its own label, or is not."""

    def joined(labels: Labels) -> Labels:
        both = (labels > 0).astype(np.uint8)
        both[:, :, 14:][labels[:, :, 14:] == 2] = right
        return both

    relabelled(data / "labelsTr" / "p4.nii.gz", joined)
    expected = (
        "a parotid gland is wider than 80 mm from side to side in 1 of 6 label maps: p4; expected one gland in each"
    )
    with pytest.raises(InputError, match=expected):
        loaded(data, tmp_path / "cache")


def test_label_maps_that_lack_a_gland_or_most_of_it_are_named(data: Path, tmp_path: Path) -> None:
    relabelled(data / "labelsTr" / "p1.nii.gz", lambda labels: labels * (labels == 1))
    relabelled(data / "labelsTr" / "p5.nii.gz", lambda labels: labels * (np.arange(labels.shape[2]) < 10))
    remarks, _ = loaded(data, tmp_path / "cache")
    assert remarks == [
        "parotid_left: unlikely volumes: p5 (4.9 ml)",
        "label maps without parotid_right, which is learnt as background there: p1",
        "parotid_right: unlikely volumes: p5 (4.9 ml)",
    ]


def test_structures_outside_the_grid_are_named(data: Path) -> None:
    found = open_data_set(data)
    (patient,) = load_patients(found, ["p0"], data / "cache", (-200.0, 300.0))
    columns = np.flatnonzero((patient.labels == 1).any(axis=(0, 1))) * patient.volume.spacing_mm[2]
    for moved_mm, outside in ((0, False), (108 - np.ptp(columns), False), (108, True)):
        away = dataclasses.replace(patient, centre_mm=(patient.centre_mm[0], float(columns.min()) - moved_mm))
        remarks = check_labels(found, [away] * 3, [patient], dataclasses.replace(TrainConfig(), augment=STILL))
        named = [
            line for line in remarks if line.startswith("structures that lie in part outside the 216 mm wide grid")
        ]
        assert len(named) == outside, moved_mm
        assert not outside or "p0 (parotid_left 9" in named[0]


def test_a_patient_of_imagesTs_is_not_trained_on(data: Path) -> None:  # noqa: N802
    (data / "imagesTs").mkdir()
    (data / "imagesTs" / "p4_0000.nii.gz").touch()
    for _ in range(2):
        with pytest.raises(InputError, match="found p4 in imagesTr and in imagesTs, whose patients are locked"):
            open_data_set(data)
        (data / "splits.json").unlink(missing_ok=True)


def test_another_ending_and_numbers_for_names_are_named(data: Path) -> None:
    rewrite(data / "splits.json", train=["p0", 1])
    with pytest.raises(InputError, match="train: found 1, expected the name of a patient's files"):
        open_data_set(data)
    rewrite(data / "dataset.json", file_ending=".nii")
    (data / "splits.json").unlink()
    with pytest.raises(InputError, match=r"found no scan; expected imagesTr/CASE_0000\.nii \(file_ending of dataset"):
        open_data_set(data)


def test_the_longest_names_have_room_in_the_cache(data: Path, tmp_path: Path) -> None:
    name = "名" * 80 + "n"
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (data / folder / f"p0{ending}").rename(data / folder / f"{name}{ending}")
    rewrite(data / "splits.json", train=[name, "p1"])
    _, patients = loaded(data, tmp_path / "cache")
    assert patients[0].name == name


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"p0-[0-9a-f]+: cannot be written \(No space left on device\)"):
        loaded(data, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_scan_under_two_names_is_reported(data: Path, tmp_path: Path) -> None:
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(data / folder / f"p0{ending}", data / folder / f"q0{ending}")
    rewrite(data / "splits.json", train=["p0", "p1", "q0"])
    remarks, _ = loaded(data, tmp_path / "cache")
    assert remarks == ["scans of the same voxels under several names: p0 and q0; one patient counts for several"]


def test_a_header_that_is_unclear_about_sides_is_reported(data: Path, tmp_path: Path) -> None:
    for path in (data / "imagesTr" / "p0_0000.nii.gz", data / "labelsTr" / "p0.nii.gz"):
        image = nibabel.load(path)
        image.set_qform(np.diag([4.0, -4.0, 3.0, 1.0]), 1)
        nibabel.save(image, path)
    _, patients = loaded(data, tmp_path / "cache")
    assert (
        "warning: the header of 1 of 6 scans is unclear about sides or sizes: p0 (axes_disagree); `parotid-seg inspect "
        "FILE` says why"
    ) in warnings(patients)
