"""`parotid-seg export --triton`: a model repository that Triton Inference Server can serve.

    DIR/NAME/config.pbtxt      see `triton_config`
    DIR/NAME/labels.txt        the labels, one a line, by value
    DIR/NAME/warmup/INPUT      the warm-up chunk's inputs that are not all 0, raw bytes
    DIR/NAME/VERSION/          model.onnx or model.plan

One entry holds one model: config.pbtxt has room for one contract, whatever versions lie beside it, and a client reads
the contract there. So an entry is never added to; a new model gets a new name, or the old entry is removed first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import InputError, ModelError
from parotid_seg.export.batched import check_batched, with_request_axis
from parotid_seg.export.triton_config import (
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
from parotid_seg.files import make_folder, whole_folder
from parotid_seg.models import example_folder
from parotid_seg.runtime.cases import find_scans
from parotid_seg.runtime.ort import read_model
from parotid_seg.scan.grid import Chunk, chunks
from parotid_seg.scan.intensity import SCALED_WINDOW, in_windows, is_ct
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Orientation, Volume

WARM_SHAPE, WARM_SPACING_MM = (16, 512, 512), (3.0, 1.0, 1.0)
"""The warm-up scan: what a planning CT looks like."""


def write_repository(
    folder: Path,
    model: Path,
    serving: Serving | None = None,
    *,
    contract: Contract | None = None,
    verify: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a model into a Triton model repository.

    Args:
        folder: the repository; made if it is not there.
        model: an .onnx file of ours, or a TensorRT .plan with its contract in `MODEL.plan.json` under "contract". Its
            inputs cannot be read without TensorRT and are taken to be those that the contract implies.
        serving: how to serve it; default: `Serving()`.
        contract: a plan's contract, instead of its sidecar's.
        verify: folder of scans, of which the first is used to compare a model with a request axis with the model
            itself. Default: the packaged example, a CT.
        report: told one line at a time what happens.

    Returns:
        The folder of the entry, `folder / serving.name`.

    Raises:
        InputError: for an unusable argument, and if the repository has an entry of this name.
        ModelError: if the model is not one of ours, or its batched form does not give its labels.
        OutputError: if the entry cannot be written; nothing is left then.
        ParotidSegError: if tritonclient is missing.
    """
    serving = serving or Serving()
    ending = model.suffix
    if ending not in PLATFORMS:
        raise InputError(f"{model}: expected a model file ending in {' or '.join(PLATFORMS)}")
    entry = folder / serving.name
    if entry.exists():
        raise InputError(f"{entry}: there is an entry of this name; choose another name, or remove the entry first")
    schema()
    content = read_model(model)
    if ending == ".plan":
        contract = contract or _sidecar_contract(model, content)
        if serving.device == "cpu":
            raise InputError(f"triton.device: found cpu, but {model.name} is a TensorRT plan, which needs cuda")
        if serving.max_requests:
            raise InputError(
                f"triton.max_requests: found {serving.max_requests}, expected 0: the shapes of {model.name} are fixed "
                "and have no request axis"
            )
        serving = dataclasses.replace(serving, max_requests=0)
    else:
        contract = _checked_contract(content, model)
        if serving.max_requests is None:
            serving = dataclasses.replace(serving, max_requests=DEFAULT_REQUESTS)
        if serving.max_requests:
            content = _batched(content, contract, verify, report)
    warm = _warm_chunk(contract).inputs if serving.warm_up and ending == ".onnx" else {}
    config = configuration(contract, serving, ending, hashlib.sha256(content).hexdigest(), warm)
    text = to_text(config)
    make_folder(folder)
    with whole_folder(entry) as partial:
        (partial / "config.pbtxt").write_text(text)
        (partial / LABELS_FILE).write_text("".join(f"{label}\n" for label in contract.labels))
        (partial / str(serving.version)).mkdir()
        (partial / str(serving.version) / config.default_model_filename).write_bytes(content)
        if warm:
            (partial / "warmup").mkdir()
            for name, array in in_files(warm).items():
                (partial / "warmup" / name).write_bytes(np.ascontiguousarray(array).tobytes())
    return entry


def _sidecar_contract(plan: Path, content: bytes) -> Contract:
    """The contract beside a plan; where the sidecar tells more, the plan must be the one that it tells of."""
    sidecar = plan.with_name(f"{plan.name}.json")
    try:
        found = json.loads(read_model(sidecar))
        contract = Contract.from_json(json.dumps(found["contract"]), where=str(sidecar))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{sidecar}: not an engine's sidecar, expected JSON with a contract ({error!r})") from error
    if found.get("library", "tensorrt") != "tensorrt":
        raise InputError(f"{plan}: an engine of {found['library']}, but Triton runs those of tensorrt only")
    if found.get("engine_sha256", digest := hashlib.sha256(content).hexdigest()) != digest:
        raise ModelError(f"{plan}: its hash is not the one in {sidecar.name}; build the engine again")
    return contract


def _checked_contract(content: bytes, model: Path) -> Contract:
    """The contract in an ONNX file, whose inputs and output must be those that it implies."""
    try:
        read = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError, of whichever implementation is installed
        raise ModelError(f"{model}: not an ONNX model ({error})") from error
    text = {entry.key: entry.value for entry in read.metadata_props}.get(METADATA_KEY)
    if text is None:
        raise ModelError(f"{model}: an ONNX model, but without parotid-seg's contract in its metadata")
    contract = Contract.from_json(text, where=str(model))
    inputs, output = tensors(contract)
    for each, value in zip((*inputs, output), (*read.graph.input, *read.graph.output), strict=False):
        if (found := _tensor(value)) != each:
            raise ModelError(f"{model}: found {found}, expected {each}")
    counts = len(read.graph.input), len(read.graph.output)
    if counts != (len(inputs), 1):
        raise ModelError(f"{model}: found {counts[0]} inputs and {counts[1]} outputs, expected {len(inputs)} and 1")
    return contract


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kinds: dict[int, str] = {TensorProto.FLOAT16: "FP16", TensorProto.FLOAT: "FP32", TensorProto.UINT8: "UINT8"}
    found = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in found.shape.dim)
    return Tensor(value.name, kinds.get(found.elem_type) or TensorProto.DataType.Name(found.elem_type), dims)


def _batched(content: bytes, contract: Contract, verify: Path | None, report: Callable[[str], None]) -> bytes:
    """The model with a request axis, once it has given the model's labels for two patients at once."""
    if verify is None:
        if not all(map(is_ct, contract.channels)) or len(contract.channels) != 1:
            wanted = ", ".join(contract.channels)
            raise InputError(f"--verify: the packaged example is a CT; name a folder of scans of the model's: {wanted}")
        verify = example_folder()
    scans, errors = find_scans([verify], contract.channels, ignore=verify.glob("**/labelsT[rs]"))
    if errors or not scans:
        raise InputError(f"--verify: {errors[0] if errors else f'{verify}: no scan in this folder'}")
    volume, windows = in_windows(read_nifti(*scans[0]).volume, contract.channels, contract.windows)
    # A second patient of the same shape: mirrored and moved, so that voxels, centre and matrices are others.
    moved = np.roll(volume.voxels[..., ::-1], volume.shape[2] // 16, axis=3)
    other = dataclasses.replace(volume, voxels=moved)
    batched = with_request_axis(content, contract)
    report(f"comparing the model with a request axis with the model on {scans[0][0].name}")
    both = zip(*(chunks(each, windows, contract.grid, 8) for each in (volume, other)), strict=True)
    found, changed = check_batched(content, batched, both)
    report(f"{changed} of {found} labelled voxels changed")
    return batched


def _warm_chunk(contract: Contract) -> Chunk:
    """The first chunk of an empty scan."""
    voxels = np.zeros((len(contract.channels), *WARM_SHAPE), np.int16)
    empty = Volume(voxels, WARM_SPACING_MM, Orientation((0, 1, 2), (False, False, False)))
    windows = np.array([window or SCALED_WINDOW for window in contract.windows], np.float32)
    return next(chunks(empty, windows, contract.grid, WARM_SHAPE[0]))
