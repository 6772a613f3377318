"""`parotid-seg evaluate`: the right pairs are compared, and wrong ones are refused."""

import json

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import InputError
from parotid_seg.runtime.evaluate import LABELS, evaluate, label_names

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def half_a_voxel() -> np.ndarray:
    shift = np.zeros((4, 4))
    shift[0, 3] = 1.0
    return shift


def save(path, labels, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)


@pytest.fixture
def folders(tmp_path):
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[2:4, 2:4, 2:6], reference[6:8, 2:4, 2:6] = 1, 2
    moved = reference.copy()
    moved[:, :, 5] = 0
    save(tmp_path / "references" / "a.nii.gz", reference)
    save(tmp_path / "references" / "b.nii.gz", reference)
    save(tmp_path / "predictions" / "a.nii.gz", reference)
    save(tmp_path / "predictions" / "b.nii.gz", moved)
    return tmp_path


def test_scores(command, folders):
    out = folders / "scores.json"
    done = command("evaluate", folders / "predictions", folders / "references", "--out", out)
    assert done.returncode == 0, done.stderr
    scores = json.loads(out.read_text())
    assert scores["cases"]["a"]["labels"]["parotid_left"]["dsc"] == 1
    b = scores["cases"]["b"]["labels"]["parotid_right"]
    assert b["dsc"] == pytest.approx(2 * 12 / 28)
    assert b["hd_mm"] == pytest.approx(3.0)
    assert b["volume_error_ml"] == pytest.approx(-4 * 12 / 1000)
    mean = scores["means"]["glands dsc"]
    assert mean["mean"] == pytest.approx((1 + 24 / 28) / 2)
    assert mean["low"] <= mean["mean"] <= mean["high"]


def test_stored_in_another_order_is_the_same_mask(command, folders):
    path = folders / "predictions" / "a.nii.gz"
    image = nibabel.load(path)
    flipped = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(flipped, path)
    command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    scores = json.loads((folders / "scores.json").read_text())
    assert scores["cases"]["a"]["labels"]["parotid_left"]["dsc"] == 1


def test_an_empty_prediction_is_counted_not_averaged(command, folders):
    save(folders / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8))
    command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    scores = json.loads((folders / "scores.json").read_text())
    assert scores["cases"]["b"]["labels"]["parotid_left"]["hd_mm"] is None
    assert scores["means"]["parotid_left hd_mm"]["missed"] == 1
    assert scores["means"]["parotid_left dsc"]["mean"] == 0.5


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "predictions" / "b.nii.gz").unlink(), "no prediction for b"),
        (lambda f: (f / "references" / "b.nii.gz").unlink(), "no reference for b"),
        (lambda f: save(f / "predictions" / "b.nii.gz", np.zeros((9, 9, 9), np.uint8)), "expected 10 x 10 x 10"),
        (
            lambda f: save(f / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8), np.eye(4)),
            "they lie up to",
        ),
        (
            lambda f: save(f / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8), AFFINE + half_a_voxel()),
            "they lie up to 1.00 mm apart (voxels of 3 x 2 x 2 mm)",
        ),
        (lambda f: save(f / "predictions" / "b.nii.gz", np.full((10, 10, 10), 7, np.uint8)), "found label 7"),
    ],
)
def test_wrong_pairs(command, folders, spoil, words):
    spoil(folders)
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folders / "scores.json").exists()


def test_label_names_come_from_the_model_or_the_data_set(folders):
    predictions, references = folders / "predictions", folders / "references"
    assert label_names(predictions, references) == LABELS
    names = {"tumour": 2, "background": 0, "gland": 1}
    (folders / "dataset.json").write_text(json.dumps({"labels": names}))
    assert label_names(predictions, references) == ("background", "gland", "tumour")
    scores = evaluate(predictions, references)
    assert scores.means["tumour dsc"].mean == pytest.approx((1 + 24 / 28) / 2)
    assert scores.means["structures dsc"].cases == 2
    (folders / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2}}))
    with pytest.raises(InputError, match=r"dataset.json: tells no label names, expected one for each value"):
        label_names(predictions, references)
    labels = ["background", "left", "right"]
    (predictions / "run.json").write_text(json.dumps({"model": {"contract": {"labels": labels}}}))
    assert label_names(predictions, references) == ("background", "left", "right")
    (predictions / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run.json: tells no label names"):
        label_names(predictions, references)
