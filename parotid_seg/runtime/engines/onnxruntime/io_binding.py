"""An onnxruntime session whose inputs and outputs have fixed buffers on a device.

A chunk of a known shape needs no allocation, and a CUDA graph, which uses the buffers that it was captured with, can be
replayed.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from parotid_seg.errors import DeviceMemoryError, ModelError, first_line
from parotid_seg.runtime.engines.base import INPUTS, Output, Times
from parotid_seg.runtime.engines.onnxruntime.cuda_errors import device_error
from parotid_seg.runtime.engines.padding import pad_to_bucket
from parotid_seg.scan.chunks import Inputs

KEPT_SHAPES = 8
"""Shapes whose buffers are kept: full, first and last chunks of scans of two or three protocols. Each takes the memory
of one chunk's inputs and outputs, a few megabytes."""
WITHOUT_GRAPH = "-1"
"""Value of the run option gpu_graph_id for neither capture nor replay. Others are ids of graphs; 0 is reserved."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass
class _Place:
    """Buffers for chunks of one shape on the device.

    Attributes:
        binding: binds the buffers to the session.
        inputs, output: the arrays on the device.
        graph: id of their CUDA graph.
        runs: chunks so far.
    """

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    output: onnxruntime.OrtValue
    graph: str
    runs: int = 0


class IoBindingSession:
    """A session with its inputs and outputs bound to a device.

    Args:
        session: the loaded model.
        output: name of the requested output.
        device: "cuda" or "cpu".
        index: number of the device.
        graphs: whether to capture a CUDA graph at a shape's second chunk and replay it from then on (for a shape that
            occurs once it is not worthwhile); the session must be created for it.
        keep: number of shapes whose buffers are kept, the latest used.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        output: str,
        device: str,
        index: int = 0,
        *,
        graphs: bool = False,
        keep: int = KEPT_SHAPES,
    ) -> None:
        self.session, self.device, self.index, self.graphs = session, device, index, graphs
        self._keep = keep
        self._output = next(entry for entry in session.get_outputs() if entry.name == output)
        self._places: dict[Shapes, _Place] = {}
        self._ids = itertools.count(1)

    def run(self, inputs: Inputs) -> Output:
        """One chunk's output; the array belongs to the caller. Raises as `timed`."""
        return self.timed(inputs)[0]

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """One chunk's output, an array that belongs to the caller, and the time of the steps, each waiting for its end.

        Raises:
            DeviceMemoryError: if memory runs out; all buffers are freed, so that a smaller chunk may fit.
            DeviceError: if the GPU fails.
            ModelError: if the graph cannot be run.
        """
        begun = time.perf_counter()
        chunk, size = pad_to_bucket(inputs)
        shapes = tuple(chunk[name].shape for name in INPUTS)
        try:
            place = self._places.pop(shapes, None) or self._new_place(chunk)
            self._places[shapes] = place  # the most recently used is the last
            for name in INPUTS:
                place.inputs[name].update_inplace(chunk[name])
            options = onnxruntime.RunOptions()
            options.add_run_config_entry(
                "gpu_graph_id", place.graph if self.graphs and place.runs > 0 else WITHOUT_GRAPH
            )
            copied = time.perf_counter()
            self.session.run_with_iobinding(place.binding, options)
            place.runs += 1
            computed = time.perf_counter()
            output = size.of(place.output.numpy())
            return output, Times(copied - begun, computed - copied, time.perf_counter() - computed)
        except Exception as error:  # onnxruntime raises its own classes, all derived from Exception only
            samples, (_, depth, height, width) = len(inputs["neighbours"]), inputs["slices"].shape
            known = device_error(
                error, f"a chunk of {samples} samples ({depth} x {height} x {width} voxels)", self.index
            )
            if isinstance(known, DeviceMemoryError):
                self.clear()
                known = DeviceMemoryError(f"{known}; fewer samples at once may (--batch-size)")
            raise known or ModelError(f"onnxruntime cannot run the model ({first_line(error)})") from error

    def clear(self) -> None:
        """Free all buffers on the device."""
        while self._places:
            self._give_up_oldest()

    def _new_place(self, chunk: Inputs) -> _Place:
        while len(self._places) >= self._keep:
            self._give_up_oldest()
        binding = self.session.io_binding()
        values = {name: self._value(chunk[name].shape, chunk[name].dtype.type) for name in INPUTS}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        sizes = {
            "out": len(chunk["slices_back"]),
            "height": len(chunk["rows_back"]),
            "width": len(chunk["columns_back"]),
        }
        shape = [each if isinstance(each, int) else sizes[each] for each in self._output.shape]
        output = self._value(shape, np.uint8 if self._output.type == "tensor(uint8)" else np.float32)
        binding.bind_ortvalue_output(self._output.name, output)
        return _Place(binding, values, output, str(next(self._ids)))

    def _value(self, shape: Any, kind: type[np.generic]) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, self.device, self.index)

    def _give_up_oldest(self) -> None:
        place = self._places.pop(next(iter(self._places)))
        if self.graphs and place.runs > 1:
            self.session.release_captured_graph(int(place.graph))
