"""ONNX models on OpenVINO's CPU device: the fastest on many CPUs, in FP32 or, if the CPU supports it, BF16."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from parotid_seg.errors import InputError, ModelError, ParotidSegError, first_line
from parotid_seg.runtime.engines.autotune import Candidate, cache_file
from parotid_seg.runtime.engines.base import (
    INPUTS,
    OUTPUTS,
    Backend,
    ExecutionInfo,
    Output,
    Times,
    check_names,
)
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.padding import Size, pad_to_bucket
from parotid_seg.runtime.engines.private_file import read_private, write_private
from parotid_seg.runtime.engines.registry import Request
from parotid_seg.scan.chunks import Inputs
from parotid_seg.system import available_cores

log = logging.getLogger(__name__)

INSTALL = "pip install openvino"
TYPES = {"fp32": "f32", "bf16": "bf16"}
"""The project's and OpenVINO's names of the types that it can compute in."""
FOLDER = "openvino"
"""Of compiled models, in the user's cache folder."""
MOST_SHAPES = 128
"""Most shapes before the model is reloaded, which takes half a second. OpenVINO keeps about a megabyte of code for each
shape of a chunk and never frees it, whatever the capacity of its cache. Sizes are rounded up, so that the 40 test scans
of OpenKBP have about 63 shapes."""
MOST_VOXELS = 6_000_000
"""Most voxels of a chunk. OpenVINO resamples them in several copies as float32, and keeps that memory. Without a limit
two scans of 512 x 512 x 200 share chunks of 400 slices; smaller ones take the same CPU time."""


class OpenVinoBackend(Backend):
    """A model file on the CPU by OpenVINO.

    Args:
        model: the .onnx file.
        precision: one of `TYPES`, the type in which an FP32 or FP16 model is computed; 8-bit products of a quantised
            model stay unchanged.
        threads: computing threads; default: one per core.
        output: one of `OUTPUTS`.

    Raises:
        ModelError: as `model_file.read_model`; if OpenVINO cannot load the model; or if it has other inputs or no such
            output.
        InputError: if OpenVINO is not installed, or does not compute in this type on this CPU.
    """

    def __init__(
        self,
        model: Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        output: str = OUTPUTS[0],
    ) -> None:
        self._core = cpu_core()
        self._config = {
            "INFERENCE_PRECISION_HINT": TYPES[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads or available_cores(),
            "ENABLE_CPU_PINNING": False,  # reading and writing scans share the cores
        }
        self._model = model
        content, self.contract, self.model_sha256 = read_model(model)
        self._place = _place_of(self._core, self.model_sha256, self._config)
        self._compiled: Any = self._stored_model() or self._compiled_model(content)
        inputs, outputs = ([port.any_name for port in side] for side in (self._compiled.inputs, self._compiled.outputs))
        check_names(inputs, outputs, output, where=str(model))
        runs = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        if runs != TYPES[precision]:
            raise InputError(f"OpenVINO {version()}: computes in {runs} on this CPU, expected {TYPES[precision]}")
        computed = "int8" if self.contract.precision == "int8" else precision
        self.ran = ExecutionInfo(f"openvino {version()}", "cpu", computed)
        self._output = output
        self._free: deque[Any] = deque()
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()

    def fits(self, inputs: Inputs) -> bool:
        """Whether a chunk has at most `MOST_VOXELS`; a larger one would run, too."""
        return inputs["slices"].size <= MOST_VOXELS

    def start(self, inputs: Inputs) -> _Started:
        """Submit a chunk. It is computed in the background."""
        chunk, size = pad_to_bucket(inputs)
        self._note(tuple(chunk[name].shape for name in INPUTS))
        with _plain_errors():
            request = self._free.popleft() if self._free else self._compiled.create_infer_request()
            request.start_async(dict(chunk), share_inputs=True)
        return _Started(self, self._compiled, request, chunk, size)

    def finished(self, started: _Started) -> Output:
        """Wait for a chunk's output. Its request is reused, unless the model has been reloaded since."""
        with _plain_errors():
            started.request.wait()
            output = started.size.of(started.request.get_tensor(self._output).data)
        if started.compiled is self._compiled:
            self._free.append(started.request)
        return output

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """See `Backend.timed`; the chunk is padded first, and its output cropped."""
        begun = time.perf_counter()
        started = self.start(inputs)
        handed_in = time.perf_counter()
        with _plain_errors():
            started.request.wait()
        computed = time.perf_counter()
        output = started.result()
        return output, Times(handed_in - begun, computed - handed_in, time.perf_counter() - computed)

    def close(self) -> None:
        """Free the memory."""
        self._free.clear()
        del self._compiled

    def _stored_model(self) -> Any:
        """The compiled model that an earlier process has kept, which takes a third of the time of compiling; None if
        there is none."""
        stored = read_private(self._place)
        if stored is None:
            return None
        try:
            return self._core.import_model(bytes(stored), "CPU", self._config)
        except RuntimeError as error:
            log.info("%s: not used: %s", self._place, first_line(error))
            return None

    def _content(self) -> bytes:
        file = read_model(self._model)
        if file.sha256 != self.model_sha256:
            raise ModelError("changed since it was loaded, expected the same file", path=self._model)
        return file.content

    def _compiled_model(self, content: bytes) -> Any:
        """Compile a model file's bytes, and keep the result for other processes.

        Raises:
            ModelError: if OpenVINO cannot load them.
        """
        try:
            compiled = self._core.compile_model(self._core.read_model(io.BytesIO(content)), "CPU", self._config)
        except RuntimeError as error:
            reason = [first_line(error), *filter(None, map(str.strip, str(error).splitlines()))][-1]
            raise ModelError(f"OpenVINO {version()} cannot load it ({reason})", path=self._model) from error
        try:
            write_private(compiled.export_model().getvalue(), self._place)
        except RuntimeError as error:
            log.info("%s: not kept: %s", self._place, first_line(error))
        return compiled

    def _note(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Record a shape; reload the model if there have been too many."""
        if shapes not in self._shapes and len(self._shapes) >= MOST_SHAPES:
            self._free.clear()
            self._shapes.clear()
            self._compiled = None  # free its memory before the new one needs some
            self._compiled = self._stored_model() or self._compiled_model(self._content())
        self._shapes.add(shapes)


def _place_of(core: Any, model_sha256: str, config: dict[str, Any]) -> Path | None:
    """Where a compiled model is kept: a file in the user's cache folder, whose name depends on all that makes it; None
    as `cache_file`."""
    processor = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    facts = repr((model_sha256, import_openvino().get_version(), processor, config))
    return cache_file(FOLDER, f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.blob")


@dataclass(frozen=True)
class _Started:
    """A chunk that is being computed; `chunk` keeps the arrays that OpenVINO reads."""

    backend: OpenVinoBackend
    compiled: Any
    request: Any
    chunk: Inputs
    size: Size

    def result(self) -> Output:
        """Wait for the output."""
        return self.backend.finished(self)


def load(request: Request) -> Backend:
    """Load a file in FP32. See `registry.Implementation`."""
    return OpenVinoBackend(request.model, threads=request.threads, output=request.output)


def candidates(request: Request) -> list[Candidate]:
    """FP32, and BF16 if the CPU supports it. See `registry.Implementation`.

    INT8 files are excluded, because engines round differently and their masks were verified on onnxruntime.
    """
    if request.contract.precision == "int8" or importlib.util.find_spec("openvino") is None:
        return []
    try:
        precisions = ("fp32", "bf16") if computes_bf16() else ("fp32",)
    except ParotidSegError as error:
        request.say(f"OpenVINO is not used: {error}")
        return []
    return [
        Candidate(
            f"OpenVINO {precision.upper()}",
            "openvino",
            precision,
            request.model,
            partial(
                OpenVinoBackend, request.model, precision=precision, threads=request.threads, output=request.output
            ),
        )
        for precision in precisions
    ]


def import_openvino() -> ModuleType:
    """Import OpenVINO without telemetry: on import it would report to Google Analytics through the package
    openvino-telemetry, which is installed with it. OpenVINO also works without that package.

    Raises:
        InputError: if it is not installed or does not load, with the command that installs it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to forbid an import
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"OpenVINO: the package openvino is missing or does not load ({reason}): {INSTALL}") from error


def version() -> str:
    """The installed version of OpenVINO."""
    return metadata.version("openvino")


def cpu_core() -> Any:
    """An `openvino.Core` whose CPU device is loaded.

    The device is loaded in a short-lived thread. While it loads, OpenVINO gives the loading thread an alternate signal
    stack, which it frees with the device but takes back only if the same thread frees it. Any signal that Python
    handles, such as Ctrl-C, would then end the process with a segmentation fault (seen with OpenVINO 2026.4).

    Raises:
        InputError: if OpenVINO is not installed.
        ModelError: if its CPU device does not load.
    """
    module = import_openvino()
    with _plain_errors("has no CPU device here"), ThreadPoolExecutor(1) as thread:
        core = module.Core()
        thread.submit(core.get_property, "CPU", "FULL_DEVICE_NAME").result()
    return core


@contextmanager
def _plain_errors(failure: str = "cannot run the model") -> Iterator[None]:
    """Raise OpenVINO's errors within the block as ModelErrors, with what failed and the reason."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError(f"OpenVINO {version()} {failure} ({first_line(error)})") from error


def computes_bf16() -> bool:
    """Whether OpenVINO computes in BF16 on this CPU. Raises as `cpu_core`."""
    return "BF16" in cpu_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
