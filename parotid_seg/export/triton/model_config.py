"""Triton's model configuration of a model file: built as a protobuf message, written as text, read back.

The configuration depends on Triton's batching. Its dynamic batcher joins waiting requests along a first axis that every
input must have, and only if all other sizes are equal (inputs of different sizes can only be joined flattened, which
convolutions do not support). With `max_batch_size: 0` a model has no such axis: Triton accepts `dynamic_batching`, but
every batch is one request. There are therefore two configurations: a model with a request axis (see `batched`) gets
`max_batch_size` and `dynamic_batching`; a model without one gets neither, and a batch is one chunk of the client, with
any number of slices.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import FREE, INPUT_SPECS, METADATA_KEY, Contract, model_sizes
from parotid_seg.errors import InputError, ParotidSegError
from parotid_seg.export.export_options import DEVICES

if TYPE_CHECKING:
    from types import ModuleType

LABELS_FILE = "labels.txt"
PLATFORMS = {
    ".onnx": ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    ".engine": ("tensorrt", "tensorrt_plan", "model.plan"),
}
"""Triton's backend, its platform, and the file's name in a repository, by a model file's ending."""
DEFAULT_REQUESTS = 4
"""Requests in a batch: 64 slices in chunks of 16 keep a GPU busy, and the scores of a 512 x 512 scan fit in 1 GB."""


@dataclass(frozen=True)
class Serving:
    """How Triton serves a model.

    Attributes:
        name: the model's name on the server.
        version: its version number on the server.
        device: "cuda" or "cpu". A server without GPUs rejects a model for "cuda"; there is no fallback.
        instances: copies that run at the same time, on each GPU or on the CPU.
        max_requests: most requests joined into one batch; 0 leaves the graph as it is and joins none. None is
            `DEFAULT_REQUESTS` for an ONNX file and 0 for an engine, whose shapes are fixed already.
        delay_us: microseconds that a request may wait for others. 0: only requests that are already queued are joined.
    """

    name: str = "parotid-seg"
    version: int = 1
    device: str = "cuda"
    instances: int = 1
    max_requests: int | None = None
    delay_us: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise InputError(f"triton.name: found {self.name!r}, expected letters, digits, '.', '_' and '-'")
        if self.device not in DEVICES:
            raise InputError(f"triton.device: found {self.device!r}, expected one of: {', '.join(DEVICES)}")
        for name, least in (("version", 1), ("instances", 1), ("max_requests", 0), ("delay_us", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"triton.{name}: found {value}, expected {least} or more")
        if self.delay_us and self.max_requests == 0:
            raise InputError("triton.delay_us: waiting for others is of no use with max_requests 0, which joins none")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: its name in the graph.
        kind: "FP16", "FP32" or "UINT8".
        dims: its sizes without the request axis, -1 where free.
    """

    name: str
    kind: str
    dims: tuple[int, ...]


def tensors(contract: Contract) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and output of a model with this contract; `input_spec` describes the axes."""
    sizes = dict.fromkeys(FREE, -1) | model_sizes(contract.grid, len(contract.channels))
    inputs = tuple(
        Tensor(spec.name, f"FP{8 * np.dtype(spec.dtype).itemsize}", spec.shape(sizes)) for spec in INPUT_SPECS
    )
    return inputs, Tensor("labels", "UINT8", (-1, -1, -1))


def configuration(
    contract: Contract, serving: Serving, ending: str, model_sha256: str, warm: dict[str, NDArray[Any]]
) -> Any:
    """The `ModelConfig` message.

    The contract is in the parameters, so that a client needs nothing but the server. Caching is off: no two chunks are
    equal, and answers are medical data. Accelerators and precision are not configured, because the model file was
    verified without them.

    Args:
        contract: of the model.
        serving: how to serve it; `max_requests` resolved.
        ending: of the model file, one of `PLATFORMS`.
        model_sha256: hash of the file that is served.
        warm: arrays of one chunk by input name, for the warm-up request; empty for none. Arrays that are not all 0 must
            be in files of these names (`in_files`).

    Raises:
        ParotidSegError: if tritonclient is missing.
    """
    triton = schema()
    config = triton.ModelConfig(name=serving.name)
    config.backend, config.platform, config.default_model_filename = PLATFORMS[ending]
    config.version_policy.latest.num_versions = 1
    config.max_batch_size = serving.max_requests or 0
    inputs, output = tensors(contract)
    for each in inputs:
        config.input.add(name=each.name, data_type=_kind(triton, each), dims=each.dims)
    config.output.add(name=output.name, data_type=_kind(triton, output), dims=output.dims, label_filename=LABELS_FILE)
    kind = {"cuda": triton.ModelInstanceGroup.KIND_GPU, "cpu": triton.ModelInstanceGroup.KIND_CPU}[serving.device]
    config.instance_group.add(kind=kind, count=serving.instances)
    if serving.max_requests:
        config.dynamic_batching.max_queue_delay_microseconds = serving.delay_us
    config.response_cache.enable = False
    text = contract.to_json()
    for key, value in (
        (METADATA_KEY, text),
        ("parotid_seg.contract_sha256", hashlib.sha256(text.encode()).hexdigest()),
        ("parotid_seg.schema_version", str(contract.schema_version)),
        ("parotid_seg.graph_sha256", contract.graph_sha256),
        ("parotid_seg.model_sha256", model_sha256),
    ):
        config.parameters[key].string_value = value
    if warm:
        request = config.model_warmup.add(name="one chunk", batch_size=1, count=1)
        for each in inputs:
            filled = request.inputs[each.name]
            filled.data_type = _kind(triton, each)
            filled.dims.extend(warm[each.name].shape)
            if each.name in in_files(warm):
                filled.input_data_file = each.name
            else:
                filled.zero_data = True
    return config


def in_files(warm: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Those arrays of a warm-up chunk that need a file, because they are not all 0."""
    return {name: array for name, array in warm.items() if array.any()}


def to_text(config: Any) -> str:
    """The message as config.pbtxt, checked to read back as the same message."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    if from_text(text, where=config.name) != config:
        raise AssertionError("a model configuration does not read back as it was written")
    return text


def from_text(text: str, *, where: str) -> Any:
    """Read a config.pbtxt by Triton's schema.

    Raises:
        InputError: if it does not fit: an unknown field, a value of another type, broken syntax.
        ParotidSegError: if tritonclient is missing.
    """
    triton = schema()
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        raise InputError(f"{where}: does not fit Triton's model configuration ({error})") from error


def _kind(triton: ModuleType, tensor: Tensor) -> int:
    kind: int = triton.DataType.Value(f"TYPE_{tensor.kind}")
    return kind


def schema() -> ModuleType:
    """Triton's schema from tritonclient.

    Raises:
        ParotidSegError: if tritonclient is missing.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError) as error:  # tritonclient raises RuntimeError if grpc is missing
        raise ParotidSegError(
            f"--triton needs the package tritonclient with grpc ({error}): pip install 'parotid-seg[triton]'"
        ) from error
    return model_config_pb2  # type: ignore[no-any-return]
