"""What a file is, for `parotid-seg inspect`: label and value, in the order they are printed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import exists
from parotid_seg.runtime.engine_file import check_engine, read_sidecar
from parotid_seg.runtime.flag_text import sentences
from parotid_seg.runtime.gpu import capability_text, find_gpu
from parotid_seg.runtime.load import load_backend
from parotid_seg.runtime.trt_library import LIBRARIES
from parotid_seg.scan.hounsfield import check_hounsfield
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.nifti import describe, is_nifti, read_nifti

Facts = dict[str, str]
KNOWN = (
    (
        0,
        b"PK\x03\x04",
        "a training run's checkpoint, of which parotid-seg export makes a model, or another ZIP archive",
    ),
    (0, b"\x1f\x8b", "a gzip file that is not named .nii.gz"),
    (0, b"\x89PNG", "a picture"),
    (0, b"{", "JSON"),
)
"""Where in a file which bytes tell what it is."""


def inspect(path: Path) -> Facts:
    """Describe a model file, an engine, a scan, or what a folder of DICOM files holds.

    Raises:
        InputError: if it is none of them, with what it is as far as that shows.
        ModelError, ScanError: if it is damaged.
    """
    if not exists(path):
        raise InputError("no such file", path=path)
    if path.is_dir():
        return _describe_dicom(path)
    if path.suffix == ".onnx":
        return _describe_model(path)
    if path.suffix == ".engine":
        return _describe_engine(path)
    if is_nifti(path):
        return _describe_scan(path)
    from parotid_seg.dicom.file import read_dicom

    if read_dicom(path) is not None:
        return _describe_dicom(path)
    wanted = "expected a model (.onnx), an engine (.engine), a scan (.nii, .nii.gz) or DICOM"
    raise InputError(f"found {_kind_of(path)}, {wanted}", path=path)


def _describe_dicom(path: Path) -> Facts:
    from parotid_seg.dicom.discreet import discreet
    from parotid_seg.dicom.read import describe_folder

    with discreet(path, "DICOM folder"):
        return describe_folder(path)


def _describe_model(path: Path) -> Facts:
    backend = load_backend(path, "onnxruntime", "cpu", allow_unverified=True)
    contract = backend.contract
    return {
        "file": str(path),
        "kind": f"ONNX model, opset {contract.opset}, contract schema {contract.schema_version}",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": backend.model_sha256,
        **_describe_contract(contract),
    }


def _describe_engine(path: Path) -> Facts:
    sidecar = read_sidecar(path)
    library = LIBRARIES[sidecar.library]
    try:
        version = metadata.version(library.package)
    except metadata.PackageNotFoundError:
        version = None
    reasons = check_engine(path, sidecar, version, find_gpu())
    batch, options = sidecar.batch, sidecar.options
    on = "without a GPU" if sidecar.gpu is None else f"on {sidecar.gpu}, {capability_text(sidecar.compute_capability)}"
    sizes = (f"{name} {' to '.join('x'.join(map(str, shape)) for shape in (low, high))}" for name, (low, _, high) in
             sidecar.shapes.items() if name in ("slices", "neighbours"))  # fmt: skip
    return {
        "file": str(path),
        "kind": f"engine of {library.title} {sidecar.library_version}, built {on}",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": sidecar.engine_sha256,
        "built from": f"{sidecar.onnx_name}, sha256 {sidecar.onnx_sha256}",
        "runs on": f"{options.runs_on}, {library.title} {sidecar.library_version}"
        + (" or newer" if options.version_compatible else ""),
        "batches": f"{batch.min} to {batch.max}, best at {batch.opt}",
        "sizes": "; ".join(sizes),
        "masks": _describe_proof(sidecar.verification),
        "here": "can be used" if not reasons else f"cannot be used: {'; '.join(reasons)}",
        **_describe_contract(sidecar.contract),
    }


def _describe_proof(verification: dict[str, Any]) -> str:
    if not verification:
        return "not compared with the trained model's"
    if "not_run" in verification:
        return f"not compared with the trained model's: {verification['not_run']}"
    return (
        f"compared with the trained model's by {verification['with']} on {verification['on']}: lowest DSC "
        f"{verification['lowest_dsc']:.4f}"
    )


def _describe_contract(contract: Contract) -> Facts:
    grid, verification = contract.grid, dict(contract.verification)
    census = verification.pop("multiply_adds", {})
    shares = sorted(census.items(), key=lambda item: -item[1])
    facts = {
        "labels": ", ".join(f"{value} {name}" for value, name in enumerate(contract.labels)),
        "input": "; ".join(map(_describe_channel, contract.channels, contract.windows)),
        "grid": f"{grid.size} x {grid.size} at {grid.spacing_mm:g} mm, neighbours at "
        + ", ".join(f"{offset:g}" for offset in grid.offsets_mm)
        + f" mm, a look every {grid.slice_step_mm:g} mm at most",
        "computes in": contract.precision
        + (f"; multiply-adds {', '.join(f'{share:.1%} {kind}' for kind, share in shares)}" if shares else ""),
        "weights": f"stored in {contract.weights}",
        "graph sha256": contract.graph_sha256,
        "over the bus": f"{2 * len(contract.channels)} bytes a voxel in, 1 out",
    }
    if contract.cost:
        facts["parameters"] = f"{contract.cost['parameters'] / 1e6:.2f} million"
        facts["multiply-adds"] = f"{contract.cost['multiply_adds'] / 1e6:.0f} million a slice looked at"
    facts |= {f"training: {name}": str(value) for name, value in contract.training.items()}
    facts |= {f"verified: {name.replace('_', ' ')}": str(value) for name, value in verification.items()}
    return facts if verification else {**facts, "verified": "no: nothing shows that it is the model that was trained"}


def _describe_channel(name: str, window: Window | None) -> str:
    return f"{name}, window " + ("from the scan" if window is None else f"{window[0]:g} to {window[1]:g} HU")


def _describe_scan(path: Path) -> Facts:
    scan = read_nifti(path)
    facts = describe(scan)
    facts["notes"] = sentences(scan.volume.flags) or "none"
    try:
        doubts = sentences(flag for voxels in scan.volume.voxels for flag in check_hounsfield(voxels))
        facts["would be"] = "segmented as a CT" + (f", and flagged: {doubts}" if doubts else "")
    except ScanError as error:
        facts["would be"] = f"refused as a CT: {error.reason}"
    return facts


def _kind_of(path: Path) -> str:
    """What an unknown file is, as far as its first bytes show."""
    with path.open("rb") as file:
        start = file.read(256)
    for at, mark, words in KNOWN:
        if start[at:].startswith(mark):
            return words
    return "something unknown" if start else "an empty file"
