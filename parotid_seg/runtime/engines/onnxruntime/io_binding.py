"""An onnxruntime session whose inputs and outputs have fixed buffers on a device, with two chunks in flight.

A chunk of a known shape needs no allocation, and a CUDA graph, which uses the buffers that it was captured with, can be
replayed. All inputs of a chunk lie in one page-locked buffer, so that one copy takes them to the device; the host does
not wait for it, but prepares the next chunk.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parotid_seg.errors import DeviceMemoryError, ModelError, ParotidSegError, first_line
from parotid_seg.runtime.engines.base import INPUTS, Backend, Output, PendingChunk, Times
from parotid_seg.runtime.engines.onnxruntime.stream import Bytes, Stream, device_error
from parotid_seg.runtime.engines.packing import PACKED, unpacked
from parotid_seg.runtime.engines.padding import Size, padded_shapes, write_padded
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask

SLOTS = 2
"""Chunks in flight: one is computed while the host prepares the next."""
KEPT_SHAPES = 8
"""Shapes whose buffers are kept: full, first and last chunks of scans of two or three protocols. Each takes the memory
of the inputs and outputs of `SLOTS` chunks, some ten megabytes."""
WITHOUT_GRAPH = "-1"
"""Value of the run option gpu_graph_id for neither capture nor replay. Others are ids of graphs; 0 is reserved."""
ALIGNED = 256
"""Bytes to which the inputs are aligned in their buffer, as cudaMalloc aligns memory."""

NO_SIZE = Size(0, 0, 0)

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class _Buffers:
    """Buffers for one chunk of a shape at a time.

    Attributes:
        binding: binds the device's memory to the session.
        device: the device's memory of inputs and output.
        sent, received: the host's memory for them.
        views: the inputs in `sent`.
        output: the output in `received`; packed labels as `unpacked` takes them.
        event: marks the end of a chunk's work.
        graph: id of their CUDA graph.
        runs: chunks so far.
        chunk: the chunk in flight.
        size: of its output without padding.
        what: describes it, for messages.
    """

    binding: onnxruntime.IOBinding
    device: tuple[onnxruntime.OrtValue, onnxruntime.OrtValue]
    sent: Bytes
    received: Bytes
    views: dict[str, NDArray[Any]]
    output: Output
    event: Any
    graph: str
    runs: int = 0
    chunk: PendingChunk | None = None
    size: Size = NO_SIZE
    what: str = ""


class IoBindingSession:
    """A session with its inputs and outputs bound to a device.

    Args:
        session: the loaded model.
        output: name of the requested output.
        stream: copies to and from the device; the session computes on it.
        device: "cuda" or "cpu".
        index: number of the device.
        graphs: whether to capture a CUDA graph at the second chunk in the same buffers and replay it from then on (for
            a shape that occurs once it is not worthwhile); the session must be created for it.
        labels_per_byte: how many labels a byte holds if the output is packed, see `packing`.

    Attributes:
        samples: a chunk of fewer is padded to as many.
        copied: bytes of the latest chunk to the device and back.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        output: str,
        stream: Stream,
        device: str,
        index: int = 0,
        *,
        graphs: bool = False,
        labels_per_byte: int = 1,
    ) -> None:
        self.session, self.device, self.index, self.graphs = session, device, index, graphs
        self._stream = stream
        self.samples = 1
        self._output = next(entry for entry in session.get_outputs() if entry.name == output)
        self._labels_per_byte = labels_per_byte if PACKED in self._output.shape else 1
        self._slots: dict[Shapes, list[_Buffers]] = {}  # the least recently used first, in both
        self._ids = itertools.count(1)
        self.copied = (0, 0)

    def start(self, inputs: Inputs) -> PendingChunk:
        """Submit a chunk. The inputs are copied; if `SLOTS` chunks of its shape are in flight it waits for the oldest.

        Raises:
            DeviceMemoryError: if memory runs out; all buffers are freed, so that a smaller chunk may fit.
            DeviceError: if the GPU fails.
            ModelError: if the graph cannot be run.
        """
        what = _described(inputs)
        try:
            buffers = self._filled(inputs, what)
            self._stream.upload(buffers.sent, buffers.device[0])
            self._run(buffers)
            self._stream.download(buffers.device[1], buffers.received)
            self._stream.record(buffers.event)
        except Exception as error:  # onnxruntime raises its own classes, all derived from Exception only
            raise self._known(error, what) from error
        buffers.chunk = PendingChunk(lambda: self._finish(buffers))
        return buffers.chunk

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """One chunk's output, an array that belongs to the caller, and the time of the steps, each waiting for its end.

        Raises:
            DeviceMemoryError, DeviceError, ModelError: as `start`.
        """
        begun, what = time.perf_counter(), _described(inputs)
        try:
            buffers = self._filled(inputs, what)
            self._stream.upload(buffers.sent, buffers.device[0])
            copied = self._waited(buffers)
            self._run(buffers)
            computed = self._waited(buffers)
            self._stream.download(buffers.device[1], buffers.received)
            self._waited(buffers)
            output = self._without_padding(buffers)
        except Exception as error:
            raise self._known(error, what) from error
        return output, Times(copied - begun, computed - copied, time.perf_counter() - computed)

    def clear(self) -> None:
        """Free all buffers on the device, after the chunks in flight."""
        while self._slots:
            self._give_up_oldest()

    def _finish(self, buffers: _Buffers) -> None:
        """Wait for the chunk in flight, if there is one, and settle it."""
        chunk, buffers.chunk = buffers.chunk, None
        if chunk is None:
            return
        try:
            self._stream.wait(buffers.event)
            chunk.settle(self._without_padding(buffers))
        except Exception as error:
            chunk.settle(self._known(error, buffers.what))

    def _without_padding(self, buffers: _Buffers) -> Output:
        """A copy of what was received that belongs to the scan."""
        if self._labels_per_byte == 1:
            return buffers.size.of(buffers.output)
        return unpacked(cast(Mask, buffers.output), self._labels_per_byte, buffers.size)

    def _filled(self, inputs: Inputs, what: str) -> _Buffers:
        """The next buffers for a chunk, with its inputs in the host's memory."""
        shapes, size = padded_shapes(inputs, self.samples)
        key = tuple(shapes[name] for name in INPUTS)
        slots = self._slots.pop(key, [])
        while len(self._slots) >= KEPT_SHAPES:
            self._give_up_oldest()
        self._slots[key] = slots
        reuse = slots and (len(slots) == SLOTS or slots[0].chunk is None)
        buffers = slots.pop(0) if reuse else self._new_buffers(inputs, shapes)
        slots.append(buffers)
        self._finish(buffers)
        buffers.size, buffers.what = size, what
        self.copied = buffers.sent.nbytes, buffers.received.nbytes
        for name, view in buffers.views.items():
            write_padded(inputs[name], view)
        return buffers

    def _run(self, buffers: _Buffers) -> None:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(
            "gpu_graph_id", buffers.graph if self.graphs and buffers.runs > 0 else WITHOUT_GRAPH
        )
        if self._stream.asynchronous:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.session.run_with_iobinding(buffers.binding, options)
        buffers.runs += 1

    def _waited(self, buffers: _Buffers) -> float:
        """The time at which all work so far is done."""
        self._stream.record(buffers.event)
        self._stream.wait(buffers.event)
        return time.perf_counter()

    def _known(self, error: Exception, what: str) -> ParotidSegError:
        """The package's error for one of onnxruntime or CUDA; buffers are freed if memory ran out."""
        known = device_error(error, what, self.index)
        if isinstance(known, DeviceMemoryError):
            self.clear()
            return DeviceMemoryError(f"{known}; fewer samples at once may (--batch-size)")
        return known or ModelError(f"onnxruntime cannot run the model ({first_line(error)})")

    def _new_buffers(self, inputs: Inputs, shapes: dict[str, tuple[int, ...]]) -> _Buffers:
        binding = self.session.io_binding()
        places, end = {}, 0
        for name in INPUTS:
            places[name] = end
            end += -(-math.prod(shapes[name]) * inputs[name].itemsize // ALIGNED) * ALIGNED
        out, height, width = (shapes[name][0] for name in ("slices_back", "rows_back", "columns_back"))
        out //= self._labels_per_byte
        sizes = {"out": out, "height": height, "width": width, PACKED: out * height * width}
        shape = [each if isinstance(each, int) else sizes[each] for each in self._output.shape]
        kind = np.dtype(np.uint8 if self._output.type == "tensor(uint8)" else np.float32)
        device = self._memory(end), self._memory(math.prod(shape) * kind.itemsize)
        sent, received = self._stream.buffer(end), self._stream.buffer(math.prod(shape) * kind.itemsize)
        views = {}
        for name, first in places.items():
            dtype, size = inputs[name].dtype, math.prod(shapes[name]) * inputs[name].itemsize
            views[name] = sent[first : first + size].view(dtype).reshape(shapes[name])
            address = device[0].data_ptr() + first
            binding.bind_input(name, self.device, self.index, dtype.type, shapes[name], address)
        binding.bind_output(self._output.name, self.device, self.index, kind.type, shape, device[1].data_ptr())
        output = received.view(kind).reshape((out, height, width) if self._labels_per_byte > 1 else shape)
        return _Buffers(binding, device, sent, received, views, output, self._stream.event(), str(next(self._ids)))

    def _memory(self, size: int) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, self.device, self.index)

    def _give_up_oldest(self) -> None:
        for buffers in self._slots.pop(next(iter(self._slots))):
            self._finish(buffers)
            if self.graphs and buffers.runs > 1:
                self.session.release_captured_graph(int(buffers.graph))
            for each in (buffers.sent, buffers.received):
                self._stream.free(each)


class BoundBackend(Backend):
    """A model on a GPU whose chunks an `IoBindingSession` computes; the part that is the same for all providers."""

    _bound: IoBindingSession

    @property
    def copied(self) -> tuple[int, int]:
        """Bytes of the latest chunk to the GPU and back, as they are copied: padded, and labels perhaps packed."""
        return self._bound.copied

    def start(self, inputs: Inputs) -> PendingChunk:
        """Submit a chunk.

        Raises:
            DeviceMemoryError: if it does not fit into the GPU's memory.
            DeviceError: if the GPU fails.
        """
        return self._bound.start(inputs)

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """See `Backend.timed`; each step waits for the GPU, so its time can be measured by the clock."""
        return self._bound.timed(inputs)

    def close(self) -> None:
        """Free the GPU's memory."""
        self._bound.clear()
        del self._bound


def _described(inputs: Inputs) -> str:
    """A chunk in words, for messages."""
    samples, (_, depth, height, width) = len(inputs["neighbours"]), inputs["slices"].shape
    return f"a chunk of {samples} samples ({depth} x {height} x {width} voxels)"
