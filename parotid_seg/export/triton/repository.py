"""`parotid-seg export --triton`: a model repository that Triton Inference Server can serve.

    DIR/NAME/config.pbtxt      see `model_config`
    DIR/NAME/labels.txt        the labels by value, one per line
    DIR/NAME/warmup/INPUT      the warm-up chunk's inputs that are not all 0, raw bytes
    DIR/NAME/VERSION/          model.onnx or model.plan

One entry holds one model: clients read the contract in config.pbtxt, which has room for one, while an entry may have
several versions. Nothing is therefore added to an existing entry: a new model gets a new name, or the old entry is
removed first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, ModelError
from parotid_seg.export.parity import scans_in
from parotid_seg.export.triton.batched import check_batched, with_request_axis
from parotid_seg.export.triton.model_config import (
    DEFAULT_REQUESTS,
    LABELS_FILE,
    PLATFORMS,
    Serving,
    Tensor,
    configuration,
    in_files,
    schema,
    tensors,
    to_text,
)
from parotid_seg.files import atomic_folder, make_folder
from parotid_seg.runtime.engines.engine_file import read_engine, read_sidecar
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.pipeline.discovery import example_for
from parotid_seg.runtime.pipeline.sources import place_of, read_scan
from parotid_seg.scan.chunks import Chunk, chunks
from parotid_seg.scan.intensity import SCALED_WINDOW, in_windows
from parotid_seg.scan.volume import Orientation, Volume
from parotid_seg.wording import Say

WARM_SHAPE, WARM_SPACING_MM = (16, 512, 512), (3.0, 1.0, 1.0)
"""Size of the warm-up scan: that of a planning CT."""


def write_repository(
    folder: Path,
    model: Path,
    serving: Serving | None = None,
    *,
    verify: Path | None = None,
    report: Say = lambda _: None,
) -> Path:
    """Write a model into a Triton model repository.

    Args:
        folder: the repository; made if missing.
        model: a parotid-seg .onnx file, or an .engine of TensorRT with its sidecar. An engine's inputs cannot be read
            without TensorRT and are assumed to be those implied by the contract.
        serving: how to serve it; default: `Serving()`.
        verify: folder of scans, of which the first is used to compare a model with a request axis with the model
            itself. Default: the packaged example, a CT.
        report: called with one line for each event.

    Returns:
        The folder of the entry, `folder / serving.name`.

    Raises:
        InputError: for an unusable argument, and if the repository has an entry of this name.
        ModelError: if it is not a parotid-seg model, or its batched form does not give the same labels.
        OutputError: if the entry cannot be written; no partial entry remains.
        ParotidSegError: if tritonclient is missing.
    """
    serving = serving or Serving()
    ending = model.suffix
    if ending not in PLATFORMS:
        raise InputError(f"expected a model file ending in {' or '.join(PLATFORMS)}", path=model)
    entry = check_entry(folder, serving)
    if ending == ".engine":
        content, contract = _engine_for(serving, model)
        serving = dataclasses.replace(serving, max_requests=0)
    else:
        content, contract, _ = read_model(model)
        _check_layout(content, contract, model)
        if serving.max_requests is None:
            serving = dataclasses.replace(serving, max_requests=DEFAULT_REQUESTS)
        if serving.max_requests:
            content = _batched(content, contract, verify, report)
    # An engine's profile may not allow that chunk, and the server would then reject the model.
    warm = _warm_chunk(contract).inputs if ending == ".onnx" else {}
    config = configuration(contract, serving, ending, hashlib.sha256(content).hexdigest(), warm)
    text = to_text(config)
    make_folder(folder)
    with atomic_folder(entry) as partial:
        (partial / "config.pbtxt").write_text(text)
        (partial / LABELS_FILE).write_text("".join(f"{label}\n" for label in contract.labels))
        (partial / str(serving.version)).mkdir()
        (partial / str(serving.version) / config.default_model_filename).write_bytes(content)
        if warm:
            (partial / "warmup").mkdir()
            for name, array in in_files(warm).items():
                (partial / "warmup" / name).write_bytes(np.ascontiguousarray(array).tobytes())
    return entry


def check_entry(folder: Path, serving: Serving) -> Path:
    """The folder of a new entry. Raises InputError if it exists already, ParotidSegError if tritonclient is missing."""
    entry = folder / serving.name
    if entry.exists():
        raise InputError("an entry of this name exists; choose another name, or remove the entry first", path=entry)
    schema()
    return entry


def _engine_for(serving: Serving, model: Path) -> tuple[bytes, Contract]:
    """The content of an engine file, and its model's contract. Raises InputError if it cannot be served like that."""
    sidecar = read_sidecar(model)
    content = read_engine(model, sidecar)
    if sidecar.library != "tensorrt":
        raise InputError(f"an engine of {sidecar.library}, but Triton runs those of tensorrt only", path=model)
    if serving.device == "cpu":
        raise InputError(f"triton.device: found cpu, but {model.name} is a TensorRT engine, which needs cuda")
    if serving.max_requests:
        raise InputError(
            f"triton.max_requests: found {serving.max_requests}, expected 0: the shapes of {model.name} are fixed "
            "and have no request axis"
        )
    return content, sidecar.contract


def _check_layout(content: bytes, contract: Contract, model: Path) -> None:
    """Raise ModelError unless an ONNX file's inputs and output are those implied by its contract."""
    graph = onnx.load_from_string(content).graph
    inputs, output = tensors(contract)
    for each, value in zip((*inputs, output), (*graph.input, *graph.output), strict=False):
        if (found := _tensor(value)) != each:
            raise ModelError(f"found {found}, expected {each}", path=model)
    counts = len(graph.input), len(graph.output)
    if counts != (len(inputs), 1):
        raise ModelError(f"found {counts[0]} inputs and {counts[1]} outputs, expected {len(inputs)} and 1", path=model)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kinds: dict[int, str] = {TensorProto.FLOAT16: "FP16", TensorProto.FLOAT: "FP32", TensorProto.UINT8: "UINT8"}
    tensor_type = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim)
    return Tensor(
        value.name, kinds.get(tensor_type.elem_type) or TensorProto.DataType.Name(tensor_type.elem_type), dims
    )


def _batched(content: bytes, contract: Contract, verify: Path | None, report: Say) -> bytes:
    """The model with a request axis, verified to give the same labels for two patients at once."""
    scans = scans_in(verify or example_for(contract.channels, "--verify"), contract.channels)
    volume, windows = in_windows(read_scan(scans[0]).volume, contract.channels, contract.windows)
    # A second patient of the same shape: mirrored and shifted, so that voxels, centre and matrices differ.
    moved = np.roll(volume.voxels[..., ::-1], volume.shape[2] // 16, axis=3)
    other = dataclasses.replace(volume, voxels=moved)
    batched = with_request_axis(content, contract)
    report(f"comparing the model with a request axis with the model on {place_of(scans[0][0]).name}")
    both = zip(*(chunks(each, windows, contract.grid, 8) for each in (volume, other)), strict=True)
    labelled, changed = check_batched(content, batched, both)
    report(f"{changed} of {labelled} labelled voxels changed")
    return batched


def _warm_chunk(contract: Contract) -> Chunk:
    """The first chunk of an empty scan."""
    voxels = np.zeros((len(contract.channels), *WARM_SHAPE), np.int16)
    empty = Volume(voxels, WARM_SPACING_MM, Orientation((0, 1, 2), (False, False, False)))
    windows = np.array([window or SCALED_WINDOW for window in contract.windows], np.float32)
    return next(chunks(empty, windows, contract.grid, WARM_SHAPE[0]))
