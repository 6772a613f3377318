"""Train, export, infer, evaluate on MR of three sequences, as a user walks it; the tumour shows in the third only."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import InputError
from parotid_seg.export import verified_export as module
from parotid_seg.runtime.inspection import inspect
from tests.command_line import Run
from tests.small_files import summary_rows
from tests.train.conftest import CONTRAST, SMALL

pytestmark = pytest.mark.slow
HERE = ("--backend", "onnxruntime")
"""Measures no engines, which would take seconds for a new model."""


@pytest.fixture(scope="module")
def run(forked: Run, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = folder / "small.toml"
    settings = SMALL.replace("epochs = 4\n", "epochs = 3\n").replace("validate_every = 1", "validate_every = 3")
    config.write_text(settings.replace('stages = ["segment"]', 'stages = ["contrast", "segment"]') + CONTRAST)
    done = forked("train", sequences, "--out", folder, "--config", config, "--device", "cpu", timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def held_out(sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation patients' files."""
    folder = tmp_path_factory.mktemp("held_out")
    shutil.copy(sequences / "dataset.json", folder)  # names the references' labels
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir()
        for case in ("m6", "m7"):
            for path in (sequences / place).glob(f"{case}*"):
                shutil.copy(path, folder / place)
    return folder


@pytest.fixture(scope="module")
def model(command: Run, run: Path, held_out: Path) -> Path:
    path = run / "model.onnx"
    done = command("export", run / "best.pt", "--out", path, "--verify", held_out)
    assert done.returncode == 0, done.stderr
    assert "m7_0000.nii.gz (24 x 50 x 50), batches of 16" in done.stdout
    return path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in summary_rows(folder)}


def test_gland_and_tumour_of_patients_it_has_not_seen(
    command: Run, model: Path, held_out: Path, tmp_path: Path
) -> None:
    """Without the third sequence not even the tumour's side is known, which allows a DSC of two thirds at best."""
    out = tmp_path / "out"
    done = command("infer", held_out / "imagesTr", "--out", out, "--model", model, *HERE)
    assert done.returncode == 0, done.stderr
    assert sorted(rows(out)) == ["m6", "m7"]
    scored = command("evaluate", out, held_out / "labelsTr", "--out", tmp_path / "scores.json")
    assert scored.returncode == 0, scored.stderr
    means = json.loads((tmp_path / "scores.json").read_text())["means"]
    assert means["gland dsc"]["mean"] > 0.8
    assert means["tumour dsc"]["mean"] > 0.75
    assert (out / "pictures" / "m6.png").stat().st_size > 5_000


def test_cases_that_are_not_whole_are_set_aside_in_one_line_each(
    command: Run, model: Path, held_out: Path, tmp_path: Path
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(held_out / "imagesTr", scans)
    (scans / "m7_0001.nii.gz").unlink()
    for channel in range(3):
        image = nibabel.load(scans / f"m6_{channel:04d}.nii.gz")
        shape = (50, 50, 24 - (channel == 2))
        nibabel.save(image.slicer[: shape[0], : shape[1], : shape[2]], scans / f"grid_{channel:04d}.nii.gz")
    shutil.copy(scans / "m6_0000.nii.gz", scans / "plain.nii.gz")
    done = command("infer", scans, "--out", out, "--model", model, *HERE)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 3
    found = rows(out)
    assert found["m6"]["status"] == "done"
    assert found["m7"]["reason"] == f"{scans / 'm7_0001.nii.gz'}: no such file, expected the case's channel T2"
    assert found["grid"]["reason"].startswith(f"{scans / 'grid_0002.nii.gz'}: not on the voxels of ")
    assert "plain.nii.gz: the model takes 3 channels (T1, T2, STIR)" in done.stderr
    shutil.copy(held_out / "imagesTr" / "m7_0001.nii.gz", scans)
    both = scans / "m7_0002.nii.gz", scans / "m6_0001.nii.gz"
    again = command("infer", *both, "--out", out, "--model", model, *HERE)
    assert "1 done, 1 done before, 0 failed" in again.stdout, "a channel's file means its case"
    image = nibabel.load(scans / "m6_0002.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * np.float32(2), image.affine), scans / "m6_0002.nii.gz")
    changed = command("infer", scans / "m6_0000.nii.gz", "--out", out, "--model", model, *HERE)
    assert "1 done (1 of them again), 0 done before" in changed.stdout, "another file in any channel is other work"


def test_the_model_tells_its_channels(model: Path) -> None:
    assert inspect(model)["input"] == "; ".join(f"{name}, window from the scan" for name in ("T1", "T2", "STIR"))


def test_the_packaged_ct_does_not_verify_an_mr_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--verify: the packaged example is a CT; .* T1, T2, STIR"):
        module.export(run / "best.pt", tmp_path / "made" / "m.onnx")
    assert not (tmp_path / "made").exists()
