"""PyCUDA itself under our TensorRT backend's slots, in the environment of the stub; prints JSON. See test_pycuda.py."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
import pycuda.driver as cuda

from parotid_seg.contract import INPUT_SPECS
from parotid_seg.runtime.engines.base import INPUTS
from parotid_seg.runtime.engines.tensorrt.cuda_context import PrimaryContext, import_pycuda
from parotid_seg.runtime.engines.tensorrt.execution_slot import ExecutionSlot, LoadedEngine, device_errors
from tests.cuda_stub.child import STUB, forked, outcome

SIZES = {"depth": 3, "height": 4, "width": 5, "batch": 2, "out": 3, "channels": 1, "neighbours": 3, "grid": 8}
TYPES = {spec.name: np.dtype(spec.dtype) for spec in INPUT_SPECS}


class Context:
    """An execution context whose labels are the lower bytes of the slices."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["slices"][1:]

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 512 == 0

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        count = int(np.prod(self.get_tensor_shape("labels")))
        copy = ctypes.CDLL("libcuda.so.1").cuMemcpyDtoDAsync_v2
        to, source, size = (ctypes.c_void_p(self.addresses["labels"]), ctypes.c_void_p(self.addresses["slices"]), count)
        return bool(copy(to, source, ctypes.c_size_t(size), ctypes.c_void_p(stream_handle)) == 0)


class Log:
    def clear(self) -> None:
        pass

    def said(self) -> str:
        return "nothing"


def engine() -> LoadedEngine:
    return LoadedEngine(
        cuda=import_pycuda("tensorrt"),
        name="TensorRT",
        log=Log(),
        runtime=None,
        cuda_engine=None,
        new_context=Context,
        new_specialised=None,
        compiled=None,
        inputs={name: TYPES[name] for name in INPUTS},
        outputs={"labels": np.dtype(np.uint8)},
        captures=True,
    )


def inputs(seed: int, depth: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    sizes = {**SIZES, "depth": depth}
    shapes = {spec.name: tuple(sizes.get(axis, 2) for axis in spec.axes) for spec in INPUT_SPECS}
    return {name: random.integers(0, 100, shape).astype(TYPES[name]) for name, shape in shapes.items()}


def is_right(chunk: dict[str, Any], labels: Any) -> bool:
    expected = np.ascontiguousarray(chunk["slices"]).view(np.uint8).reshape(-1)[: labels.size]
    return bool(np.array_equal(labels.reshape(-1), expected))


def depth() -> int:
    """Contexts on this thread."""
    return int(ctypes.CDLL("libcuda.so.1").stub_depth())


def slot() -> object:
    """Chunks in a slot: plain, captured, replayed and in larger buffers; then everything is freed."""
    found: dict[str, Any] = {}
    with STUB.events() as events:
        context = PrimaryContext(cuda, 0)
        with context.current():
            work = ExecutionSlot(engine())
            right = []
            for number, size in enumerate((3, 3, 3, 3, 7, 7, 3, 3)):
                chunk = inputs(number, size)
                right.append(is_right(chunk, work.start(chunk, work.finish).result()))
            output, times = work.timed(inputs(9))
            found |= {"right": [*right, is_right(inputs(9), output)], "times": times, "replays": work.replays}
            work.close()
            del work
        found["depth"] = depth()
        context.release()
    return {**found, "depth at the end": depth(), "events": events}


def out_of_memory() -> object:
    """Memory that is not there, and then is."""
    context = PrimaryContext(cuda, 0)
    with context.current():
        work = ExecutionSlot(engine())
        work.start(inputs(0), work.finish).result()
        STUB.fail("cuMemAlloc_v2", 2)
        return outcome(lambda: work.start(inputs(1, depth=90), work.finish).result())


def lost() -> object:
    """A GPU that fails while a chunk is computed."""
    context = PrimaryContext(cuda, 0)
    with context.current():
        work = ExecutionSlot(engine())
        STUB.fail("cuStreamSynchronize", 719)
        return outcome(lambda: work.start(inputs(0), work.finish).result())


def no_driver() -> object:
    """A driver that does not start."""

    def begin() -> None:
        with device_errors(cuda, "TensorRT", "an engine"):
            PrimaryContext(cuda, 0)

    STUB.fail("cuInit", 803)
    return outcome(begin)


if __name__ == "__main__":
    scenarios = (slot, out_of_memory, lost, no_driver)
    sys.stdout.write(json.dumps({each.__name__: forked(each) for each in scenarios}))
