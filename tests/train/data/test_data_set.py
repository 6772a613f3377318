"""Data sets in nnU-Net's raw layout, whole and broken."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import InputError, ParotidSegError, ScanError
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.checks import check_labels, warnings
from parotid_seg.train.data.data_set import open_data_set, open_data_sets
from parotid_seg.train.data.patients import load_patients
from parotid_seg.train.settings import load_config

pytestmark = pytest.mark.slow

HU = (-200.0, 300.0)


def test_whole(balls: Path, tmp_path: Path) -> None:
    data = open_data_set(balls)
    assert data.train == ("p0", "p1", "p2", "p3")
    assert mirrored_labels(data.labels) == (0, 2, 1)
    patient = load_patients(data, ["p0"], tmp_path, HU)[0]
    assert patient.volume.shape == patient.labels.shape == (24, 50, 50)
    assert patient.volume.spacing_mm == (3.0, 4.0, 4.0)
    left, right = (np.argwhere(patient.labels == value)[:, 2].mean() for value in (1, 2))
    assert left > right, "columns run to the patient's left"
    assert patient.shown_in == ((), tuple(range(7, 18)), tuple(range(7, 18)))


def test_without_splits_a_fifth_is_held_out(data: Path) -> None:
    (data / "splits.json").unlink()
    found = open_data_set(data)
    assert len(found.validation) == 1
    assert sorted((*found.train, *found.validation)) == [f"p{index}" for index in range(6)]
    assert open_data_set(data) == found


def test_other_organs_are_those_that_are_not_to_be_segmented(balls: Path, data: Path, tmp_path: Path) -> None:
    organs = open_data_set(balls, "organs")
    assert (organs.labels, organs.stored_values) == (("background", "Mandible"), (0, 5))
    found = load_patients(organs, ["p0"], tmp_path / "cache", HU)[0].labels
    assert set(np.unique(found)) == {0, 1}
    glands = load_patients(open_data_set(balls), ["p0"], tmp_path / "cache", HU)[0].labels
    assert glands.max() == 2, "the cache tells the two apart"
    assert not found[np.asarray(glands) > 0].any()
    rewrite(data / "dataset.json", organ_labels=None)
    with pytest.raises(InputError, match="which the stage organs needs"):
        open_data_set(data, "organs")


def test_few_labels(balls: Path) -> None:
    drawn = {seed: [set(open_data_set(balls, labelled=n, seed=seed).train) for n in (1, 2, 3, 4)] for seed in range(8)}
    for sets in drawn.values():
        assert [len(names) for names in sets] == [1, 2, 3, 4]
        assert all(fewer < more for fewer, more in itertools.pairwise(sets))
    assert len({frozenset(sets[1]) for sets in drawn.values()}) > 1
    for wrong in (0, 5):
        with pytest.raises(InputError, match="--labelled"):
            open_data_set(balls, labelled=wrong)


def test_one_patient_is_not_enough(data: Path) -> None:
    (data / "splits.json").unlink()
    for path in [*data.glob("imagesTr/p[1-9]*"), *data.glob("labelsTr/p[1-9]*")]:
        path.unlink()
    with pytest.raises(InputError, match="found 0 patients with labels for training and 1 for validation, expected"):
        open_data_set(data)


def drop(folder: Path, *files: str) -> None:
    for name in files:
        (folder / f"{name}.nii.gz").unlink()


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "dataset.json").unlink(), "dataset.json: no such file, expected"),
        (lambda d: (d / "dataset.json").write_text("{"), "not JSON"),
        (lambda d: (d / "dataset.json").write_text("{}"), "channel_names"),
        (
            lambda d: rewrite(d / "dataset.json", channel_names={"0": "T1", "1": "T2"}),
            "p0_0001.nii.gz: no such file: T2 of case p0",
        ),
        (lambda d: rewrite(d / "dataset.json", channel_names={}), r"channel_names: found the keys \[\]"),
        (
            lambda d: rewrite(d / "dataset.json", channel_names=["CT"]),
            "channel_names: found a list, expected an object",
        ),
        (lambda d: rewrite(d / "dataset.json", channel_names={"1": "CT"}), r"channel_names: found the keys \['1'\]"),
        (lambda d: rewrite(d / "dataset.json", file_ending=None), "file_ending: found None, expected the end of"),
        (lambda d: rewrite(d / "dataset.json", file_ending=".**"), r"file_ending: found '\.\*\*', expected the end of"),
        (
            lambda d: rewrite(d / "dataset.json", labels={"gland": 0, "tumour": 1}),
            "expected 'background' with the number 0",
        ),
        (
            lambda d: shutil.copy(d / "imagesTr" / "p1_0000.nii.gz", d / "imagesTr" / "p1_0001.nii.gz"),
            "p1_0001.nii.gz: one more channel, but dataset.json names 1: CT",
        ),
        (lambda d: rewrite(d / "dataset.json", labels={"background": 0, "x": 2}), "found no name for the number 1"),
        (
            lambda d: rewrite(d / "splits.json", train=["p0", "p9"], validation=["p1", "q"]),
            r"splits.json: found patients without a scan: p9, q; expected imagesTr/CASE_0000\.nii\.gz",
        ),
        (lambda d: rewrite(d / "splits.json", train=["p0", "p1", "p0"]), r"more than once: p0 \(train and train\)"),
        (
            lambda d: rewrite(d / "splits.json", train=["p0", "p4", "p5"]),
            r"more than once: p4 \(train and validation\), p5 \(train and validation\)",
        ),
        (lambda d: rewrite(d / "splits.json", test=["p0"]), r"more than once: p0 \(train and test\)"),
        (lambda d: rewrite(d / "splits.json", train="p0"), "train: found a text, expected a list"),
        (
            lambda d: (d / "splits.json").write_text('[{"train": [], "val": []}]'),
            "splits.json: Expected `object`, got `array`",
        ),
        (lambda d: drop(d, "imagesTr/p2_0000", "imagesTr/p4_0000"), "no scan for the label maps of p2, p4; expected"),
        (lambda d: drop(d, "labelsTr/p2", "labelsTr/p4"), "p2.nii.gz: no such file: the label map of case p2, p4"),
        (lambda d: rewrite(d / "splits.json", validation=[]), "0 for validation"),
        (lambda d: (d / "splits.json").write_text('{"train": []}'), "'validation'"),
    ],
)
def test_broken(data: Path, spoil: Callable[..., Any], words: str) -> None:
    spoil(data)
    with pytest.raises(InputError, match=words):
        open_data_set(data)


def test_labels_must_lie_on_the_scan_and_be_known(data: Path, tmp_path: Path) -> None:
    path = data / "labelsTr" / "p0.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([4.0, -4.0, 3.0, 1.0])), path)
    with pytest.raises(ScanError, match="not on the voxels"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "a", HU)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * 3, image.affine), path)
    with pytest.raises(InputError, match="found label 6"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "b", HU)


FORMS = [
    (["background", "a"], "labels: found a list, expected an object"),
    ("background", "labels: found a text, expected an object"),
    ({"0": "background", "1": "gland"}, "labels: found numbers with their names, nnU-Net's first form"),
    ({"background": 0, "whole": [1, 2], "core": 2}, r"labels: 'whole': found \[1, 2\], a region of several labels"),
    ({"background": 0, "a": [1]}, r"labels: 'a': found \[1\], a region"),
    ({"background": 0, "a": 1.5}, "labels: 'a': found 1.5, expected a whole number"),
    ({"background": 0, "a": True}, "labels: 'a': found true, expected a whole number"),
    ({"background": 0, "a": None}, "labels: 'a': found null, expected a whole number"),
    ({"background": 0, "a": {"x": 1}}, "labels: 'a': found {\"x\": 1}, expected a whole number"),
    ({"background": 0, "a": -1}, "labels: 'a': found -1, expected a whole number"),
    ({"background": 0, "a": 256}, "labels: 'a': found 256, expected a whole number from 0 to 255"),
    ({"background": 0, "a": 1, "b": 1}, "labels: 'a' and 'b': found the number 1 twice"),
    ({"background": 1, "a": 0}, "expected 'background' with the number 0"),
    ({"background": 0}, "expected 'background' and at least one structure"),
    ({"background": 0, "ignore": 1}, "expected 'background' and at least one structure"),
    ({"background": 0, "ignore": 1, "a": 2}, "labels: 'ignore': found the number 1, expected the highest"),
    ({}, "expected 'background' with the number 0"),
]


@pytest.mark.parametrize(("labels", "words"), FORMS)
def test_labels_of_another_form_are_refused_by_name(
    data: Path, labels: str | list[str] | dict[str, Any], words: str
) -> None:
    rewrite(data / "dataset.json", labels=labels)
    with pytest.raises(InputError, match=words) as error:
        open_data_set(data)
    assert str(error.value).startswith(f"{data / 'dataset.json'}: ")
    assert not any(word in str(error.value) for word in ("Error(", "object has no", "NoneType", "dict"))


def test_a_name_twice_is_refused(data: Path) -> None:
    text = (data / "dataset.json").read_text().replace('"parotid_right": 2', '"parotid_left": 2')
    (data / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="found 'parotid_left' twice in one object"):
        open_data_set(data)


def test_the_file_stands_for_its_folder(data: Path, tmp_path: Path) -> None:
    assert open_data_set(data / "dataset.json") == open_data_set(data)
    with pytest.raises(InputError, match=r"splits.json: a file, expected the folder of a data set"):
        open_data_set(data / "splits.json")
    with pytest.raises(InputError, match=r"nowhere: no such folder, expected the folder"):
        open_data_set(tmp_path / "nowhere")


def test_a_wrong_data_set_is_told_without_torch(data: Path) -> None:
    """Loading torch takes seconds."""
    rewrite(data / "dataset.json", labels=["background"])
    code = f"""
import sys
sys.argv = ["parotid-seg", "train", {str(data)!r}, "--out", {str(data / "run")!r}]
from parotid_seg.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "labels: found a list" in done.stderr
    assert done.stdout == "False\n"


def test_scans_and_labels_that_are_not_used_are_told(data: Path) -> None:
    drop(data, "labelsTr/p1", "labelsTr/p3")
    rewrite(data / "splits.json", train=["p0"], validation=["p4"])
    hint = "scans without labels belong in imagesUn"
    without = f"scans in imagesTr without a label map are not used ({hint}): p1, p3"
    others = "patients with label maps in no list of splits.json are not used: p2, p5"
    assert open_data_set(data).notes == (without, others)
    (data / "splits.json").unlink()
    assert (found := open_data_set(data)).notes == (without,)
    assert sorted((*found.train, *found.validation)) == ["p0", "p2", "p4", "p5"]


def test_a_list_that_training_does_not_know_is_told_and_unlocks_nobody(data: Path) -> None:
    (data / "imagesTs").mkdir()
    (data / "imagesTs" / "p9_0000.nii.gz").touch()
    rewrite(data / "splits.json", tets=["p7", "p9"], unlabelled=["p8"])
    found = open_data_set(data)
    assert found.test == ("p9",)
    (note,) = (note for note in found.notes if "'tets' of splits.json is not known to training" in note)
    assert note.endswith(": p7, p9")


def test_files_of_other_systems_are_no_cases(data: Path) -> None:
    for folder, name in (("imagesTr", "._p0_0000.nii.gz"), ("labelsTr", "._p0.nii.gz")):
        (data / folder / name).write_bytes(b"")
    (data / "splits.json").unlink()
    found = open_data_set(data)
    assert (found.notes, len(found.train)) == ((), 5)


SIDES = {
    "parotid_left and parotis_re": (
        {"background": 0, "parotid_left": 1, "parotis_re": 2},
        "parotid_left (left), parotis",
    ),
    "left only": ({"background": 0, "parotid_left": 1, "tumour": 2}, "parotid_left (left);"),
    "glued": ({"background": 0, "SMGL": 1, "SMGR": 2}, "SMGL and SMGR look like left and right"),
}


@pytest.mark.parametrize("name", SIDES)
def test_sides_that_do_not_pair_are_refused_unless_nothing_is_mirrored(
    data: Path, small_config: Path, name: str
) -> None:
    labels, words = SIDES[name]
    rewrite(data / "dataset.json", labels=labels)
    config = load_config("compact", small_config)
    with pytest.raises(InputError) as error:
        open_data_sets(data, config)
    assert words in str(error.value)
    assert error.value.path == data / "dataset.json"
    still = dataclasses.replace(config.augment, mirror_probability=0.0)
    assert open_data_sets(data, dataclasses.replace(config, augment=still))["segment"].labels == tuple(labels)


def ignoring(folder: Path, value: int = 3, mark: Any = lambda labels: labels[:, :, :9]) -> None:
    """Give a data set the label "ignore", and mark some voxels with it."""
    labels = {"background": 0, "parotid_left": 1, "parotid_right": 2, "ignore": value}
    rewrite(folder / "dataset.json", labels=labels)
    for path in folder.glob("labelsTr/*.nii.gz"):
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).copy()
        mark(voxels)[...] = value
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


@pytest.mark.parametrize("value", [3, 255])
def test_ignore_is_no_label(data: Path, tmp_path: Path, value: int) -> None:
    ignoring(data, value)
    found = open_data_set(data)
    assert found.labels == ("background", "parotid_left", "parotid_right")
    assert found.ignore == value
    patient = load_patients(found, ["p0"], tmp_path / "cache", HU)[0]
    assert patient.labels.max() == 2
    assert patient.shown_in == ((), tuple(range(9, 18)), tuple(range(9, 18)))
    assert patient.known_slices == tuple(range(9, 24))
    assert patient.ignored is not None
    assert patient.ignored[:9].all()
    assert not patient.ignored[9:].any()
    rewrite(data / "dataset.json", labels={"background": 0, "parotid_left": 1, "parotid_right": 2})
    with pytest.raises(InputError, match=f"found label {value}, expected 0 to 2"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "cache", HU)


def notes_on(folder: Path, cache: Path, mirrored: bool = True) -> list[str]:
    data, config = open_data_set(folder), TrainConfig()
    config = (
        config
        if mirrored
        else dataclasses.replace(config, augment=dataclasses.replace(config.augment, mirror_probability=0.0))
    )
    patients = load_patients(data, (*data.train, *data.validation), cache, HU)
    return check_labels(data, patients[: len(data.train)], patients[len(data.train) :], config)


def test_a_side_that_no_name_says_is_told(data: Path, tmp_path: Path) -> None:
    """In whatever language: it is seen from where the structures lie."""
    assert notes_on(data, tmp_path / "cache") == []
    rewrite(data / "dataset.json", labels={"background": 0, "左腮腺": 1, "右腮腺": 2})
    left, right = notes_on(data, tmp_path / "cache")
    assert left.startswith("左腮腺 lies on the patient's left in all 4 training patients, but its name says no side")
    assert right.startswith("右腮腺 lies on the patient's right in all 4 training patients")
    assert notes_on(data, tmp_path / "cache", mirrored=False) == []


def test_a_label_that_no_training_patient_shows_is_told(data: Path, tmp_path: Path) -> None:
    rewrite(data / "dataset.json", labels={"background": 0, "parotid_left": 1, "parotid_right": 2, "tumour": 3})
    assert notes_on(data, tmp_path / "cache") == ["no training patient's label map shows tumour"]


@pytest.fixture
def examinations(sequences: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sequences, tmp_path / "sequences")


def test_sequences_come_together_on_one_scale(sequences: Path, tmp_path: Path) -> None:
    data = open_data_set(sequences)
    assert (data.channels, data.labels) == (("T1", "T2", "STIR"), ("background", "gland", "tumour"))
    for patient in load_patients(data, data.train, tmp_path, HU):
        assert patient.volume.voxels.shape == (3, *patient.labels.shape)
        np.testing.assert_array_equal(patient.windows, [[0, 1000]] * 3)
        for voxels in patient.volume.voxels:
            assert 900 < np.percentile(voxels, 99.5) < 1100, "whatever the scanner's scale"
        assert patient.centre_mm == pytest.approx((98, 98), abs=20)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (
            lambda d: (d / "imagesTr" / "m1_0002.nii.gz").unlink(),
            InputError,
            "m1_0002.nii.gz: no such file: STIR of case",
        ),
        (
            lambda d: move(d / "imagesTr" / "m1_0001.nii.gz"),
            ScanError,
            "m1_0001.nii.gz: not on the voxels of .*m1_0000",
        ),
        (lambda d: relabel(d / "labelsTr" / "m1.nii.gz"), InputError, "m1.nii.gz: found label 3, expected 0 to 2"),
        (lambda d: blank(d / "imagesTr" / "m1_0001.nii.gz"), ScanError, "m1_0001.nii.gz: every voxel has the value 7"),
    ],
)
def test_broken_sequences(
    examinations: Path, tmp_path: Path, spoil: Callable[..., Any], error: type[ParotidSegError], words: str
) -> None:
    spoil(examinations)
    with pytest.raises(error, match=words):
        load_patients(open_data_set(examinations), ["m0", "m1"], tmp_path / "cache", HU)


def move(path: Path) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3) * 3), path)


def relabel(path: Path) -> None:
    image = nibabel.load(path)
    nibabel.save(
        nibabel.Nifti1Image(np.where(np.asarray(image.dataobj) == 2, 3, 0).astype(np.uint8), image.affine), path
    )


def blank(path: Path) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), path)


def test_a_ct_that_is_not_in_hu_ends_training_before_it_begins(data: Path, tmp_path: Path) -> None:
    path = data / "imagesTr" / "p0_0000.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(1024), image.affine), path)
    with pytest.raises(ScanError, match=r"p0_0000\.nii\.gz: intensities are not HU"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "cache", HU)
    (patient,) = load_patients(open_data_set(data), ["p1"], tmp_path / "cache", HU)
    assert warnings([patient]) == [
        "warning: 1 of 1 scans may not be in HU: p1 (hu_unknown); `parotid-seg inspect FILE` says why"
    ], "soft tissue alone proves nothing"
