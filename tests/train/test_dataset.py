"""Data sets in nnU-Net's raw layout, whole and broken."""

import itertools
import json
import shutil

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import InputError, ScanError
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.train.dataset import open_data_set
from parotid_seg.train.patients import doubts_line, load_patients

HU = (-200.0, 300.0)


@pytest.fixture
def data(balls, tmp_path):
    return shutil.copytree(balls, tmp_path / "data")


def test_whole(balls, tmp_path):
    data = open_data_set(balls)
    assert data.train == ("p0", "p1", "p2", "p3")
    assert mirrored_labels(data.labels) == (0, 2, 1)
    patient = load_patients(data, ["p0"], tmp_path, HU)[0]
    assert patient.volume.shape == patient.labels.shape == (24, 50, 50)
    assert patient.volume.spacing_mm == (3.0, 4.0, 4.0)
    left, right = (np.argwhere(patient.labels == value)[:, 2].mean() for value in (1, 2))
    assert left > right, "columns run to the patient's left"
    assert patient.shown_in == ((), tuple(range(7, 18)), tuple(range(7, 18)))


def test_a_changed_scan_is_read_again(data, tmp_path):
    cache = tmp_path / "cache"
    load_patients(open_data_set(data), ["p0"], cache, HU)
    path = data / "imagesTr" / "p0_0000.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(5), image.affine), path)
    again = load_patients(open_data_set(data), ["p0"], cache, HU)[0]
    assert again.volume.voxels.min() == -1019


def test_without_splits_a_fifth_is_held_out(data):
    (data / "splits.json").unlink()
    found = open_data_set(data)
    assert len(found.validation) == 1
    assert sorted((*found.train, *found.validation)) == [f"p{index}" for index in range(6)]
    assert open_data_set(data) == found


def test_other_organs_are_those_that_are_not_to_be_segmented(balls, data, tmp_path):
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


def test_few_labels(balls):
    drawn = {seed: [set(open_data_set(balls, labelled=n, seed=seed).train) for n in (1, 2, 3, 4)] for seed in range(8)}
    for sets in drawn.values():
        assert [len(names) for names in sets] == [1, 2, 3, 4]
        assert all(fewer < more for fewer, more in itertools.pairwise(sets))
    assert len({frozenset(sets[1]) for sets in drawn.values()}) > 1
    for wrong in (0, 5):
        with pytest.raises(InputError, match="--labelled"):
            open_data_set(balls, labelled=wrong)


def test_one_patient_is_not_enough(data):
    (data / "splits.json").unlink()
    for path in data.glob("imagesTr/p[1-9]*"):
        path.unlink()
    with pytest.raises(InputError, match="found 0 training and 1 validation patients, expected at least 1 of each"):
        open_data_set(data)


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "dataset.json").unlink(), "dataset.json: cannot be read"),
        (lambda d: (d / "dataset.json").write_text("{"), "not JSON"),
        (lambda d: (d / "dataset.json").write_text("{}"), "channel_names"),
        (
            lambda d: rewrite(d / "dataset.json", channel_names={"0": "T1", "1": "T2"}),
            "p0_0001.nii.gz: no such file: T2 of case p0",
        ),
        (lambda d: rewrite(d / "dataset.json", channel_names={}), "at least one channel"),
        (lambda d: rewrite(d / "dataset.json", labels={"gland": 0, "tumour": 1}), "'background' as label 0"),
        (
            lambda d: shutil.copy(d / "imagesTr" / "p1_0000.nii.gz", d / "imagesTr" / "p1_0001.nii.gz"),
            "p1_0001.nii.gz: one more channel, but dataset.json names 1: CT",
        ),
        (lambda d: rewrite(d / "dataset.json", labels={"background": 0, "x": 2}), "missing or wrong"),
        (lambda d: rewrite(d / "splits.json", train=["p0", "p9"]), "p9_0000.nii.gz: no such file"),
        (lambda d: rewrite(d / "splits.json", validation=[]), "0 validation patients"),
        (lambda d: (d / "splits.json").write_text('{"train": []}'), "'validation'"),
        (lambda d: (d / "labelsTr" / "p0.nii.gz").unlink(), "p0.nii.gz: no such file"),
    ],
)
def test_broken(data, spoil, words):
    spoil(data)
    with pytest.raises(InputError, match=words):
        open_data_set(data)


def test_labels_must_lie_on_the_scan_and_be_known(data, tmp_path):
    path = data / "labelsTr" / "p0.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([4.0, -4.0, 3.0, 1.0])), path)
    with pytest.raises(ScanError, match="not on the voxels"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "a", HU)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * 3, image.affine), path)
    with pytest.raises(InputError, match="found label 6"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "b", HU)


@pytest.fixture
def examinations(sequences, tmp_path):
    return shutil.copytree(sequences, tmp_path / "sequences")


def test_sequences_come_together_on_one_scale(sequences, tmp_path):
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
def test_broken_sequences(examinations, tmp_path, spoil, error, words):
    spoil(examinations)
    with pytest.raises(error, match=words):
        load_patients(open_data_set(examinations), ["m0", "m1"], tmp_path / "cache", HU)


def move(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3) * 3), path)


def relabel(path):
    image = nibabel.load(path)
    nibabel.save(
        nibabel.Nifti1Image(np.where(np.asarray(image.dataobj) == 2, 3, 0).astype(np.uint8), image.affine), path
    )


def blank(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), path)


def test_a_ct_that_is_not_in_hu_ends_training_before_it_begins(data, tmp_path):
    path = data / "imagesTr" / "p0_0000.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(1024), image.affine), path)
    with pytest.raises(ScanError, match=r"p0_0000\.nii\.gz: intensities are not HU"):
        load_patients(open_data_set(data), ["p0"], tmp_path / "cache", HU)
    (patient,) = load_patients(open_data_set(data), ["p1"], tmp_path / "cache", HU)
    assert doubts_line([patient]) == (
        "warning: 1 of 1 scans may not be in HU: p1 (hu_unknown); `parotid-seg inspect FILE` says why"
    ), "soft tissue alone proves nothing"
