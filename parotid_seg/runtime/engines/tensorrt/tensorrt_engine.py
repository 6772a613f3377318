"""Engines of TensorRT and TensorRT-RTX on an NVIDIA GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parotid_seg.errors import DeviceError, DeviceMemoryError, InputError, ModelError, ParotidSegError, ScanError
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import INPUTS, OUTPUTS, Backend, ExecutionInfo, Output, PendingChunk, Times
from parotid_seg.runtime.engines.engine_file import Shape, Sidecar, check_engine, read_engine, read_sidecar
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.registry import Request
from parotid_seg.runtime.engines.tensorrt.cuda_context import PrimaryContext, import_pycuda
from parotid_seg.runtime.engines.tensorrt.execution_slot import ExecutionSlot, LoadedEngine, device_errors, refusal
from parotid_seg.runtime.engines.tensorrt.kernel_cache import KernelCache
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES, Library, import_library, known_capabilities, log_of
from parotid_seg.scan.chunks import Inputs

SLOTS = 2
"""Chunks on the GPU at once: one is computed while the next is copied in and the previous one out. The network uses the
whole GPU, and every slot has its own activations, so a third would cost memory and gain little."""


def load(request: Request) -> Backend:
    """Load an engine file. See `registry.Implementation`."""
    return TensorRtBackend(request.model, device=request.gpu or 0, output=request.output)


def candidates(request: Request) -> list[Candidate]:
    """The engine file. See `registry.Implementation`."""
    sidecar = read_sidecar(request.model)
    name = f"{LIBRARIES[sidecar.library].title} {sidecar.precision.upper()}"
    make = partial(TensorRtBackend, request.model, device=request.gpu or 0, output=request.output)
    return [Candidate(name, sidecar.library, sidecar.precision, request.model, make)]


class TensorRtBackend(Backend):
    """An engine file on a GPU. PyCUDA ties its contexts to a thread, so create, use and close it in the same one.

    Args:
        engine: the engine file, with its sidecar.
        device: number of the GPU.
        output: one of `OUTPUTS`.

    Attributes:
        graphs: whether CUDA graphs are used, or why not; `ran` also reports it where they are expected but missing.

    Raises:
        InputError: if there is no such GPU, or the library or PyCUDA is not installed.
        DeviceError: if the GPU or its driver cannot be used.
        ModelError: if the engine differs from its sidecar, does not fit the library or the GPU, cannot be loaded, or
            has no such output.
        DeviceMemoryError: if the engine itself does not fit into the GPU's memory.
    """

    queue_depth = SLOTS

    def __init__(self, engine: Path, *, device: int = 0, output: str = OUTPUTS[0]) -> None:
        sidecar = read_sidecar(engine)
        described = LIBRARIES[sidecar.library]
        gpu = find_gpu(device)
        if gpu is None:
            raise InputError(f"{described.title}: no NVIDIA GPU {device} found, and engines run on one only")
        trt, cuda = import_library(sidecar.library), import_pycuda(sidecar.library)
        reasons = check_engine(engine, sidecar, trt.__version__, gpu, known_capabilities(trt))
        if reasons:
            raise ModelError(f"cannot be used here: {'; '.join(reasons)}", path=engine)
        self.contract, self.model_sha256 = sidecar.contract, sidecar.engine_sha256
        self.batch_size = sidecar.batch.opt
        self.largest_batch = sidecar.batch.max
        self.ran = ExecutionInfo(f"{described.title} {trt.__version__}", f"cuda:{device} {gpu.name}", sidecar.precision)
        self._path, self._sidecar, self._cuda = engine, sidecar, cuda
        self._engine: LoadedEngine | None = None
        self._slots: list[ExecutionSlot] = []
        self._turn = 0
        self._context: PrimaryContext | None = None
        self._kernels = KernelCache(sidecar.engine_sha256, self.ran.backend, gpu)
        try:
            with device_errors(cuda, self.ran.backend, str(engine)):
                self._context = PrimaryContext(cuda, device)
                with self._context.current():
                    self._engine, self.graphs = _load(engine, sidecar, output, trt, cuda, self._kernels)
                    self._slots = [ExecutionSlot(self._engine) for _ in range(SLOTS)]
        except BaseException:
            self.close()
            raise

    @property
    def allocations(self) -> int:
        """Number of buffers and execution contexts created so far; constant once chunks stop growing."""
        return sum(slot.allocations for slot in self._slots)

    @property
    def replays(self) -> int:
        """How often a captured CUDA graph was launched; TensorRT-RTX manages its graphs itself, and they are not
        counted."""
        return sum(slot.replays for slot in self._slots)

    def fits(self, inputs: Inputs) -> bool:
        """Whether a chunk is within the shapes that the engine was built for."""
        try:
            check_shapes(inputs, self._path, self._sidecar)
        except ScanError:
            return False
        return True

    def start(self, inputs: Inputs) -> PendingChunk:
        """Submit a chunk; if `queue_depth` chunks are in flight, wait for the oldest first.

        Raises:
            ScanError: if the chunk is not within the shapes that the engine was built for.
            DeviceMemoryError: if the GPU's memory does not suffice; a smaller chunk may be submitted afterwards.
            DeviceError: if the GPU fails.
        """
        inputs, slot, context = self._next(inputs)
        with context.current(), self._released_if_full():
            chunk = slot.start(inputs, lambda: self._finish(slot))
        self._tell_capture_failure()
        return chunk

    def specialise(self, inputs: Inputs) -> None:
        """Compile the kernels for chunks of these shapes: until then TensorRT-RTX computes them with slower ones.
        TensorRT compiles nothing. Raises as `start`."""
        inputs, _, context = self._next(inputs)
        if self._engine is None or self._engine.new_specialised is None:
            return
        with context.current(), self._released_if_full():
            compiling = dataclasses.replace(self._engine, new_context=self._engine.new_specialised)
            slot = ExecutionSlot(compiling)
            try:
                slot.start(inputs, slot.finish).result()
            finally:
                slot.close()

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """See `Backend.timed`; times are from events of the device. Raises as `start`."""
        inputs, slot, context = self._next(inputs)
        with context.current(), self._released_if_full():
            result = slot.timed(inputs)
        self._tell_capture_failure()
        return result

    def _next(self, inputs: Inputs) -> tuple[Inputs, ExecutionSlot, PrimaryContext]:
        """A chunk padded for the engine, and the next slot."""
        if self._context is None or self._engine is None:
            raise ParotidSegError("the engine is closed", path=self._path)
        inputs = filled(inputs, self._sidecar.batch.min)
        check_shapes(inputs, self._path, self._sidecar)
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        return inputs, slot, self._context

    @contextmanager
    def _released_if_full(self) -> Iterator[None]:
        """Free all buffers after memory ran out: they may have grown for chunks that did not fit together."""
        try:
            yield
        except DeviceMemoryError:
            for each in self._slots:
                each.release()
            raise

    def _tell_capture_failure(self) -> None:
        failure = self._engine.capture_failure if self._engine else ""
        if failure and failure not in self.graphs:
            self.graphs = f"none: capturing failed: {failure}"
            self.ran = dataclasses.replace(self.ran, backend=f"{self.ran.backend}, CUDA graphs {self.graphs}")

    def close(self) -> None:
        """Finish chunks in flight, then release the slots, the engine and the GPU's context."""
        context, self._context = self._context, None
        if context is None:
            return
        with device_errors(self._cuda, self.ran.backend, "freeing memory"):
            with context.current():
                while self._slots:
                    self._slots.pop().close()
                if self._engine is not None and self._engine.compiled is not None:
                    self._kernels.store(self._engine.compiled)
                self._engine = None
            context.release()

    def _finish(self, slot: ExecutionSlot) -> None:
        if self._context is not None:
            with self._context.current():
                slot.finish()


def _load(
    engine: Path, sidecar: Sidecar, output: str, trt: ModuleType, cuda: ModuleType, kernels: KernelCache
) -> tuple[LoadedEngine, str]:
    """Load the engine into the GPU's memory; also returns a text on CUDA graphs."""
    described, log = LIBRARIES[sidecar.library], log_of(sidecar.library)
    log.clear()
    name = f"{described.title} {trt.__version__}"
    try:
        runtime = trt.Runtime(log)
    except TypeError as error:  # the binding's error if no object was created
        raise DeviceError(f"{name} does not start: {log.said()}") from error
    runtime.engine_host_code_allowed = True  # version-compatible engines contain a runtime
    content = read_engine(engine, sidecar)
    _check_validity(trt, runtime, content, engine, name)
    loaded = runtime.deserialize_cuda_engine(content)
    if loaded is None:
        raise refusal(name, f"{engine} not loaded", log)
    inputs, outputs = _tensors(trt, loaded, engine)
    if output not in outputs:
        raise ModelError(f"found outputs {', '.join(outputs)}, expected {output}", path=engine)
    contexts = _Contexts(trt, loaded, described, kernels)
    shared = LoadedEngine(
        cuda=cuda,
        name=name,
        log=log,
        runtime=runtime,
        cuda_engine=loaded,
        new_context=contexts.new,
        new_specialised=contexts.new_specialised if contexts.compiled is not None else None,
        compiled=contexts.compiled,
        inputs=inputs,
        outputs=dict(sorted(outputs.items(), key=lambda tensor: tensor[0] != output)),
        captures=not described.captures,
    )
    return shared, contexts.graphs


def _check_validity(trt: ModuleType, runtime: Any, content: bytes, engine: Path, name: str) -> None:
    """Ask the library whether it can load an engine on this GPU, if it has an answer (TensorRT-RTX has)."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.INVALID:
        reasons = [
            reason.lower().replace("_", " ")
            for reason, value in trt.EngineInvalidityDiagnostics.__members__.items()
            if int(value) & int(diagnostics)
        ]
        raise ModelError(
            f"cannot be used here: {name} names as the reason: {', '.join(reasons) or 'none'}", path=engine
        )


def _tensors(trt: ModuleType, loaded: Any, engine: Path) -> tuple[dict[str, np.dtype[Any]], dict[str, np.dtype[Any]]]:
    """Names and types of an engine's inputs and outputs."""
    tensors = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    types = {tensor: np.dtype(trt.nptype(loaded.get_tensor_dtype(tensor))) for tensor in tensors}
    inputs = [tensor for tensor in tensors if loaded.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT]
    if sorted(inputs) != sorted(INPUTS):
        raise ModelError(f"found inputs {', '.join(sorted(inputs))}, expected {', '.join(sorted(INPUTS))}", path=engine)
    return {tensor: types[tensor] for tensor in inputs}, {
        tensor: types[tensor] for tensor in tensors if tensor not in inputs
    }


class _Contexts:
    """Makes an engine's execution contexts. Slots manage their device memory, so that all contexts of a slot share it.

    Attributes:
        graphs: a text on CUDA graphs.
        compiled: the kernels that the contexts compile, which all use; None if they compile none.
    """

    def __init__(self, trt: ModuleType, loaded: Any, described: Library, kernels: KernelCache) -> None:
        self._trt, self._loaded = trt, loaded
        self._user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.compiled: Any = None
        self.graphs = "captured when shapes repeat"
        self._configs: dict[str, Any] = {}
        if described.captures:
            self._configs["for the cache"] = self._config()
            self.compiled = self._configs["for the cache"].create_runtime_cache()
            kernels.load(self.compiled)
            can = hasattr(trt, "CudaGraphStrategy")  # available since 1.2
            name = f"{described.title} {trt.__version__}"
            self.graphs = f"captured by {described.title}" if can else f"none: {name} makes none"

    def new(self) -> Any:
        """A context. Of TensorRT-RTX one that compiles kernels for new shapes while others compute."""
        return self._loaded.create_execution_context(
            self._user_managed if self.compiled is None else self._kept_config("LAZY")
        )

    def new_specialised(self) -> Any:
        """A context of TensorRT-RTX that compiles kernels for new shapes before it computes."""
        return self._loaded.create_execution_context(self._kept_config("EAGER"))

    def _kept_config(self, specialised: str) -> Any:
        """The `IRuntimeConfig` for one way of compiling kernels; it lives as long as the contexts made with it."""
        if specialised not in self._configs:
            self._configs[specialised] = self._config(specialised)
        return self._configs[specialised]

    def _config(self, specialised: str | None = None) -> Any:
        config = self._loaded.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._user_managed)
        if self.compiled is not None:
            config.set_runtime_cache(self.compiled)
        if specialised is not None:
            config.dynamic_shapes_kernel_specialization_strategy = getattr(
                self._trt.DynamicShapesKernelSpecializationStrategy, specialised
            )
            if hasattr(self._trt, "CudaGraphStrategy"):
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return config


def filled(inputs: Inputs, least: int) -> Inputs:
    """A chunk padded to at least so many samples: the added ones are empty, and no slice is interpolated from them."""
    samples = len(inputs["neighbours"])
    if samples >= least:
        return inputs
    more, enough = least - samples, dict(inputs)
    for name, added in (("neighbours", ((0, more), (0, 0), (0, 0))), ("slices_back", ((0, 0), (0, more)))):
        enough[name] = np.pad(inputs[name].astype(np.float32, copy=False), added)
    return enough


def check_shapes(inputs: Inputs, engine: Path, sidecar: Sidecar) -> None:
    """Check that a chunk is within the shapes that an engine was built for.

    Raises:
        ScanError: if it is not, with the first input that is too small or too large.
    """
    for name, (least, _, most) in sidecar.shapes.items():
        shape = inputs[name].shape
        within = len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if not within:
            raise ScanError(
                f"{name} of a chunk: found {_text(shape)}, expected {_text(least)} to {_text(most)}, for "
                "which it was built",
                path=engine,
            )


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))
