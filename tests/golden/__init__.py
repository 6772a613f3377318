"""What this version makes of a few scans: hashes that `test_golden.py` compares with those of `golden.json`.

    python -m tests.golden      # adds the results of the present RULES_VERSION to golden.json

A version's results are written once. They are added together with a new `RULES_VERSION`, see there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.contract import Contract, Grid
from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.runtime.segmentation.locate import Prepared, labels_of_scan
from parotid_seg.runtime.segmentation.segment import asking, postprocess, prepare, segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import RULES_VERSION
from parotid_seg.scan.chunks import CroppedScan, SliceChunker
from parotid_seg.scan.nifti import NiftiScan, read_nifti, write_mask
from parotid_seg.scan.volume import Mask
from tests.dicom_series import write_series
from tests.runtime.segmentation.test_locate import ByIntensity, head
from tests.scan.test_grid import HU as WINDOWS

GOLDEN = Path(__file__).with_name("golden.json")
MASK = Path(__file__).with_name("mask.nii.gz")
"""Of the example scan, by the packaged model."""
CONTRACT = Contract(("background", "left", "right"), ("CT",), ((-200.0, 300.0),), Grid())
SHAPE = (24, 60, 66)


def phantom() -> NDArray[np.int16]:
    """A head of whole numbers, without noise: (slices, rows, columns) of 5 x 4 x 4 mm in HU."""
    z, y, x = np.indices(SHAPE)
    body = (y - 31) ** 2 * 4 + (x - 33) ** 2 * 5 < 2600
    voxels = np.where(body, 20 + (7 * z + 3 * y + 5 * x) % 90, -1000)
    return voxels.astype(np.int16)


def stored_labels(shape: tuple[int, ...]) -> Mask:
    """Labels (D, H, W) with two large pieces and specks around them, for clean-up to work on."""
    z, y, x = np.indices(shape)
    depth, height, width = shape
    labels = np.zeros(shape, np.uint8)
    for value, column in ((1, 0.7), (2, 0.3)):
        off = (z / depth - 0.5) ** 2 + (y / height - 0.5) ** 2 + (x / width - column) ** 2
        labels[off < 0.02] = value
    labels[((z * 5 + y * 11 + x * 17) % 211 == 0) & (labels == 0)] = 1
    return labels


def oblique_nifti(folder: Path) -> NiftiScan:
    """Turned by 12 degrees about the patient's long axis, stored head to feet and back to front."""
    turn, steps = np.radians(12), np.diag([4.0, -4.0, -5.0])
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]] @ steps
    affine[:3, 3] = (-110.0, 120.0, 60.0)
    path = folder / "oblique.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom().transpose(2, 1, 0), affine), path)
    return read_nifti(path)


def dicom_series(folder: Path, padding: int | None = None) -> NiftiScan:
    """Slices of 4 x 4 mm every 5 mm, without the phantom's edge columns if these are `padding`."""

    def pad(index: int, dataset: Dataset) -> None:
        if padding is not None:
            words = np.frombuffer(dataset.PixelData, np.uint16).reshape(SHAPE[1:]).copy()
            words[:, :4] = words[:, -4:] = padding
            dataset.PixelData = words.tobytes()
            dataset.add_new("PixelPaddingValue", "US", padding)

    affine = np.array([[0, 0, 4.0, -130], [0, 4.0, 0, -120], [5.0, 0, 0, -60], [0, 0, 0, 1]])
    paths = write_series(folder / f"ct{padding}", phantom(), affine, change=pad)
    return read_series(find_series(paths).series[0])


def scans(folder: Path) -> dict[str, NiftiScan]:
    """The scans whose reading, resampling and clean-up are compared."""
    return {
        "example": read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz"))),
        "oblique": oblique_nifti(folder),
        "dicom": dicom_series(folder),
        "padded": dicom_series(folder, 63000),
    }


def results() -> dict[str, Any]:
    """Of each scan what the rules make of it, as hashes of arrays. None of it depends on a model."""
    with tempfile.TemporaryDirectory() as name:
        return {scan: _results_of(each, Path(name)) for scan, each in scans(Path(name)).items()} | {
            "located": located()
        }


def located() -> dict[str, str]:
    """Where the search lays the grid in a made head aside of a torso, and which samples it begins with."""
    asked = []
    backend = ByIntensity()
    ask = asking(cast(Backend, backend), 16)

    def noting(covered: CroppedScan) -> Prediction:
        asked.append(" ".join(map(str, covered.samples or ("all",))))
        return ask(covered)

    covered, _ = labels_of_scan(Prepared(head(aside_mm=60, below_mm=600), WINDOWS, backend.contract), noting)
    return {
        "covered": f"{covered.rows.start}:{covered.rows.stop}, {covered.columns.start}:{covered.columns.stop}",
        "asked": "; ".join(asked),
    }


def _results_of(scan: NiftiScan, folder: Path) -> dict[str, Any]:
    volume = scan.volume
    covered = prepare(volume, CONTRACT).crop_to_grid()
    found = postprocess(stored_labels(covered.voxels.shape[1:]), covered, volume, CONTRACT)
    write_mask(found.mask, scan, folder / "mask.nii.gz")
    written = nibabel.load(folder / "mask.nii.gz")
    return {
        "voxels": _hash(volume.voxels),
        "spacing_mm": " x ".join(f"{step:.4f}" for step in volume.spacing_mm),
        "covered": f"{covered.rows.start}:{covered.rows.stop}, {covered.columns.start}:{covered.columns.stop}",
        "inputs": {name: _hash(each) for name, each in SliceChunker(covered, CONTRACT.grid).chunk(2, 9).inputs.items()},
        "labels": _hash(found.mask),
        "stored_labels": _hash(np.asarray(written.dataobj)),
        "affine": " ".join(f"{each:.3f}" for each in (written.affine.round(3) + 0.0).ravel()),
        "flags": ";".join(flag.code for flag in found.flags),
    }


def _hash(array: NDArray[np.generic]) -> str:
    """Of the exact values; of weights in float32 of their first four decimals, as processors differ in the last."""
    if array.dtype == np.float32:
        array = np.rint(array * 9973).astype(np.int32)
    kind = f"{array.dtype.str} {array.shape} "
    return hashlib.sha256(kind.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def write_example_mask() -> None:
    """Write `MASK`."""
    scan = read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz")))
    write_mask(segment_volume(load_backend(DEFAULT_MODEL, "onnxruntime", "cpu"), scan.volume).mask, scan, MASK)


def main() -> None:
    """Add the present version's results."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if str(RULES_VERSION) in golden:
        sys.exit(f"{GOLDEN} has the results of version {RULES_VERSION}: raise RULES_VERSION first")
    GOLDEN.write_text(json.dumps({**golden, str(RULES_VERSION): results()}, indent=1) + "\n")
    write_example_mask()
