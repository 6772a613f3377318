"""What a file is, for `parotid-seg inspect`: label and value, in the order they are printed."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.errors import InputError, ScanError
from parotid_seg.runtime.load import load_backend
from parotid_seg.runtime.segmenter import check_ct
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.nifti import describe, is_nifti, read_nifti


def inspect(path: Path) -> dict[str, str]:
    """Describe a model file or a scan.

    Raises:
        InputError: if it is neither.
        ModelError, ScanError: if it is damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return _describe_model(path)
    if is_nifti(path):
        return _describe_scan(path)
    raise InputError(f"{path}: found neither a model (.onnx) nor a scan (.nii, .nii.gz)")


def _describe_model(path: Path) -> dict[str, str]:
    backend = load_backend(path, allow_unverified=True)
    contract, grid = backend.contract, backend.contract.grid
    facts = {
        "file": str(path),
        "kind": f"ONNX model, opset {contract.opset}, contract schema {contract.schema_version}",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": backend.model_sha256,
        "labels": ", ".join(f"{value} {name}" for value, name in enumerate(contract.labels)),
        "input": "; ".join(map(_describe_channel, contract.channels, contract.windows)),
        "grid": f"{grid.size} x {grid.size} at {grid.spacing_mm:g} mm, neighbours at "
        + ", ".join(f"{offset:g}" for offset in grid.offsets_mm)
        + f" mm, a look every {grid.slice_step_mm:g} mm at most",
        "computes in": contract.precision,
        "weights": f"stored in {contract.weights}",
        "graph sha256": contract.graph_sha256,
    }
    facts |= {f"training: {name}": str(value) for name, value in contract.training.items()}
    facts |= {f"verified: {name}": str(value) for name, value in contract.verification.items()}
    return facts


def _describe_channel(name: str, window: Window | None) -> str:
    return f"{name}, window " + ("from the scan" if window is None else f"{window[0]:g} to {window[1]:g} HU")


def _describe_scan(path: Path) -> dict[str, str]:
    scan = read_nifti(path)
    facts = describe(scan)
    try:
        check_ct(scan.volume.voxels)
        facts["would be"] = "segmented as a CT"
    except ScanError as error:
        facts["would be"] = f"refused as a CT: {error}"
    return facts
