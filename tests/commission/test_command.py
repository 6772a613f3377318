"""`parotid-seg commission` with the packaged model: what it prints, and its exit status."""

import json
from pathlib import Path

import nibabel
import pytest

from tests.command_line import Run
from tests.commission.data import DESCRIPTION

pytestmark = pytest.mark.slow
HERE = ("--backend", "onnxruntime", "--device", "cpu")


@pytest.fixture
def one_patient(tmp_path: Path, head: nibabel.Nifti1Image, head_labels: nibabel.Nifti1Image) -> Path:
    data = tmp_path / "data"
    for folder, image, ending in (("imagesTr", head, "_0000.nii.gz"), ("labelsTr", head_labels, ".nii.gz")):
        (data / folder).mkdir(parents=True)
        nibabel.save(image, data / folder / f"good{ending}")
    (data / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return data


def test_limits_decide_the_exit_status(command: Run, one_patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("commission", one_patient, "--out", out, *HERE, "--against", "packaged")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all limits met on 1 patient; report.html and commission.json in" in done.stdout
    assert "note: fewer than 10 patients say little" in done.stdout
    assert "note: whether masks are shifted is not tested with fewer than 3 patients" in done.stdout
    assert "are the same model file: there is nothing to choose.\n" in done.stdout
    assert "the packaged model was trained on none of these scans, compared voxel by voxel\n" in done.stdout
    (tmp_path / "hard.toml").write_text("[limits]\nmean_dsc = 0.99\n")
    again = command("commission", one_patient, "--out", out, *HERE, "--limits", tmp_path / "hard.toml")
    assert again.returncode == 4
    assert again.stderr == ""
    assert "MISSED" in again.stdout
    assert "2 of 9 limits missed" in again.stdout
    assert "no drift: all 2 masks are equal" in again.stdout


def test_a_second_model_does_not_fit_a_server(command: Run, one_patient: Path, tmp_path: Path) -> None:
    words = ("--triton", "localhost:1", "--against", "packaged")
    done = command("commission", one_patient, "--out", tmp_path / "out", *words)
    assert done.returncode == 2
    assert "--against" in done.stderr


@pytest.mark.parametrize("folder", ["", "imagesTr", "labelsTs/new"])
def test_the_data_set_is_no_place_for_results(command: Run, one_patient: Path, folder: str) -> None:
    before, out = sorted(one_patient.rglob("*")), one_patient / folder
    done = command("commission", one_patient, "--out", out, *HERE)
    assert done.returncode == 2
    assert done.stderr == f"parotid-seg: --out: {out}: belongs to the data set, expected another folder\n"
    assert sorted(one_patient.rglob("*")) == before
