"""ONNX models on TensorRT-RTX by onnxruntime's plug-in for it, on NVIDIA GPUs of compute capability 8.6, 8.9, 12.0 and
newer.

It needs plain onnxruntime and the plug-in's package, neither onnxruntime-gpu nor PyCUDA. The engine is built from the
model file when it is loaded; kernels are compiled on the GPU for the first chunks and kept in the user's cache folder.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from parotid_seg.contract import INPUT_SPECS, Contract, model_sizes
from parotid_seg.errors import MachineError, ModelError, OptionError, OutputError, first_line
from parotid_seg.runtime.engines.autotune import Candidate, cache_folder
from parotid_seg.runtime.engines.base import OUTPUTS, USUAL_BATCH, ExecutionInfo
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import check_installation, check_session, session_options
from parotid_seg.runtime.engines.onnxruntime.io_binding import BoundBackend, IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.stream import Stream
from parotid_seg.runtime.engines.registry import Request
from parotid_seg.scan.chunks import Inputs

log = logging.getLogger(__name__)

MODULE, PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"
INSTALL = f"pip install 'onnxruntime>=1.24' {PACKAGE}"
TITLE = "onnxruntime's plug-in for TensorRT-RTX"
SIZES = {
    "depth": (1, 32, 1600),
    "batch": (1, USUAL_BATCH, 257),
    "out": (1, USUAL_BATCH, 1600),
    "height": (16, 256, 1024),
    "width": (16, 256, 1024),
}
"""Smallest, usual and largest value of each size that differs from chunk to chunk, after padding. A chunk may have one
sample more than it was cut into; 256 samples of slices that are 0.5 mm apart label 1536 slices."""


class OnnxRuntimeRtxBackend(BoundBackend):
    """A model file on an NVIDIA GPU by the plug-in.

    Args:
        model: the .onnx file.
        device: number of the GPU, among those that the plug-in supports.
        output: one of `OUTPUTS`.

    Raises:
        OptionError: if the plug-in, or an onnxruntime that can load it, is not installed.
        MachineError: if the plug-in does not load, or supports no such GPU.
        ModelError: as `model_file.read_model`; if the model has other inputs or no such output; or if the plug-in
            cannot build an engine of all its nodes.
    """

    largest_batch: int | None = SIZES["batch"][2] - 1

    def __init__(self, model: Path, *, device: int = 0, output: str = OUTPUTS[0]) -> None:
        check_installation()
        found = supported_devices()
        if device >= len(found):
            raise MachineError(
                f"{TITLE}: found {len(found)} GPUs that it supports, expected one for cuda:{device}, of compute "
                "capability 8.6, 8.9, 12.0 or newer"
            )
        content, self.contract, self.model_sha256 = read_model(model)
        options = session_options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # a node on the CPU is an error
        options.add_provider_for_devices([found[device]], provider_options(self.contract))
        try:
            session = onnxruntime.InferenceSession(content, options)
        except Exception as error:  # onnxruntime's exception classes derive from Exception only
            raise ModelError(f"{TITLE} cannot build an engine of it ({first_line(error)})", path=model) from error
        check_session(session, output, model)
        name = f"onnxruntime {onnxruntime.__version__} with TensorRT-RTX's plug-in {version(PACKAGE)}"
        self.ran = ExecutionInfo(name, f"cuda:{device}", self.contract.precision)
        self._bound = IoBindingSession(session, output, Stream(), "cuda", device)

    def fits(self, inputs: Inputs) -> bool:
        """Whether all sizes are within `SIZES`."""
        return all(
            SIZES[axis][0] <= size <= SIZES[axis][2]
            for spec in INPUT_SPECS
            for axis, size in zip(spec.axes, inputs[spec.name].shape, strict=True)
            if axis in SIZES
        )


def supported_devices() -> list[Any]:
    """The GPUs that the plug-in supports. Raises as `OnnxRuntimeRtxBackend`."""
    name = _register()
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


@functools.cache
def _register() -> str:
    """Load the plug-in, once; the name of its provider."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise OptionError(f"onnxruntime {onnxruntime.__version__} loads no plug-ins: {INSTALL}")
    try:
        plugin = importlib.import_module(MODULE)
    except ImportError as error:
        raise OptionError(f"{TITLE} is not installed: {INSTALL}") from error
    name = str(plugin.get_ep_name())
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # onnxruntime's exception classes derive from Exception only
        raise MachineError(f"{TITLE} does not load; is NVIDIA's driver installed? ({first_line(error)})") from error
    return name


def provider_options(contract: Contract) -> Mapping[str, str]:
    """Options of the plug-in: the shapes to build for, and where compiled kernels are kept, if they can be."""
    options = {}
    try:
        folder = cache_folder() / "tensorrt-rtx"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options["nv_runtime_cache_path"] = str(folder)
    except (OutputError, OSError) as error:
        log.info("compiled kernels are not kept: %s", error)
    fixed = model_sizes(contract.grid, len(contract.channels))
    for index, which in enumerate(("min", "opt", "max")):
        free = {axis: sizes[index] for axis, sizes in SIZES.items()}
        shapes = ("x".join(map(str, spec.shape(free | fixed))) for spec in INPUT_SPECS)
        named = (f"{spec.name}:{shape}" for spec, shape in zip(INPUT_SPECS, shapes, strict=True))
        options[f"nv_profile_{which}_shapes"] = ",".join(named)
    return options


def load(request: Request) -> OnnxRuntimeRtxBackend:
    """Load a file. See `registry.Implementation`."""
    return OnnxRuntimeRtxBackend(request.model, device=request.gpu or 0, output=request.output)


def candidates(request: Request) -> list[Candidate]:
    """None: "auto" does not choose it, because its masks have not been compared on a GPU yet."""
    return []
