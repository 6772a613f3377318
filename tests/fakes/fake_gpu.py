"""The GPU that is none, PyCUDA and the driver; see `tests.fakes.fake_cuda`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from parotid_seg.runtime.engines.tensorrt import cuda_context as cuda_module

if TYPE_CHECKING:
    from tests.fakes.fake_cuda import FakeExecutionContext, FakeRuntimeConfig


class CudaError(Exception):
    """pycuda.driver.Error"""


class CudaMemoryError(CudaError):
    """pycuda.driver.MemoryError"""


class FakeGpu:
    """The GPU and the thread that uses it.

    Attributes:
        stack: contexts on the thread, the current one last.
        memory: what lies at each address.
        limit: bytes of device memory there are.
        host: bytes of page-locked memory in use.
        done: what streams did, in order, as (stream, what).
        gone: what was destroyed, in order, and whether a context was current then.
        no_capture: whether the driver refuses to capture.
        failing: what the next wait for a stream raises.
        validity: TensorRT-RTX's verdict on an engine.
        fallbacks: chunks that TensorRT-RTX computed without kernels for their shapes.
    """

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memory: dict[int, np.ndarray] = {}
        self.limit, self.host, self.next_address = 1 << 30, 0, 1 << 20
        self.done: list[tuple[int, str]] = []
        self.gone: list[tuple[str, bool]] = []
        self.streams: dict[int, FakeStream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.retained = 0
        self.no_capture = False
        self.failing: Exception | None = None
        self.validity = "VALID"
        self.fallbacks = 0
        self.contexts: list[FakeExecutionContext] = []
        self.configs: list[FakeRuntimeConfig] = []
        self.runtimes: list[Any] = []
        self.driver = FakeDriver(self)

    def need_current(self) -> None:
        assert self.stack[-1:] == ["primary"], "the context is not current"

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        for first, content in self.memory.items():
            if first <= address and address + count <= first + len(content):
                return content[address - first : address - first + count]
        raise AssertionError(f"no device memory at {address:#x}")

    @property
    def used(self) -> int:
        return sum(map(len, self.memory.values()))


def fake_device(gpu: FakeGpu) -> type:
    """The class `Device`, whose contexts are the GPU's."""

    class Context:
        def push(self) -> None:
            gpu.stack.append("primary")

        @staticmethod
        def pop() -> None:
            gpu.need_current()
            gpu.stack.pop()

        def detach(self) -> None:
            gpu.retained -= 1
            gpu.gone.append(("context", bool(gpu.stack)))

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def retain_primary_context(self) -> Context:
            gpu.retained += 1
            return Context()

    return Device


def fake_allocation(gpu: FakeGpu) -> type:
    """The class of memory on the GPU."""

    class Allocation:
        def __init__(self, count: int) -> None:
            gpu.need_current()
            assert count > 0
            if gpu.used + count > gpu.limit:
                raise CudaMemoryError("cuMemAlloc failed: out of memory")
            self.address, self.live = gpu.next_address, True
            gpu.next_address += -(-count // 256) * 256 + 256
            gpu.memory[self.address] = np.full(count, 0xAB, np.uint8)

        def __int__(self) -> int:
            assert self.live
            return self.address

        def free(self) -> None:
            gpu.need_current()
            del gpu.memory[self.address]
            self.live = False

    return Allocation


def fake_event(gpu: FakeGpu) -> type:
    """The class `Event`."""

    class Event:
        """Tells as time how much the stream had done."""

        def record(self, stream: FakeStream) -> None:
            self.stream, self.at = stream, None
            stream.add("event", lambda: setattr(self, "at", len(gpu.done)))

        def synchronize(self) -> None:
            self.stream.synchronize()

        def time_till(self, other: Event) -> float:
            assert self.at is not None
            assert other.at is not None
            return float(other.at - self.at - 1)

    return Event


def fake_pycuda(gpu: FakeGpu) -> ModuleType:
    module: Any = ModuleType("pycuda.driver")
    module.Error, module.MemoryError = CudaError, CudaMemoryError
    module.init = lambda: None

    class PageLocked(bytearray):
        def free(self) -> None:
            gpu.need_current()
            gpu.host -= len(self)

    def pagelocked_empty(shape: int, dtype: type) -> np.ndarray:
        gpu.need_current()
        gpu.host += shape
        return np.ndarray(shape, dtype, buffer=PageLocked(b"\xcd" * shape))

    def memcpy_htod_async(to: Any, source: np.ndarray, stream: FakeStream) -> None:
        address = int(to)
        stream.add("in", lambda: np.copyto(gpu.bytes_at(address, source.nbytes), source))

    def memcpy_dtoh_async(to: np.ndarray, source: Any, stream: FakeStream) -> None:
        address = int(source)
        stream.add("out", lambda: np.copyto(to, gpu.bytes_at(address, to.nbytes)))

    module.Device, module.mem_alloc, module.Event = fake_device(gpu), fake_allocation(gpu), fake_event(gpu)
    module.pagelocked_empty = pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.Stream = lambda flags: FakeStream(gpu, flags)

    return module


class FakeStream:
    def __init__(self, gpu: FakeGpu, flags: int) -> None:
        gpu.need_current()
        assert flags == cuda_module.NON_BLOCKING
        self.gpu, self.handle = gpu, 1000 + len(gpu.streams)
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def add(self, what: str, work: Callable[[], None]) -> None:
        self.gpu.need_current()

        def run() -> None:
            self.gpu.done.append((self.handle, what))
            work()

        (self.queue if self.captured is None else self.captured).append(run)

    def synchronize(self) -> None:
        self.gpu.need_current()
        assert self.captured is None
        queue, self.queue = self.queue, []
        failing, self.gpu.failing = self.gpu.failing, None
        if failing is not None:
            raise failing
        for work in queue:
            work()


class FakeDriver:
    """libcuda, called through ctypes."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def cuCtxPopCurrent_v2(self, popped: object) -> int:  # noqa: N802
        self.gpu.need_current()
        self.gpu.stack.pop()
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:  # noqa: N802
        self.gpu.need_current()
        assert mode == 1
        if self.gpu.no_capture:
            return 900
        self.gpu.streams[stream.value].captured = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        found = self.gpu.streams[stream.value]
        graph._obj.value = 1 + max(self.gpu.graphs, default=0)
        self.gpu.graphs[graph._obj.value], found.captured = found.captured or [], None
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        assert flags.value == 0
        executable._obj.value = 1 + max(self.gpu.graphs)
        self.gpu.graphs[executable._obj.value] = self.gpu.graphs[graph.value]
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        self.gpu.need_current()
        self.gpu.streams[stream.value].queue.extend(self.gpu.graphs[executable.value])
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        self.gpu.need_current()
        del self.gpu.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815
