"""An execution slot of a TensorRT engine: a stream with its buffers, for one chunk at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import DeviceError, DeviceMemoryError, ModelError, ParotidSegError
from parotid_seg.runtime.engines.base import Output, PendingChunk, Times
from parotid_seg.runtime.engines.engine_file import Shape
from parotid_seg.runtime.engines.tensorrt.cuda_context import NON_BLOCKING, CudaError, CudaGraph
from parotid_seg.scan.chunks import Inputs

SHAPES = 4
"""Sets of input shapes for which a slot keeps contexts: first, middle and last chunks of a scan, and one more."""
ALIGNED = 256
"""Bytes that TensorRT's memory is aligned to."""


@dataclass
class LoadedEngine:
    """A loaded engine, shared by its slots.

    Attributes:
        cuda: the module `pycuda.driver`.
        name: the library and its version, for messages.
        log: see `library.log_of`.
        runtime, cuda_engine: the library's objects; the first must live as long as the second.
        new_context: creates an execution context without device memory.
        new_specialised: the same for one that compiles kernels for each new shape before it computes, so that
            the others have them, too; None where no kernels are compiled later.
        compiled: the kernels that were compiled, an `IRuntimeCache`; None where none are.
        inputs, outputs: names and types of its tensors; the requested output is the first.
        captures: whether slots capture CUDA graphs; set to False after a failure.
        capture_failure: why capturing failed.
    """

    cuda: ModuleType
    name: str
    log: Any
    runtime: Any
    cuda_engine: Any
    new_context: Callable[[], Any]
    new_specialised: Callable[[], Any] | None
    compiled: Any
    inputs: dict[str, np.dtype[Any]]
    outputs: dict[str, np.dtype[Any]]
    captures: bool
    capture_failure: str = ""

    def refusal(self, what: str) -> ParotidSegError:
        """The error for a failed call of the library, with its log messages."""
        return refusal(self.name, what, self.log)


@dataclass
class _Prepared:
    """An execution context with the shapes of a chunk. A graph depends on its context's state, so each has its own.

    Attributes:
        context: the library's execution context.
        places: first byte and shape of each input and output in the slot's buffers.
        bytes_in, bytes_out, scratch: bytes that it needs in each buffer.
        views: the inputs in the host buffer; empty until the context knows the addresses of the slot's buffers.
        warm: whether the work has run once, which the library requires before capturing.
        graph: the captured work.
    """

    context: Any
    places: dict[str, tuple[int, Shape]]
    bytes_in: int
    bytes_out: int
    scratch: int
    views: dict[str, NDArray[Any]] = field(default_factory=dict)
    warm: bool = False
    graph: CudaGraph | None = None

    def forget(self) -> None:
        """Drop all references to the slot's buffers."""
        if self.graph is not None:
            self.graph.destroy()
        self.views, self.warm, self.graph = {}, False, None


class ExecutionSlot:
    """See the module. All methods require the GPU's context to be current.

    All inputs lie in one buffer, so that a chunk needs one copy. Buffers grow when a chunk needs more, and are kept.

    Attributes:
        allocations: buffers and execution contexts created so far; constant once chunks stop growing.
        replays: how often a captured graph was launched.
    """

    def __init__(self, engine: LoadedEngine) -> None:
        self.allocations, self.replays = 0, 0
        self._engine = engine
        self._stream = engine.cuda.Stream(NON_BLOCKING)
        self._prepared: dict[tuple[Shape, ...], _Prepared] = {}  # the least recently used first
        self._host: dict[str, NDArray[np.uint8]] = {}  # "in" and "out", page-locked
        self._device: dict[str, Any] = {}  # "in", "out" and "scratch"
        self._sizes: dict[str, int] = {}
        self._chunk: PendingChunk | None = None
        self._current: _Prepared | None = None

    def start(self, inputs: Inputs, wait: Callable[[], None]) -> PendingChunk:
        """Submit a chunk after the previous one is finished.

        Args:
            inputs: see `scan.chunks.Chunk`; they are copied.
            wait: called by the chunk's `result`.

        Raises:
            DeviceMemoryError: if the GPU's memory does not suffice; `release` makes the slot usable again.
            DeviceError: if the GPU fails.
            ModelError: if the library rejects the chunk.
        """
        self.finish()
        self._engine.log.clear()
        with device_errors(self._engine.cuda, self._engine.name, f"a chunk of {len(inputs['neighbours'])} samples"):
            prepared = self._prepare(tuple(inputs[name].shape for name in self._engine.inputs))
            self._fit(prepared)
            for name, view in prepared.views.items():
                np.copyto(view, inputs[name], casting="no")
            self._launch(prepared)
        self._chunk, self._current = PendingChunk(wait), prepared
        return self._chunk

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """Run a chunk by itself; then the same work again between events of the device, as a whole and its copies
        alone.

        Raises:
            DeviceMemoryError, ModelError: as `start`.
        """
        output = self.start(inputs, self.finish).result()
        prepared = next(reversed(self._prepared.values()))
        self._launch(prepared)  # a graph, if any, has been captured by now
        whole = self._seconds(lambda: self._launch(prepared))
        there, back = (self._seconds(lambda copy=copy: copy(prepared)) for copy in (self._copy_in, self._copy_out))  # type: ignore[misc]
        return output, Times(there, max(whole - there - back, 0.0), back)

    def _seconds(self, work: Callable[[], None]) -> float:
        """Seconds of the device for work on the stream."""
        before, after = self._engine.cuda.Event(), self._engine.cuda.Event()
        before.record(self._stream)
        work()
        after.record(self._stream)
        after.synchronize()
        return float(before.time_till(after)) / 1000

    def finish(self) -> None:
        """Wait for the chunk in flight, if there is one, and store its output."""
        chunk, prepared, self._chunk, self._current = self._chunk, self._current, None, None
        if chunk is None or prepared is None:
            return
        try:
            with device_errors(self._engine.cuda, self._engine.name, "a chunk"):
                self._stream.synchronize()
            name, dtype = next(iter(self._engine.outputs.items()))
            _, shape = prepared.places[name]
            chunk.settle(_view(self._host["out"], 0, shape, dtype).copy())
        except Exception as error:  # the error belongs to this chunk, not to the next, which is being submitted
            chunk.settle(error)

    def release(self) -> None:
        """Free all buffers after the stream is idle; the next chunk allocates new ones."""
        self.finish()
        self._stream.synchronize()  # a rejected chunk may have left a copy in flight
        for prepared in self._prepared.values():
            prepared.forget()
        for name in {*self._host, *self._device}:
            self._free(name)

    def close(self) -> None:
        """Free everything; the slot cannot be used afterwards."""
        self.release()
        self._prepared.clear()
        self._stream = None

    def _prepare(self, shapes: tuple[Shape, ...]) -> _Prepared:
        """The execution context for these shapes: the one used for them before, a new one, or the least recently
        used."""
        prepared = self._prepared.pop(shapes, None)
        if prepared is None:
            prepared = self._set_up(shapes)
        self._prepared[shapes] = prepared
        return prepared

    def _set_up(self, shapes: tuple[Shape, ...]) -> _Prepared:
        engine = self._engine
        if len(self._prepared) < SHAPES:
            context = engine.new_context()
            self.allocations += 1
            if context is None or not context.set_optimization_profile_async(0, self._stream.handle):
                raise engine.refusal("no execution context")
        else:
            oldest = self._prepared.pop(next(iter(self._prepared)))
            oldest.forget()
            context = oldest.context
        for name, shape in zip(engine.inputs, shapes, strict=True):
            if not context.set_input_shape(name, shape):
                raise engine.refusal(f"{name} of {' x '.join(map(str, shape))} refused")
        missing = context.infer_shapes()
        if missing:
            raise engine.refusal(f"no shapes known of {', '.join(missing)}")
        of_inputs = dict(zip(engine.inputs, shapes, strict=True))
        places, bytes_in = _places(engine.inputs, of_inputs)
        of_outputs = {name: tuple(context.get_tensor_shape(name)) for name in engine.outputs}
        out, bytes_out = _places(engine.outputs, of_outputs)
        # every shape needs memory, so 0 means a failed query; the engine's own size is enough for any shape
        scratch = context.update_device_memory_size_for_shapes() or engine.cuda_engine.device_memory_size_v2
        return _Prepared(context, places | out, bytes_in, bytes_out, max(scratch, ALIGNED))

    def _fit(self, prepared: _Prepared) -> None:
        """Enlarge the buffers if necessary, and set their addresses in the context."""
        engine = self._engine
        needed = {"in": prepared.bytes_in, "out": prepared.bytes_out, "scratch": prepared.scratch}
        grown = [name for name, size in needed.items() if size > self._sizes.get(name, 0)]
        if grown:
            for other in self._prepared.values():
                other.forget()
        for name in grown:
            self._free(name)  # before the larger one is allocated, so that both need not fit
            self._device[name] = engine.cuda.mem_alloc(needed[name])
            if name != "scratch":
                self._host[name] = engine.cuda.pagelocked_empty(needed[name], np.uint8)
            self._sizes[name] = needed[name]
            self.allocations += 1
        if prepared.views:
            return
        prepared.context.set_device_memory(int(self._device["scratch"]), self._sizes["scratch"])
        for name, (first, _) in prepared.places.items():
            buffer = self._device["in" if name in engine.inputs else "out"]
            if not prepared.context.set_tensor_address(name, int(buffer) + first):
                raise engine.refusal(f"{name} not bound")
        prepared.views = {
            name: _view(self._host["in"], *prepared.places[name], dtype) for name, dtype in engine.inputs.items()
        }

    def _free(self, name: str) -> None:
        self._sizes.pop(name, None)
        host, device = self._host.pop(name, None), self._device.pop(name, None)
        if host is not None:
            host.base.free()  # type: ignore[union-attr]  # PyCUDA's PagelockedHostAllocation
        if device is not None:
            device.free()

    def _launch(self, prepared: _Prepared) -> None:
        """Submit the work to the stream: as a graph from the second time on, if graphs are captured here."""
        engine = self._engine
        if engine.captures and prepared.warm and prepared.graph is None:
            try:
                prepared.graph = CudaGraph(self._stream.handle, lambda: self._enqueue(prepared))
            except (CudaError, ParotidSegError, engine.cuda.Error) as error:
                engine.captures, engine.capture_failure = False, " ".join(str(error).split())
        if prepared.graph is not None:
            prepared.graph.launch()
            self.replays += 1
        else:
            self._enqueue(prepared)
            prepared.warm = True

    def _enqueue(self, prepared: _Prepared) -> None:
        self._copy_in(prepared)
        if not prepared.context.execute_async_v3(self._stream.handle):
            raise self._engine.refusal("a chunk was not computed")
        self._copy_out(prepared)

    def _copy_in(self, prepared: _Prepared) -> None:
        host = self._host["in"][: prepared.bytes_in]
        self._engine.cuda.memcpy_htod_async(self._device["in"], host, self._stream)

    def _copy_out(self, prepared: _Prepared) -> None:
        name, dtype = next(iter(self._engine.outputs.items()))
        size = math.prod(prepared.places[name][1]) * dtype.itemsize
        self._engine.cuda.memcpy_dtoh_async(self._host["out"][:size], self._device["out"], self._stream)


def refusal(name: str, what: str, log: Any) -> ParotidSegError:
    """The error for a failed call of a library, with the messages of its log."""
    log_text = log.said()
    kind = DeviceMemoryError if re.search(r"out ?of ?memory", log_text, re.IGNORECASE) else ModelError
    return kind(f"{name}: {what}: {log_text}")


@contextmanager
def device_errors(cuda: ModuleType, name: str, what: str) -> Iterator[None]:
    """Convert PyCUDA's errors to `DeviceMemoryError` and `DeviceError`."""
    try:
        yield
    except cuda.MemoryError as error:
        raise DeviceMemoryError(f"{name}: out of GPU memory for {what} ({error})") from error
    except cuda.Error as error:
        raise DeviceError(f"{name}: the GPU cannot be used for {what} ({error})") from error


def _places(tensors: dict[str, np.dtype[Any]], shapes: dict[str, Shape]) -> tuple[dict[str, tuple[int, Shape]], int]:
    """Positions of tensors in one buffer, and its size."""
    places, end = {}, 0
    for name, dtype in tensors.items():
        places[name] = (end, shapes[name])
        size = math.prod(shapes[name]) * dtype.itemsize
        end += -(-size // ALIGNED) * ALIGNED
    return places, end


def _view(buffer: NDArray[np.uint8], first: int, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    return buffer[first : first + size].view(dtype).reshape(shape)
