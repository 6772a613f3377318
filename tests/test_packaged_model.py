"""The model that ships, on the example scan, against the clinical contour that ships with it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import onnx
import pytest

from parotid_seg.metrics import dice, score_case
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.features import FEATURES, SCAN_FEATURES, STRUCTURE_FEATURES
from parotid_seg.runtime.segmentation.segment import Segmentation, segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions
from parotid_seg.scan.grid import body_centre
from parotid_seg.scan.nifti import NiftiScan, read_mask, read_nifti


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def scan() -> NiftiScan:
    return read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz")))


@pytest.fixture(scope="module")
def expected(backend: Backend, scan: NiftiScan) -> Segmentation:
    """What it marks on the example."""
    return segment_volume(backend, scan.volume, batch_size=16)


def test_it_is_small_verified_and_says_where_it_comes_from(backend: Backend) -> None:
    assert DEFAULT_MODEL.stat().st_size <= 20_000_000
    assert backend.contract.labels == ("background", "parotid_left", "parotid_right")
    assert backend.contract.training["data"] == "OpenKBP-Parotid"
    assert backend.contract.verification["lowest_dsc"] >= 0.998
    onnx.checker.check_model(onnx.load(DEFAULT_MODEL), full_check=True)


def test_its_comparison_names_it() -> None:
    record = json.loads(DEFAULT_MODEL.with_suffix(".parity.json").read_text())
    assert record["passed"]
    assert record["model_sha256"] == hashlib.sha256(DEFAULT_MODEL.read_bytes()).hexdigest()


def test_it_is_calibrated(backend: Backend, expected: Segmentation) -> None:
    (calibration,) = backend.contract.calibrations
    assert calibration.structures == ("parotid_left", "parotid_right")
    assert [each.name for each in calibration.features] == list(FEATURES)
    for name, dsc in expected.expected_dsc.items():
        assert 0.6 < dsc < 0.95
        assert expected.floor_dsc[name] == pytest.approx(dsc - calibration.margin)


def test_it_states_its_operating_range_and_the_example_is_within(backend: Backend, expected: Segmentation) -> None:
    limits = backend.contract.operating_range
    assert limits is not None
    assert tuple(each.name for each in limits.scan) == SCAN_FEATURES
    assert tuple(each.name for each in limits.structures) == STRUCTURE_FEATURES
    assert not expected.flags


def test_both_glands_of_the_example_are_found(backend: Backend, scan: NiftiScan, expected: Segmentation) -> None:
    reference, spacing = read_mask(next((example_folder() / "labelsTr").glob("*.nii.gz")), like=scan)
    scores = score_case(expected.mask, reference, spacing, backend.contract.labels)
    for name, gland in scores.labels.items():
        assert gland.dsc > 0.82, name
        assert gland.hd95_mm < 10, name
        assert abs(gland.volume_error_ml) < 0.25 * gland.reference_ml, name


@pytest.mark.slow
def test_a_finer_scan_of_the_same_patient_gives_the_same_glands(
    backend: Backend, scan: NiftiScan, expected: Segmentation, tmp_path: Path
) -> None:
    """Twice the resolution in plane: the mask must follow, not shrink, shift or fall apart."""
    coarse = nibabel.load(scan.path)
    fine = nibabel.Nifti1Image(
        np.repeat(np.repeat(np.asarray(coarse.dataobj), 2, axis=0), 2, axis=1),
        coarse.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    nibabel.save(fine, tmp_path / "fine.nii.gz")
    found = segment_volume(backend, read_nifti(tmp_path / "fine.nii.gz").volume, batch_size=16)
    for name, size in expected.volumes_ml.items():
        assert found.volumes_ml[name] == pytest.approx(size, rel=0.1)
        assert found.expected_dsc[name] == pytest.approx(expected.expected_dsc[name], abs=0.03)
    assert found.mask.shape == tuple(np.array(expected.mask.shape) * (1, 2, 2))
    for value in (1, 2):
        every_second = found.mask[:, ::2, ::2]  # a quarter of a coarse voxel off its centres
        assert dice(every_second == value, expected.mask == value) > 0.88


@pytest.mark.slow
def test_thin_slices_of_the_same_patient_give_the_same_glands(
    backend: Backend, scan: NiftiScan, expected: Segmentation
) -> None:
    """Three times the slices: the network looks at a third of them and the masks between follow."""
    depth, spacing = scan.volume.shape[0], scan.volume.spacing_mm
    at = (np.arange(3 * depth) - 1) / 3
    low = np.clip(np.floor(at).astype(int), 0, depth - 2)
    share = np.clip(at - low, 0, 1)[:, None, None]
    thin = (1 - share) * scan.volume.voxels[0, low] + share * scan.volume.voxels[0, low + 1]
    volume = dataclasses.replace(
        scan.volume, voxels=thin.round().astype(np.int16)[None], spacing_mm=(spacing[0] / 3, *spacing[1:])
    )
    found = segment_volume(backend, volume, batch_size=16)
    for value, (name, size) in enumerate(expected.volumes_ml.items(), start=1):
        assert found.volumes_ml[name] == pytest.approx(size, rel=0.1)
        assert found.expected_dsc[name] == pytest.approx(expected.expected_dsc[name], abs=0.03)
        assert dice(found.mask[1::3] == value, expected.mask == value) > 0.9


@pytest.mark.slow
def test_a_couch_and_noisy_air_are_not_marked(
    backend: Backend, scan: NiftiScan, expected: Segmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put a table and scanner noise around the patient; the glands stay where they were and nothing else appears.

    The table draws the grid some millimetres towards it, and on voxels of 4.4 mm that alone changes a twentieth of a
    gland's outline; laid on the same place, the grid must give the same glands.
    """
    voxels = scan.volume.voxels.copy()
    rng = np.random.default_rng(0)
    air = voxels < -900
    voxels[air] = (-1000 + rng.normal(0, 30, size=int(air.sum()))).astype(np.int16)
    body_rows = np.flatnonzero((scan.volume.voxels[0] > -200).any(axis=(0, 2)))
    table = min(int(body_rows[-1]) + 2, voxels.shape[2] - 3)
    voxels[:, :, table : table + 2, 20:-20] = -100
    on_the_table = dataclasses.replace(scan.volume, voxels=voxels)
    found = segment_volume(backend, on_the_table, SegmentationOptions(clean_up=False), batch_size=16).mask
    windows = np.array(backend.contract.windows)
    centre = body_centre(scan.volume, windows)
    assert body_centre(on_the_table, windows) == pytest.approx(centre, abs=20 / scan.volume.spacing_mm[1])
    monkeypatch.setattr("parotid_seg.scan.chunks.body_centre", lambda *_: centre)
    in_place = segment_volume(backend, on_the_table, SegmentationOptions(clean_up=False), batch_size=16).mask
    for value in (1, 2):
        assert dice(found == value, expected.mask == value) > 0.93
        assert dice(in_place == value, expected.mask == value) > 0.99
