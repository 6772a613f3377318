"""`parotid-seg evaluate --dose`: mean doses of both masks, and which file is the dose of a case."""

import json
from pathlib import Path

import numpy as np
import pytest

from parotid_seg.runtime.evaluation import evaluate
from tests.command_line import Run
from tests.dicom.read.dose_files import write_rtdose
from tests.small_files import AFFINE, save_mask

pytestmark = pytest.mark.slow


def test_doses_of_both_masks_and_their_difference(command: Run, folders: Path) -> None:
    """The dose rises by 1 Gy a voxel along the third axis; b's prediction lacks the glands' last layer of four."""
    ramp = np.tile(np.arange(10, dtype=np.float32), (10, 10, 1))
    ramp[0, 0] += 0.5  # beside the glands; whole numbers alone would be those of a label map
    for case in "ab":
        save_mask(folders / "doses" / f"{case}.nii.gz", ramp)
    out = folders / "scores.json"
    words = ("evaluate", folders / "predictions", folders / "references", "--dose", folders / "doses", "--out", out)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "mean dose error, Gy" in done.stdout
    rows = [line for line in command(*words, "--all").stdout.splitlines() if line.startswith(("│ a ", "│ b "))]
    assert [row.split("│")[2].strip() for row in rows] == ["parotid_right", "parotid_left"] * 2, "not parotid_…"
    scores = json.loads(out.read_text())
    right = scores["cases"]["b"]["labels"]["parotid_right"]
    assert [right[name] for name in ("mean_gy", "reference_mean_gy", "mean_error_gy")] == pytest.approx([3, 3.5, -0.5])
    assert scores["means"]["glands mean_error_gy"]["mean"] == pytest.approx(-0.25)
    assert scores["means"]["glands mean_error_abs_gy"]["mean"] == pytest.approx(0.25)
    assert not any("dose" in note for note in scores["notes"])
    save_mask(folders / "predictions" / "b.nii.gz", np.zeros((10, 10, 10), np.uint8))
    save_mask(folders / "doses" / "a.nii.gz", ramp[:, :, :4])  # the glands reach to the sixth layer
    command(*words)
    scores = json.loads(out.read_text())
    assert scores["cases"]["b"]["labels"]["parotid_right"]["mean_error_gy"] is None
    assert scores["means"]["glands mean_error_gy"]["missed"] == 1
    assert "partly or wholly outside the dose grid: parotid_left: 1 case (a)" in scores["notes"]
    assert scores["cases"]["a"]["labels"]["parotid_left"]["mean_gy"] == pytest.approx(2.5)


def test_an_rtdose_of_a_single_mask_and_of_cases_by_folder(command: Run, folders: Path) -> None:
    laid = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE[:, [2, 1, 0, 3]]
    for case in "ab":
        write_rtdose(folders / "doses" / case / "RD.1.2.3.dcm", np.full((10, 10, 10), 20.0), laid)
    pairs = [(folders / "predictions", folders / "references", folders / "doses")]
    pairs += [(folders / "predictions" / "a.nii.gz", folders / "references" / "b.nii.gz", folders / "doses" / "a")]
    pairs += [(*pairs[1][:2], folders / "doses" / "a" / "RD.1.2.3.dcm")]
    for predictions, references, dose in (pairs[0], pairs[2]):
        result = evaluate(predictions, references, dose=dose)
        assert {label.mean_gy for scores in result.cases.values() for label in scores.labels.values()} == {20.0}
        assert any("states no frame of reference" in note for note in result.notes)
    done = command("evaluate", *pairs[1][:2], "--dose", pairs[1][2])
    assert done.returncode == 1
    assert "--dose: found no dose named b, expected one" in done.stderr


def test_an_rtdose_in_the_folder_of_a_case_is_of_no_other_case(command: Run, folders: Path) -> None:
    laid = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE[:, [2, 1, 0, 3]]
    write_rtdose(folders / "doses" / "b" / "a.dcm", np.full((10, 10, 10), 20.0), laid)
    done = command("evaluate", folders / "predictions", folders / "references", "--dose", folders / "doses")
    assert done.returncode == 1
    assert "--dose: found no dose named a, expected one" in done.stderr
    write_rtdose(folders / "doses" / "a.dcm", np.full((10, 10, 10), 30.0), laid)
    result = evaluate(folders / "predictions", folders / "references", dose=folders / "doses")
    found = {case: {label.mean_gy for label in scores.labels.values()} for case, scores in result.cases.items()}
    assert found == {"a": {30.0}, "b": {20.0}}


def test_cases_without_a_dose_are_refused_in_one_line(command: Run, folders: Path) -> None:
    save_mask(folders / "doses" / "a.nii.gz", np.full((10, 10, 10), 20, np.uint8))
    done = command("evaluate", folders / "predictions", folders / "references", "--dose", folders / "doses")
    assert done.returncode == 1
    assert done.stderr == f"parotid-seg: {folders / 'doses'}: --dose: found no dose named b, expected one\n"


def test_no_dose_is_overwritten(command: Run, folders: Path) -> None:
    for case in "ab":
        save_mask(folders / "doses" / f"{case}.nii.gz", np.zeros((10, 10, 10), np.uint8))
    dose = folders / "doses" / "a.nii.gz"
    before = dose.read_bytes()
    words = ("evaluate", folders / "predictions", folders / "references", "--dose", folders / "doses", "--out", dose)
    assert command(*words).returncode != 0
    assert dose.read_bytes() == before
