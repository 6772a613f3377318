"""What is wrong with a data set or a configuration is told in one line before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.command_line import Run

pytestmark = pytest.mark.slow


def describe(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def channel_too_many(data: Path) -> list[str]:
    describe(data, channel_names={"0": "CT", "1": "PET"})
    return ["imagesTr/p0_0001.nii.gz: no such file: PET of case p0"]


def label_outside(data: Path) -> list[str]:
    path = data / "labelsTr" / "p1.nii.gz"
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[20, 20, 12] = 7
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    return ["labelsTr/p1.nii.gz: found label 7, expected 0 to 2"]


def label_missing(data: Path) -> list[str]:
    (data / "labelsTr" / "p2.nii.gz").unlink()
    return ["labelsTr/p2.nii.gz: no such file: the label map of case p2"]


def scan_missing(data: Path) -> list[str]:
    (data / "imagesTr" / "p2_0000.nii.gz").unlink()
    return ["splits.json: found patients without a scan: p2; expected imagesTr/CASE_0000.nii.gz (file_ending of"]


def empty_label_maps(data: Path) -> list[str]:
    for name in ("p1", "p4"):
        path = data / "labelsTr" / f"{name}.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    return ["labelsTr: found no voxel of any label in the label maps of p1, p4, expected some in each"]


def only_ignored(data: Path) -> list[str]:
    describe(data, labels={"background": 0, "parotid_left": 1, "parotid_right": 2, "ignore": 3})
    path = data / "labelsTr" / "p5.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 3, np.uint8), image.affine), path)
    return ["labelsTr: found no voxel of any label in the label maps of p5, expected some in each"]


def sides_that_do_not_pair(data: Path) -> list[str]:
    describe(data, labels={"background": 0, "parotid_left": 1, "parotis_re": 2})
    return ["dataset.json: found no counterpart of the same name on the other side for parotid_left (left), parotis_re"]


def sides_swapped(data: Path) -> list[str]:
    """In a label map of the training and one of the validation; the names pair."""
    for name in ("p1", "p4"):
        path = data / "labelsTr" / f"{name}.nii.gz"
        image = nibabel.load(path)
        swapped = np.array([0, 2, 1], np.uint8)[np.asarray(image.dataobj)]
        nibabel.save(nibabel.Nifti1Image(swapped, image.affine), path)
    return ["labelsTr: left and right are swapped in 2 of 6 label maps: p1, p4; expected the patient's left and right"]


def a_gland_alone_on_the_wrong_side(data: Path) -> list[str]:
    path = data / "labelsTr" / "p2.nii.gz"
    image = nibabel.load(path)
    alone = np.array([0, 0, 1], np.uint8)[np.asarray(image.dataobj)]
    nibabel.save(nibabel.Nifti1Image(alone, image.affine), path)
    return ["labelsTr: left and right are swapped in 1 of 6 label maps: p2;"]


def in_two_lists(data: Path) -> list[str]:
    (data / "splits.json").write_text(json.dumps({"train": ["p0", "p1"], "validation": ["p1", "p2"]}))
    return ["splits.json: found patients more than once: p1 (train and validation)"]


def one_scan_in_both_lists(data: Path) -> list[str]:
    image = nibabel.load(data / "imagesTr" / "p0_0000.nii.gz")
    for name in ("p5_0000", "p4_0000"):
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), data / "imagesTr" / f"{name}.nii.gz")
    return [": found scans of the same voxels in training and validation: p0 and p"]


def validation_scan_in_pre_training(data: Path) -> list[str]:
    (data / "imagesUn").mkdir()
    held_out = json.loads((data / "splits.json").read_text())["validation"][0]
    shutil.copy(data / "imagesTr" / f"{held_out}_0000.nii.gz", data / "imagesUn" / "u_0000.nii.gz")
    return [f": found scans of the same voxels in training and validation: u and {held_out}; expected each scan once"]


def scan_cut_short(data: Path) -> list[str]:
    path = data / "imagesTr" / "p3_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    return ["imagesTr/p3_0000.nii.gz"]


def unlabelled_scan_cut_short(data: Path) -> list[str]:
    (data / "imagesUn").mkdir()
    (data / "imagesUn" / "u_0000.nii.gz").write_bytes((data / "imagesTr" / "p3_0000.nii.gz").read_bytes()[:500])
    return ["imagesUn/u_0000.nii.gz"]


def only_air(data: Path) -> list[str]:
    path = data / "imagesTr" / "p3_0000.nii.gz"
    image = nibabel.load(path)
    air = np.random.default_rng(0).integers(-1024, -900, image.shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(air, image.affine), path)
    return ["imagesTr/p3_0000.nii.gz: intensities", "show no patient"]


def one_patient(data: Path) -> list[str]:
    (data / "splits.json").unlink()
    for path in [*data.glob("imagesTr/p[1-9]*"), *data.glob("labelsTr/p[1-9]*")]:
        path.unlink()
    expected = "expected at least 2 to contrast (scans held out for validation do not count)"
    return [f"found 0 scans for training and in imagesUn, {expected}"]


@pytest.mark.parametrize(
    "spoil",
    [
        channel_too_many,
        label_outside,
        label_missing,
        scan_missing,
        empty_label_maps,
        only_ignored,
        sides_that_do_not_pair,
        sides_swapped,
        a_gland_alone_on_the_wrong_side,
        in_two_lists,
        one_scan_in_both_lists,
        validation_scan_in_pre_training,
        scan_cut_short,
        unlabelled_scan_cut_short,
        only_air,
        one_patient,
    ],
)
def test_one_line_and_nothing_trained(
    command: Run, data: Path, short_config: Path, spoil: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = spoil(data)
    run = tmp_path / "run"
    done = command(
        "train", data, "--out", run, "--config", short_config, "--stages", "contrast,segment", "--device", "cpu"
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "epoch 1" not in done.stdout
    assert not [*run.rglob("*.pt")]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--labelled", 0),
        ("--labelled", 99),
        ("--max-minutes", -1),
        ("--max-minutes", "nan"),
        ("--device", "meta"),
        ("--device", "cuda:x"),
        ("--init", "gone.pth"),
        ("--seed", -1),
    ],
)
def test_a_wrong_value_is_exit_2(
    command: Run, data: Path, short_config: Path, tmp_path: Path, option: str, value: int | str
) -> None:
    done = command("train", data, "--out", tmp_path / "run", "--config", short_config, option, value)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert option in done.stderr
    assert "epoch 1" not in done.stdout


def test_unknown_key(command: Run, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[contrast]\ntemprature = 0.1\n")
    done = command("train", data, "--out", tmp_path / "run", "--config", config)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "contrast.temprature: unknown key, expected one of: epochs" in done.stderr
