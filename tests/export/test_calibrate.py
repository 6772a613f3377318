"""`export --calibrate`: the patients' contours, and the masks of the model or of a cross-validation."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from parotid_seg.calibration import Calibration
from parotid_seg.contract import Contract
from parotid_seg.errors import OptionError, ParotidSegError, ScanError
from parotid_seg.export import calibrate as module
from parotid_seg.export import verified_export as exporting
from parotid_seg.export.calibrate import calibrated_on
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.scan.seen import Seen, hash_of_scan
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.train.checkpoint import Checkpoint
from parotid_seg.train.network import ParotidNet
from tests.calibrations import BOTH, USUAL
from tests.runtime.report.drawn import AFFINE, LEFT, NOISE, Here, drawn_voxels

NO_NET = cast(ParotidNet, None)
PATIENTS = 10


def place_for(folder: Path, patients: int = PATIENTS, speck: int = 0) -> Path:
    """Patients with two glands of 4 to 7 voxels along each side, and their contours; a voxel differs between them."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(patients):
        voxels, edge = drawn_voxels(size=(4 + number % 4, 5)), 4 + number % 4
        voxels[0, 0, 0] = -1000 + speck + number
        contour = np.zeros(voxels.shape, np.uint8)
        contour[10 : 10 + edge, 18 : 18 + edge, 30 : 30 + edge] = 1
        contour[10:15, 18:23, 8:13] = 2
        save(voxels, folder / "imagesTr" / f"p{number}_0000.nii.gz")
        save(contour, folder / "labelsTr" / f"p{number}.nii.gz")
    return folder


def save(voxels: NDArray[Any], path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), AFFINE), path)


def by_intensity(_: object, volume: Volume, *__: object) -> Mask:
    """What a perfect model gives, and a speck beside the glands."""
    left, right = (abs(volume.voxels[0].astype(np.float32) - value) <= 3 for value in (400, 300))
    mask: Mask = (left + 2 * right).astype(np.uint8)
    mask[2, 8, 10] = 1
    return mask


def test_masks_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_labels", by_intensity)
    said: list[str] = []
    (found,), limits = calibrated_on(place_for(tmp_path / "data"), NO_NET, Here.contract, said.append)
    assert (found.patients, found.glands, found.mean_dsc) == (PATIENTS, 2 * PATIENTS, 1.0)
    assert found.made == "10 patients, the model's masks"
    assert "none of them may be one that the model was trained on; which scans" in said[0]
    assert said[1] == f"expected DSC of parotid_left, parotid_right: {found}; {found.origin}"
    assert limits is not None
    assert (limits.patients, limits.made) == (PATIENTS, "the model's masks")
    assert said[2] == f"operating range: {limits.origin}"
    assert [each.name for each in limits.structures] == ["intensity"]  # boxes overlap alike in all slices


def test_a_patient_beside_the_grid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`infer` moves the grid to the glands."""
    place = place_for(tmp_path / "data")
    wide = np.concatenate([drawn_voxels(), *2 * [drawn_voxels(None, None)]], axis=2)
    contour = np.where(np.abs(wide - LEFT) <= NOISE, np.uint8(1), np.uint8(0))
    save(wide, place / "imagesTr" / "p3_0000.nii.gz")
    save(contour, place / "labelsTr" / "p3.nii.gz")
    monkeypatch.setattr(module, "torch_labels", by_intensity)
    with pytest.raises(ScanError, match=r"p3_0000\.nii\.gz: its contour is partly outside the grid"):
        calibrated_on(place, NO_NET, Here.contract)


def test_patients_of_two_hospitals_with_equal_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_labels", by_intensity)
    for number, hospital in enumerate("ab"):
        place_for(tmp_path / "data" / hospital, PATIENTS // 2, speck=PATIENTS * number)
    (found,), limits = calibrated_on(tmp_path / "data", NO_NET, Here.contract)
    assert limits is not None
    assert found.patients == limits.patients == PATIENTS


def test_a_patient_who_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Left out in turn, one would still be among the others."""
    folder = masks_for(place_for(tmp_path / "data"))
    shutil.copy(folder / "imagesTr" / "p3_0000.nii.gz", folder / "imagesTr" / "p4_0000.nii.gz")
    with pytest.raises(OptionError, match=r"p3_0000\.nii\.gz and p4_0000\.nii\.gz are the same scan"):
        calibrated_on(folder, NO_NET, Here.contract)


def trained_on(*scans: Path, complete: bool = True) -> Contract:
    contract = Here.contract
    hashes = [hash_of_scan((scan,), contract.channels, contract.windows) for scan in scans]
    return dataclasses.replace(contract, training=Seen(complete=complete).record(hashes))


def test_patients_that_the_model_was_trained_on_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_labels", by_intensity)
    folder = place_for(tmp_path / "data")
    contract = trained_on(*(folder / "imagesTr" / f"p{number}_0000.nii.gz" for number in (0, 1)))
    words = r"on 2 of the 10 patients \(p0_0000.nii.gz, p1_0000.nii.gz\)"
    with pytest.raises(OptionError, match=words):
        calibrated_on(folder, NO_NET, contract)
    said: list[str] = []
    assert calibrated_on(masks_for(folder), NO_NET, contract, said.append)[0], "masks of a cross-validation"
    assert "not recorded" not in said[0]


@pytest.mark.parametrize("complete", [True, False])
def test_a_model_that_does_not_record_its_scans_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr(module, "torch_labels", by_intensity)
    said: list[str] = []
    calibrated_on(place_for(tmp_path / "data"), NO_NET, trained_on(complete=complete), said.append)
    assert said[0].endswith("is not recorded, so this is not checked") != complete


def masks_for(folder: Path) -> Path:
    """The same, with masks that are a voxel lower than the contours."""
    (folder / "masks").mkdir()
    for path in (folder / "labelsTr").iterdir():
        contour = nibabel.load(path)
        save(np.roll(np.asarray(contour.dataobj).transpose(2, 1, 0), -1, axis=0), folder / "masks" / path.name)
    return folder


def test_masks_of_a_cross_validation(tmp_path: Path) -> None:
    (found,), limits = calibrated_on(masks_for(place_for(tmp_path / "data")), NO_NET, Here.contract)
    left = [1 - 1 / (4 + number % 4) for number in range(PATIENTS)]
    assert found.mean_dsc == pytest.approx((np.mean(left) + 0.8) / 2, abs=1e-4)
    assert found.made == "10 patients, masks of models not trained on them"
    assert limits is not None
    assert limits.made == "masks of models not trained on them"


def test_masks_of_a_model_that_has_seen_the_patients_are_told(tmp_path: Path) -> None:
    folder = masks_for(place_for(tmp_path / "data"))
    training = trained_on(folder / "imagesTr" / "p3_0000.nii.gz").training
    labels = ["background", "parotid_left", "parotid_right"]
    content = {"model": {"contract": {"labels": labels, "training": training}}}
    (folder / "masks" / "run.json").write_text(json.dumps(content))
    said: list[str] = []
    (found,), limits = calibrated_on(folder, NO_NET, Here.contract, said.append)
    warned = "this model was trained on 1 of the 10 patients (p3_0000.nii.gz); if the masks are its own"
    assert sum(f"run.json: {warned}" in line for line in said) == 1
    whose = "masks, perhaps of a model that was trained on 1 of them"
    assert found.made == f"10 patients, {whose}"
    assert limits is not None
    assert limits.made == whose


def test_a_patient_without_contour_is_not_used_and_too_few_are_refused(tmp_path: Path) -> None:
    folder = masks_for(place_for(tmp_path / "data"))
    (folder / "labelsTr" / "p3.nii.gz").unlink()
    said: list[str] = []
    with pytest.raises(
        OptionError, match="found 18 structures of 9 patients with mask and contour, expected at least 20"
    ):
        calibrated_on(folder, NO_NET, Here.contract, said.append)
    assert said == ["not calibrated on, since without a contour: 1 of 10 (p3_0000.nii.gz)"]


def renumber(folder: Path, *values: int) -> None:
    for path in folder.iterdir():
        image = nibabel.load(path)
        changed = np.array(values, np.uint8)[np.asarray(image.dataobj)]
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), path)


def name_labels(folder: Path, **numbers: int) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **numbers}}))


def test_contours_and_masks_are_matched_by_the_names_of_their_labels(tmp_path: Path) -> None:
    """As `dataset.json` and `run.json` name them; the model has 1 left, 2 right."""
    folder = masks_for(place_for(tmp_path / "data"))
    (usual,), _ = calibrated_on(folder, NO_NET, Here.contract)
    renumber(folder / "labelsTr", 0, 5, 2)
    name_labels(folder, Parotid_R=2, Parotid_L=5, spinal_cord=1)
    labels = {"labels": ["background", "parotid_left", "parotid_right"]}
    (folder / "masks" / "run.json").write_text(json.dumps({"model": {"contract": labels}}))
    said: list[str] = []
    assert calibrated_on(folder, NO_NET, Here.contract, said.append)[0] == (usual,)
    assert said[0].startswith("calibrated on ")
    name_labels(folder, parotid_left=2, parotid_right=5)
    (found,), _ = calibrated_on(folder, NO_NET, Here.contract, said.append)
    assert found.mean_dsc == 0
    assert f"left and right seem exchanged between masks and contours, DSC 0.00, {usual.mean_dsc:.2f}" in "".join(said)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"tumour": 1, "node": 2}, "no label has the same name on both sides: masks have 1 = parotid_left"),
        ({"parotid_left": 1}, r"p0\.nii\.gz: found label 2, expected one of 0, 1: contours have 1 = parotid_left"),
        ({"parotid_left": 1, "ignore": 2}, "found voxels labelled 'ignore', expected a contour of the whole scan"),
    ],
)
def test_contours_that_cannot_be_compared_are_refused(tmp_path: Path, labels: dict[str, int], words: str) -> None:
    folder = masks_for(place_for(tmp_path / "data", patients=1))
    name_labels(folder, **labels)
    with pytest.raises(ParotidSegError, match=words):
        calibrated_on(folder, NO_NET, Here.contract)


def without_a_mask(folder: Path) -> None:
    (folder / "masks" / "p7.nii.gz").unlink()


def with_a_mask_of_another_scan(folder: Path) -> None:
    save(np.zeros((24, 40, 40), np.uint8), folder / "masks" / "p7.nii.gz")


def without_scans(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (without_a_mask, OptionError, r"masks: found no p7\.nii\.gz, expected a mask of each patient"),
        (with_a_mask_of_another_scan, ScanError, r"p7\.nii\.gz"),
        (without_scans, ParotidSegError, "--calibrate: .*no scan in this folder"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path, change: Any, kind: Any, words: str) -> None:
    folder = masks_for(place_for(tmp_path / "data"))
    change(folder)
    with pytest.raises(kind, match=words):
        calibrated_on(folder, NO_NET, Here.contract)


@pytest.mark.parametrize("place", [Path(__file__).parent, None])
def test_export_puts_it_into_the_contract(monkeypatch: pytest.MonkeyPatch, place: Path | None) -> None:
    parity = SimpleNamespace(never_found=list, usual_chunk=lambda: {"neighbours": [0]})
    for name, instead in {
        "to_onnx": lambda *_, **__: (onnx.ModelProto(), Here.contract),
        "Parity": lambda *_: parity,
        "work_of": lambda *_: {},
        "calibrated_on": lambda found, *_: ((BOTH,), USUAL) if found == Path(__file__).parent else ((), None),
    }.items():
        monkeypatch.setattr(exporting, name, instead)
    said: list[str] = []
    checkpoint = cast(Checkpoint, SimpleNamespace(network=torch.nn.Identity))
    options = ExportOptions(calibrate=place)
    source = exporting._prepare(checkpoint, Path("scans"), options, said.append)
    assert source.contract.calibrations == ((BOTH,) if place else ())
    assert source.contract.operating_range == (USUAL if place else None)
    assert any(line.startswith("not calibrated: ") for line in said) == (place is None)


def test_a_calibration_says_what_it_is() -> None:
    made = Calibration(("a",), (), 0.8, 0.1, 0.7, 12, 24, 0.81, 0.5, "12 patients, the model's masks")
    assert str(made) == "0.800 at the mean of all features, floor 0.100 lower, flagged below 0.700"
    assert made.origin.startswith("24 structures of 12 patients, mean DSC 0.810, rank correlation")
    assert BOTH.weights == "volume +0.050, contrast +0.020"
