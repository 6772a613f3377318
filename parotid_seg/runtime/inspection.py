"""Describes a file for `parotid-seg inspect`: labels and values, in the order of printing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parotid_seg.contract import Contract
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import InputError, OptionError, ScanError
from parotid_seg.files import exists, hash_file, open_input, special_kind
from parotid_seg.models import model_file, title_of
from parotid_seg.runtime.engines.engine_file import check_engine, read_sidecar
from parotid_seg.runtime.engines.gpu import capability_text, find_gpu
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES, import_library, known_capabilities
from parotid_seg.runtime.pipeline.discovery import find_scans
from parotid_seg.runtime.pipeline.preflight import SEGMENTED, decision_on
from parotid_seg.runtime.pipeline.sources import Scan, Source, place_of, read_scan
from parotid_seg.runtime.report.flag_text import sentences
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.labels import plain_name
from parotid_seg.scan.nifti import describe
from parotid_seg.scan.other_formats import is_readable, unread
from parotid_seg.scan.search import Skipped, search
from parotid_seg.scan.volume import LPS_TO_RAS, axis_codes, spacing_of
from parotid_seg.wording import by_axes, counted

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
"""File types by position and value of their magic bytes."""


def inspect(path: Path, model: Path | None = None) -> Facts:
    """Describe a model file, an engine, a scan, or what a folder of scans holds and what `infer` would do with it.

    Args:
        path: a file or folder.
        model: the model file or engine that scans are for; the packaged one by default.

    Raises:
        InputError: if it is none of them, with its type if recognised; or if `model` is given for a model.
        ModelError, ScanError: if it is damaged.
    """
    if not exists(path):
        raise OptionError("no such file or folder", path=path)
    if not path.is_dir() and (kind := special_kind(path.stat().st_mode)):
        raise InputError(f"found {kind}, expected a regular file or a folder", path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote files
        return _facts_of(path, model)


def contract_of(path: Path) -> dict[str, Any] | None:
    """The contract in a model file or an engine's sidecar, unchanged; None for other files."""
    if path.suffix not in (".onnx", ".engine"):
        return None
    return dict(json.loads(_read_contract(path).to_json()))


def _read_contract(model: Path) -> Contract:
    """The contract of a model file or an engine."""
    return read_sidecar(model).contract if model.suffix == ".engine" else read_model(model).contract


def _facts_of(path: Path, model: Path | None) -> Facts:
    if path.is_dir():
        return _describe_folder(path, model)
    if model is not None and path.suffix in (".onnx", ".engine"):
        raise OptionError(f"--model: says which model scans are for, but {path} is a model; expected a scan with it")
    if path.suffix == ".onnx":
        return _describe_model(path)
    if path.suffix == ".engine":
        return _describe_engine(path)
    if is_readable(path):
        return _describe_scan(path, model)
    if _is_dicom(path):
        return _describe_slice(path, model)
    if reason := unread(path):
        raise InputError(reason, path=path)
    expected = "expected a model (.onnx), an engine (.engine), a scan (.nii, .nii.gz) or DICOM"
    raise InputError(f"found {_kind_of(path)}, {expected}", path=path)


def _contract_for(model: Path | None) -> tuple[str, Contract]:
    """The model that scans are for, as text, and its contract."""
    contract = _read_contract(model_file(model))
    return f"{title_of(model)} ({', '.join(contract.channels)})", contract


def _describe_folder(path: Path, model: Path | None) -> Facts:
    title, contract = _contract_for(model)
    count = len(search([path]).files)
    return {
        "folder": str(path),
        "kind": f"folder of {counted(count, 'file')}",
        **_describe_found([path], title, contract),
    }


def _describe_slice(path: Path, model: Path | None) -> Facts:
    """Describe the series of a DICOM file; its other slices are searched in the same folder."""
    title, contract = _contract_for(model)
    beside = [each for each in sorted(path.parent.iterdir()) if each.is_file() and _is_dicom(each)]
    facts = _describe_found(beside, title, contract, only=path.resolve())
    of_scan = "" if "not used (1)" in facts else "; the rest describes its series in this folder"
    return {"file": str(path), "kind": f"DICOM file{of_scan}", **facts}


def _is_dicom(path: Path) -> bool:
    from parotid_seg.dicom.read.file import read_dicom

    try:
        return read_dicom(path) is not None
    except ScanError:  # it is DICOM, but damaged
        return True


def _describe_found(places: Sequence[Path], title: str, contract: Contract, only: Path | None = None) -> Facts:
    """What `infer` would do with the scans in some places.

    Args:
        places: files and folders.
        title, contract: the model that the scans are for.
        only: a DICOM file; if it is part of a scan, or not used, only that is described.
    """
    from parotid_seg.dicom.phi_safe import phi_safe

    not_used: list[Skipped] = []
    with phi_safe(places[0], "DICOM file"):
        scans, errors = find_scans(places, contract.channels, skip=not_used.append)
    if only and (scans_of_file := [scan for scan in scans if only in _files_of(scan)]):
        scans, errors, not_used = scans_of_file, [], []
    elif only and (own := [each for each in not_used if only in {path.resolve() for path in each.files}]):
        scans, errors, not_used = [], [], own
    if not scans and not_used:  # else named a second time, as an error: there is no scan
        errors = [each for each in errors if each.path and not Path(each.path).is_dir()]
    decisions = {place_of(scan[0]): decision_on(scan, contract) for scan in scans}
    segmented = sum(each.startswith(SEGMENTED) for each in decisions.values())
    refused = len(errors) + len(decisions) - segmented
    facts = {
        "for": title,
        "infer would": f"segment {segmented}, refuse {refused}, not use {sum(each.items for each in not_used)}",
    }
    for scan in scans:
        source = scan[0]
        name = str(source) if isinstance(source, Path) else source.title
        facts[name] = "; ".join((*map(describe_source, scan), f"would be {decisions[place_of(source)]}"))
    facts |= {f"refused ({number})": str(error) for number, error in enumerate(errors, start=1)}
    return facts | {f"not used ({number})": str(each) for number, each in enumerate(not_used, start=1)}


def _files_of(scan: Scan) -> set[Path]:
    return {each.path.resolve() for source in scan if isinstance(source, Series) for each in source.slices}


def describe_source(series: Source) -> str:
    """A series in one line: sequence of an MR series, size, spacing, directions, description and folder."""
    if isinstance(series, Path):
        return "image file"
    from parotid_seg.dicom.mr.sequences import sequence_of
    from parotid_seg.dicom.read.facts import WITHHELD

    spacing = by_axes(spacing_of(series.affine))
    to_ras = LPS_TO_RAS @ series.affine
    kind = f"{sequence_of(series)}, " if series.modality == "MR" else ""
    described = series.facts.description
    if described == WITHHELD:
        description = f"description {WITHHELD}"
    else:
        description = f'"{described}"' if described else "no description"
    return (
        f"{kind}{len(series.slices)} slices of {series.rows} x {series.columns} voxels, {spacing} mm; slices, rows and "
        f"columns run to {axis_codes(to_ras)}; {description}; in {series.folder}"
    )


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
        trt = import_library(sidecar.library)
        version, capabilities = trt.__version__, known_capabilities(trt)
    except InputError:
        version, capabilities = None, None
    reasons = check_engine(path, sidecar, version, find_gpu(), capabilities)
    try:
        sha256 = hash_file(path)
    except OSError as error:
        sha256 = f"unknown: the file cannot be read ({error.strerror})"
    batch, options = sidecar.batch, sidecar.options
    on = "without a GPU" if sidecar.gpu is None else f"on {sidecar.gpu}, {capability_text(sidecar.compute_capability)}"
    sizes = (f"{name} {' to '.join('x'.join(map(str, shape)) for shape in (low, high))}" for name, (low, _, high) in
             sidecar.shapes.items() if name in ("slices", "neighbours"))  # fmt: skip
    return {
        "file": str(path),
        "kind": f"engine of {library.title} {sidecar.library_version}, built {on}",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": sha256,
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
        + f" mm, a sample at least every {grid.slice_step_mm:g} mm or on every slice",
        "computes in": contract.precision
        + (f"; multiply-adds {', '.join(f'{share:.1%} {kind}' for kind, share in shares)}" if shares else ""),
        "weights": f"stored in {contract.weights}",
        "graph sha256": contract.graph_sha256,
        "input and output": f"{2 * len(contract.channels)} bytes a voxel in, 1 out",
    }
    if contract.cost:
        facts["parameters"] = f"{contract.cost['parameters'] / 1e6:.2f} million"
        facts["multiply-adds"] = f"{contract.cost['multiply_adds'] / 1e6:.0f} million a sample"
    if not contract.calibrations:
        facts["expected DSC"] = "not calibrated"
    for each in contract.calibrations:
        facts |= {
            f"expected DSC, {', '.join(map(plain_name, each.structures))}": f"{each}; one standard deviation of a "
            f"feature changes it by: {each.weights}; made from {each.origin}"
        }
    limits = contract.operating_range
    facts["operating range"] = limits.origin if limits else "not stated: no scan is flagged for being unlike others"
    for part, ranges in (("scan", limits.scan), ("each structure", limits.structures)) if limits else ():
        facts[f"range, {part}"] = "; ".join(each.in_short for each in ranges) or "none"
    training = {**contract.training}
    if isinstance(scans := training.get("scans"), list):
        training["scans"] = f"hashes of {len(scans)}"
    facts |= {f"training: {name.replace('_', ' ')}": _in_short(value) for name, value in training.items()}
    facts |= {f"verified: {name.replace('_', ' ')}": _in_short(value) for name, value in verification.items()}
    return facts if verification else {**facts, "verified": "no: nothing shows that it is the model that was trained"}


def _in_short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_channel(name: str, window: Window | None) -> str:
    return f"{name}, window " + ("from the scan" if window is None else f"{window[0]:g} to {window[1]:g} HU")


def _describe_scan(path: Path, model: Path | None) -> Facts:
    title, contract = _contract_for(model)
    scan = read_scan((path,))
    facts = describe(scan)
    facts["notes"] = sentences(scan.volume.flags) or "none"
    scans, errors = find_scans([path], contract.channels)
    refused = f"refused: {errors[0].reason}" if errors else ""
    return facts | {"for": title, "would be": refused or decision_on(scans[0], contract)}


def _kind_of(path: Path) -> str:
    """The type of an unknown file by its first bytes."""
    with open_input(path) as file:
        start = file.read(256)
    for at, mark, words in KNOWN:
        if start[at:].startswith(mark):
            return words
    return "something unknown" if start else "an empty file"
