"""Soft labels in a data set's softTr: what they are mixed with, unlabelled scans that have some, and wrong files."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from parotid_seg.errors import InputError
from parotid_seg.train.config import SegmentConfig, TrainConfig
from parotid_seg.train.data.checks import check_labels
from parotid_seg.train.data.data_set import DataSet, open_data_set, open_data_sets
from parotid_seg.train.data.patients import load_patients
from parotid_seg.train.settings import load_config
from parotid_seg.train.stages import train
from tests.train.data.test_sampling import STILL, sampler_of

HU = (-200.0, 300.0)


def write_soft(data: Path, name: str, levels: tuple[int, int], images: str = "imagesTr") -> None:
    """Soft labels that are the same in every voxel of a scan."""
    scan = nibabel.load(data / images / f"{name}_0000.nii.gz")
    (data / "softTr").mkdir(exist_ok=True)
    for value, level in enumerate(levels, start=1):
        shares = np.full(scan.shape, level, np.uint8)
        nibabel.save(nibabel.Nifti1Image(shares, scan.affine), data / "softTr" / f"{name}_{value:04d}.nii.gz")


@pytest.fixture
def data(data: Path) -> Path:
    (data / "imagesUn").mkdir()
    for name in ("u1", "u2"):
        shutil.copy(data / "imagesTr" / "p0_0000.nii.gz", data / "imagesUn" / f"{name}_0000.nii.gz")
    return data


@pytest.fixture
def drawn(data: Path, small_config: Path, tmp_path: Path) -> Callable[[str, float], torch.Tensor]:
    def draw(name: str, soft_share: float) -> torch.Tensor:
        """Targets (N, 3, G, G) of slices of one patient that show a gland."""
        config = load_config("compact", small_config)
        config = dataclasses.replace(config, segment=dataclasses.replace(config.segment, soft_share=soft_share))
        opened = open_data_set(data, soft=soft_share > 0)
        patients = load_patients(opened, [name], tmp_path / "cache", HU)
        return sampler_of(patients, config, opened, STILL)[0].targets

    return draw


def test_targets_are_a_mixture(data: Path, drawn: Callable[[str, float], torch.Tensor]) -> None:
    write_soft(data, "p0", (51, 102))
    hard, soft, mixed = (drawn("p0", share) for share in (0.0, 1.0, 0.25))
    assert hard[:, 1:].max() > 0.9
    middle = hard.shape[-1] // 2
    torch.testing.assert_close(soft[:, 1, middle, middle], torch.full((8,), 0.2))
    torch.testing.assert_close(soft[:, 2, middle, middle], torch.full((8,), 0.4))
    torch.testing.assert_close(mixed, 0.75 * hard + 0.25 * soft)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones_like(soft[:, 0]))


def test_sides_change_in_the_mirror(data: Path, small_config: Path, tmp_path: Path) -> None:
    write_soft(data, "p0", (51, 102))
    opened = open_data_set(data, soft=True)
    config = load_config("compact", small_config)
    config = dataclasses.replace(config, segment=dataclasses.replace(config.segment, soft_share=1.0))
    patients = load_patients(opened, ["p0"], tmp_path / "cache", HU)
    targets = sampler_of(patients, config, opened, dataclasses.replace(STILL, mirror_probability=1.0))[0].targets
    middle = targets.shape[-1] // 2
    assert targets[0, 1, middle, middle].item() == pytest.approx(0.4)


def test_an_unlabelled_scan_with_soft_labels_is_a_training_patient(
    data: Path, drawn: Callable[[str, float], torch.Tensor]
) -> None:
    write_soft(data, "u2", (200, 30), "imagesUn")
    assert open_data_set(data).train == ("p0", "p1", "p2", "p3")
    opened = open_data_set(data, soft=True)
    assert (opened.train, opened.soft) == (("p0", "p1", "p2", "p3", "u2"), ("u2",))
    targets = drawn("u2", 0.1)  # its soft labels are all that it has
    middle = targets.shape[-1] // 2
    torch.testing.assert_close(targets[:, 1, middle, middle], torch.full((8,), 200 / 255))


def test_what_has_the_largest_share_says_which_slices_show_a_structure(data: Path, tmp_path: Path) -> None:
    write_soft(data, "u1", (0, 0), "imagesUn")
    for value, level in ((1, 120), (2, 100)):
        path = data / "softTr" / f"u1_{value:04d}.nii.gz"
        image = nibabel.load(path)
        shares = np.zeros(image.shape, np.uint8)
        shares[20:30, 20:30, 5 * value : 5 * value + 3] = level + 40
        shares[20, 20, 18] = level
        nibabel.save(nibabel.Nifti1Image(shares, image.affine), path)
    (patient,) = load_patients(open_data_set(data, soft=True), ["u1"], tmp_path / "cache", HU)
    assert patient.shown_in == ((), (5, 6, 7, 18), (10, 11, 12))  # 120 of 255 is more than the background's 35
    assert not patient.contoured


def test_label_maps_stay_those_of_the_patient(data: Path, tmp_path: Path) -> None:
    write_soft(data, "p0", (255, 0))
    (soft,) = load_patients(open_data_set(data, soft=True), ["p0"], tmp_path / "cache", HU)
    (hard,) = load_patients(open_data_set(data), ["p0"], tmp_path / "cache", HU)
    np.testing.assert_array_equal(soft.labels, hard.labels)
    assert (soft.shown_in, soft.contoured, hard.soft) == (hard.shown_in, True, None)


def halves(data: Path, name: str, left: int, shares: int = 255) -> None:
    """Soft labels of both glands of a scan in imagesUn, the one of label 1 in the columns from `left` on."""
    write_soft(data, name, (0, 0), "imagesUn")
    for value, first in ((1, left), (2, 22 - left)):
        path = data / "softTr" / f"{name}_{value:04d}.nii.gz"
        image = nibabel.load(path)
        there = np.zeros(image.shape, np.uint8)
        there[first : first + 6, 20:26, 5:15] = shares
        nibabel.save(nibabel.Nifti1Image(there, image.affine), path)


def checked(data: Path, cache: Path) -> list[str]:
    """The remarks on a data set with soft labels."""
    found = open_data_set(data, soft=True)
    patients = load_patients(found, (*found.train, *found.validation), cache, HU)
    config = TrainConfig()
    return check_labels(found, patients[: len(found.train)], patients[len(found.train) :], config)


def test_soft_labels_are_checked_as_label_maps_are(data: Path, tmp_path: Path) -> None:
    left, right = 17, 5  # columns of both sides of the head
    for name in ("u1", "u2"):
        halves(data, name, left)
    assert not any("u1" in line or "u2" in line for line in checked(data, tmp_path / "a") if "same voxels" not in line)
    halves(data, "u2", right)
    with pytest.raises(InputError, match="left and right are swapped in 1 of 8 label maps: u2"):
        checked(data, tmp_path / "b")
    halves(data, "u2", left)
    write_soft(data, "u1", (0, 0), "imagesUn")
    assert "label maps without parotid_left, which is learnt as background there: u1" in checked(data, tmp_path / "c")
    halves(data, "u1", left, shares=1)
    with pytest.raises(InputError, match="found no share above 1, expected some of up to 255; are these masks of 0"):
        checked(data, tmp_path / "d")


def opened(data: Path) -> DataSet:
    config = TrainConfig(stages=("segment",), segment=SegmentConfig(soft_share=0.5))
    return open_data_sets(data, config)["segment"]


def test_no_soft_labels_are_an_error(data: Path) -> None:
    with pytest.raises(InputError, match=r"softTr: found no soft labels of a training patient"):
        opened(data)
    write_soft(data, "p5", (1, 1))  # of a validation patient
    with pytest.raises(InputError, match=r"found no soft labels of a training patient"):
        opened(data)


def test_soft_labels_that_are_not_used_are_named(data: Path) -> None:
    """A misspelt name would leave a scan out of the training without a word."""
    write_soft(data, "p0", (51, 102))
    assert open_data_set(data, soft=True).notes == ()
    for value in (1, 2):
        shutil.copy(data / "softTr" / f"p0_{value:04d}.nii.gz", data / "softTr" / f"pO_{value:04d}.nii.gz")
    (note,) = open_data_set(data, soft=True).notes
    assert note == "soft labels of no training patient and no scan in imagesUn are not used: pO"


def test_a_structure_without_soft_labels_is_an_error(data: Path) -> None:
    write_soft(data, "p1", (1, 1))
    (data / "softTr" / "p1_0002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"p1_0002.nii.gz: no such file: soft labels of parotid_right of case p1"):
        opened(data)


def test_shares_above_one_are_an_error(data: Path, tmp_path: Path) -> None:
    write_soft(data, "p1", (200, 100))
    with pytest.raises(InputError, match=r"found shares whose sum in a voxel is 300, expected at most 255"):
        load_patients(opened(data), ["p1"], tmp_path / "cache", HU)
    write_soft(data, "p2", (128, 128))  # one half each, rounded
    load_patients(opened(data), ["p2"], tmp_path / "cache", HU)


def test_the_label_ignore_is_an_error(data: Path) -> None:
    write_soft(data, "p1", (1, 1))
    description = json.loads((data / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"found the label 'ignore', which cannot be used with soft labels"):
        opened(data)


def test_shares_beyond_0_and_1_and_for_organs_are_errors() -> None:
    with pytest.raises(InputError, match=r"soft_share: found 1\.5, expected 0 to 1"):
        SegmentConfig(soft_share=1.5)
    with pytest.raises(InputError, match=r"organs\.soft_share: found 0\.5, expected 0"):
        TrainConfig(organs=SegmentConfig(soft_share=0.5))


def test_a_training_with_soft_labels(data: Path, small_config: Path, tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        write_soft(data, name, (10, 10))
    write_soft(data, "u1", (10, 10), "imagesUn")
    config = load_config("compact", small_config)
    segment = dataclasses.replace(config.segment, epochs=1, images_per_epoch=16, soft_share=0.5)
    config = dataclasses.replace(config, segment=segment)
    lines: list[str] = []
    assert train(config, data, tmp_path / "run", device="cpu", report=lines.append)
    assert any("trains on 5 patients" in line for line in lines)
    assert (tmp_path / "run" / "best.pt").exists()
