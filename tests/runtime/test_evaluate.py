"""`parotid-seg evaluate`: the right pairs are compared, and wrong ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest

from parotid_seg.errors import InputError, ScanError
from parotid_seg.records import record_text, schema_text
from parotid_seg.runtime.evaluation import Evaluation, evaluate
from parotid_seg.runtime.evaluation_record import EvaluationRecord, record_of
from tests.command_line import Run
from tests.small_files import AFFINE, read_table, save_mask

pytestmark = pytest.mark.slow

HALF_A_VOXEL = np.outer([1.0, 0, 0, 0], [0, 0, 0, 1.0])
DOCS = Path(__file__).parents[2] / "docs"


def test_scores(command: Run, folders: Path) -> None:
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


def test_a_short_table_first_and_all_figures_on_request(command: Run, folders: Path) -> None:
    short = command("evaluate", folders / "predictions", folders / "references").stdout
    assert "surface DSC at 2 mm" in short
    assert "added path length, mm" in short
    assert "2 cases" in short
    assert "recall" not in short
    assert "IoU" not in short
    full = command("evaluate", folders / "predictions", folders / "references", "--all").stdout
    assert "accuracy (recall)" in full
    assert "mAcc (mean recall)" in full
    assert max(map(len, full.splitlines())) <= 200
    for words in ("surface DSC at 1 mm", "surface DSC at 3 mm", "HD, mm", "IoU", "MPA"):
        assert words in full
    assert "Gy" not in full


def test_one_case_has_no_interval(command: Run, folders: Path) -> None:
    one = command("evaluate", folders / "predictions" / "b.nii.gz", folders / "references" / "b.nii.gz").stdout
    (row,) = (line for line in one.splitlines() if line.startswith("│ DSC"))
    assert row.count("0.") == 3
    assert " to " not in row
    assert "interval" not in one


def test_the_files_fit_the_schema_and_the_table_has_the_same_figures(
    command: Run, folders: Path, snapshot: Callable[[str, str | Path], None]
) -> None:
    for out in ("scores.json", "scores.csv"):
        done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / out, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = schema_text(EvaluationRecord)
    snapshot(text, DOCS / "evaluation.schema.json")
    scores = json.loads((folders / "scores.json").read_text())
    jsonschema.validate(scores, json.loads(text), jsonschema.Draft202012Validator)
    rows = read_table(folders / "scores.csv")
    assert [(row["case"], row["structure"]) for row in rows] == [(case, name) for case in "ab" for name in GLANDS]
    for row in rows:
        expected = scores["cases"][row.pop("case")]["labels"][row.pop("structure")]
        assert {name: None if cell == "" else float(cell) for name, cell in row.items()} == expected


def test_stored_in_another_order_is_the_same_mask(command: Run, folders: Path) -> None:
    path = folders / "predictions" / "a.nii.gz"
    image = nibabel.load(path)
    flipped = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(flipped, path)
    command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    scores = json.loads((folders / "scores.json").read_text())
    assert scores["cases"]["a"]["labels"]["parotid_left"]["dsc"] == 1


def test_an_empty_prediction_is_counted_not_averaged(command: Run, folders: Path) -> None:
    save_mask(folders / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8))
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
        (lambda f: save_mask(f / "predictions" / "b.nii.gz", np.zeros((9, 9, 9), np.uint8)), "expected 10 x 10 x 10"),
        (
            lambda f: save_mask(f / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8), np.eye(4)),
            "they lie up to",
        ),
        (
            lambda f: save_mask(
                f / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8), AFFINE + HALF_A_VOXEL
            ),
            "they lie up to 1.00 mm apart (voxels of 3 x 2 x 2 mm)",
        ),
        (lambda f: save_mask(f / "predictions" / "b.nii.gz", np.full((10, 10, 10), 7, np.uint8)), "found label 7"),
        (
            lambda f: save_mask(f / "predictions" / "b.nii", np.zeros((10, 10, 10), np.uint8)),
            "predictions: found b.nii and b.nii.gz, expected one file of case b",
        ),
        (
            lambda f: save_mask(f / "references" / "b_0000.nii.gz", np.zeros((10, 10, 10), np.uint8)),
            "references: found b.nii.gz and b_0000.nii.gz, expected one file of case b",
        ),
    ],
)
def test_wrong_pairs(command: Run, folders: Path, spoil: Callable[..., Any], words: str) -> None:
    spoil(folders)
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folders / "scores.json").exists()


def name_labels(folder: Path, labels: dict[str, int] | list[str] | dict[str, int | list[int]]) -> None:
    """Beside the masks, as nnU-Net leaves it."""
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def name_model(folder: Path, *labels: str) -> None:
    """Beside the masks, as `infer` leaves it."""
    (folder / "run.json").write_text(json.dumps({"model": {"contract": {"labels": ["background", *labels]}}}))


def renumber(folder: Path, table: dict[int, int]) -> None:
    for path in folder.glob("*.nii.gz"):
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj)
        changed = np.zeros_like(labels)
        for value, other in table.items():
            changed[labels == value] = other
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), path)


GLANDS = ("parotid_left", "parotid_right")


def dsc_of_right(result: Evaluation) -> float:
    return result.means["parotid_right dsc"].mean


@pytest.mark.parametrize(
    ("labels", "table"),
    [
        ({"background": 0, "parotid_right": 1, "parotid_left": 2}, {1: 2, 2: 1}),
        ({"background": 0, "brainstem": 1, "parotid_left": 2, "parotid_right": 3}, {1: 2, 2: 3}),
        ({"parotid_right": 7, "parotid_left": 200, "background": 0}, {1: 200, 2: 7}),
        ({"background": 0, "Parotid_R": 1, "Parotid_L": 2}, {1: 2, 2: 1}),
        ({"background": 0, "Parotis re": 1, "Parotis li": 2}, {1: 2, 2: 1}),
    ],
)
@pytest.mark.parametrize("place", ["beside", "above"])
def test_labels_are_matched_by_name(folders: Path, labels: dict[str, int], table: dict[int, int], place: str) -> None:
    expected = evaluate(folders / "predictions", folders / "references")
    (folders / "set").mkdir()
    references = (folders / "references").rename(folders / "set" / "labelsTs")
    renumber(references, table)
    name_labels(references if place == "beside" else folders / "set", labels)
    name_model(folders / "predictions", *GLANDS)
    found = evaluate(folders / "predictions", references)
    assert found.cases == expected.cases
    assert found.means == expected.means
    assert dsc_of_right(found) == pytest.approx((1 + 24 / 28) / 2)
    written = json.loads(record_text(record_of(found)))["labels"]["parotid_left"]
    assert written == {
        "prediction": 1,
        "reference": table[1],
        "name_in_references": next(name for name, value in labels.items() if value == table[1]),
    }


def test_predictions_of_another_tool_are_matched_by_their_dataset_json(folders: Path) -> None:
    renumber(folders / "predictions", {1: 3, 2: 1})
    name_labels(folders / "predictions", {"background": 0, "parotid_right": 1, "tumour": 2, "parotid_left": 3})
    name_labels(folders / "references", {"background": 0, "parotid_left": 1, "parotid_right": 2})
    assert dsc_of_right(evaluate(folders / "predictions", folders / "references")) == pytest.approx((1 + 24 / 28) / 2)


def test_labels_of_one_side_only_are_named_and_not_scored(command: Run, folders: Path) -> None:
    renumber(folders / "references", {1: 2, 2: 3})
    name_labels(folders / "references", {"background": 0, "brainstem": 1, "parotid_left": 2, "parotid_right": 3})
    name_model(folders / "predictions", *GLANDS, "tumour")
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    assert done.returncode == 0, done.stderr
    notes = json.loads((folders / "scores.json").read_text())["notes"]
    assert "not scored, since only the predictions have it: tumour" in notes
    assert "not scored, since only the references have it: brainstem" in notes
    assert all(note in done.stdout for note in notes)
    assert "brainstem dsc" not in done.stdout


@pytest.mark.parametrize(
    ("predicted", "labels", "told"),
    [
        (("gland", "tumour"), {"background": 0, "parotid_left": 1, "parotid_right": 2}, "1 = gland, 2 = tumour"),
        (GLANDS, {"background": 0, "left": 1, "right": 2}, "references have 1 = left, 2 = right"),
        (GLANDS, {"background": 0, "Parotid_L": 1, "Parotis li": 2}, "1 = Parotid_L, 2 = Parotis li"),
        (GLANDS, {"background": 0, "whole": [1, 2], "core": 2}, "'whole': found [1, 2], a region of several labels"),
        (GLANDS, {"background": 0, "a": 1, "b": 1}, "'a' and 'b': found the number 1 twice"),
        (GLANDS, ["background", "a"], "labels: found a list, expected an object"),
        (GLANDS, {"background": 0, "ignore": 1, "parotid_left": 2}, "'ignore': found the number 1, expected the high"),
        (
            None,
            {"background": 0, "parotid_right": 1, "parotid_left": 2},
            "nothing names the labels of these predictions",
        ),
        (None, {"background": 0, "gland": 1, "tumour": 2}, "references have 1 = gland, 2 = tumour"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    command: Run,
    folders: Path,
    predicted: tuple[str, str] | None,
    labels: list[str] | dict[str, int | list[int]],
    told: str,
) -> None:
    name_labels(folders / "references", labels)
    if predicted:
        name_model(folders / "predictions", *predicted)
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folders / "scores.json").exists()


def test_a_number_that_nothing_names_is_refused(folders: Path) -> None:
    name_labels(folders / "references", {"background": 0, "parotid_left": 1, "parotid_right": 2})
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0, 0, 0] = 3
    save_mask(folders / "references" / "b.nii.gz", labels)
    with pytest.raises(
        ScanError, match=r"references/b.nii.gz: found label 3, expected one of 0, 1, 2: references have 1"
    ):
        evaluate(folders / "predictions", folders / "references")


def test_masks_beside_which_nothing_names_labels_are_ours_and_this_is_told(folders: Path) -> None:
    result = evaluate(folders / "predictions", folders / "references")
    assert result.notes == [*result.notes_on_masks, "intervals of fewer than 6 cases are too narrow"]
    assert result.notes_on_masks == [
        f"{side} have 1 = parotid_left, 2 = parotid_right (assumed, since no file names their labels)"
        for side in ("predictions", "references")
    ]


@pytest.mark.parametrize("number", [3, 255])
def test_ignored_voxels_are_in_no_figure(folders: Path, number: int) -> None:
    """Whatever is predicted where the reference says "ignore", all figures are those of a perfect prediction."""
    name_labels(folders, {"background": 0, "parotid_left": 1, "parotid_right": 2, "ignore": number})
    for case in "ab":
        truth = np.asarray(nibabel.load(folders / "references" / "a.nii.gz").dataobj).copy()
        reference, prediction = truth.copy(), truth.copy()
        reference[:, :, 2:4] = number
        prediction[:, :, 2:4] = np.random.default_rng(0).integers(0, 3, (10, 10, 2))
        save_mask(folders / "references" / f"{case}.nii.gz", reference)
        save_mask(folders / "predictions" / f"{case}.nii.gz", prediction)
    result = evaluate(folders / "predictions", folders / "references")
    assert "ignore dsc" not in result.means
    for name in GLANDS:
        gland = result.cases["a"].labels[name]
        assert (gland.dsc, gland.iou, gland.hd_mm, gland.volume_error_ml) == (1, 1, 0, 0)
        assert gland.volume_ml == pytest.approx(8 * 12 / 1000)
    assert [result.means[figure].mean for figure in ("mpa", "macc", "miou")] == [1, 1, 1]
    assert result.cases["a"].ignored_ml == pytest.approx(200 * 12 / 1000)
    assert any("'ignore': 4.8 ml in 2 cases" in note for note in result.notes)


def test_a_case_of_nothing_but_ignored_voxels_is_refused(folders: Path) -> None:
    name_labels(folders, {"background": 0, "parotid_left": 1, "parotid_right": 2, "ignore": 3})
    save_mask(folders / "references" / "b.nii.gz", np.full((10, 10, 10), 3, np.uint8))
    with pytest.raises(ScanError, match=r"b.nii.gz: every voxel is labelled 'ignore'"):
        evaluate(folders / "predictions", folders / "references")


def test_what_is_absent_in_both_masks_raises_no_mean(command: Run, folders: Path) -> None:
    for side in ("predictions", "references"):
        labels = np.asarray(nibabel.load(folders / side / "b.nii.gz").dataobj).copy()
        labels[labels == 1] = 0
        save_mask(folders / side / "b.nii.gz", labels)
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / "scores.json")
    assert "absent in both masks, not scored: parotid_left in 1 case (b)" in done.stdout
    scores = json.loads((folders / "scores.json").read_text())
    assert scores["cases"]["b"]["labels"]["parotid_left"]["dsc"] is None
    left = scores["means"]["parotid_left dsc"]
    assert (left["mean"], left["cases"], left["absent"], left["missed"]) == (1, 1, 1, 0)
    assert scores["means"]["glands dsc"]["mean"] == pytest.approx((1 + 24 / 28) / 2)
    assert scores["cases"]["b"]["miou"] < 1


def test_files_that_name_no_labels(folders: Path) -> None:
    (folders / "predictions" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run.json: Object missing required field `model`; expected a file of infer"):
        evaluate(folders / "predictions", folders / "references")
    name_model(folders / "predictions", "gland", "tumour")
    name_labels(folders, {"tumour": 2, "background": 0, "gland": 1})
    scores = evaluate(folders / "predictions", folders / "references")
    assert scores.means["tumour dsc"].mean == pytest.approx((1 + 24 / 28) / 2)
    assert scores.means["structures dsc"].cases == 2
