"""The GPU through PyCUDA: the context, and CUDA graphs, for which PyCUDA has no functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from parotid_seg.runtime.engines.gpu import load_driver
from parotid_seg.runtime.engines.tensorrt.library import import_for, library_named

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING in cuda.h: a stream that does not wait for the host program's work on the default stream."""
_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL in cuda.h: capturing a graph does not restrict other threads."""


class CudaError(Exception):
    """The driver refused a call; the text names both."""


def import_pycuda(library: str) -> ModuleType:
    """`pycuda.driver`, for engines of this library.

    Raises:
        InputError: if it is not installed or does not load, with the command that installs it.
    """
    described = library_named(library)
    return import_for(described, "pycuda.driver", "pycuda", install=f"'parotid-seg[{described.extra}]'")


class PrimaryContext:
    """The GPU's primary context, current only within `current`.

    CUDA's runtime uses this context, and therefore TensorRT's threads and torch in the same process: no second context
    takes GPU memory, and streams of several backends run concurrently. `pycuda.autoinit` is not used, because it
    creates another context and leaves it current on one thread.

    Args:
        cuda: the module `pycuda.driver`.
        device: number of the GPU.
    """

    def __init__(self, cuda: ModuleType, device: int) -> None:
        cuda.init()
        self._context = cuda.Device(device).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current within the block."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def release(self) -> None:
        """Release the context; all objects created in it must be destroyed before.

        PyCUDA's `detach` leaves a primary context current, because the driver does not pop it on release. It is
        therefore made current, popped by the driver's own call, and only then released.
        """
        self._context.push()
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self._context.detach()


class CudaGraph:
    """Work on a stream, recorded once and then launched as one.

    Args:
        stream: handle of the stream.
        work: submits the work to that stream, and does nothing else on the GPU. It is recorded, not executed.

    Raises:
        CudaError: if the driver cannot record it. Exceptions of `work` are passed on. The stream stays usable.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._stream, graph, self._executable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with suppress(CudaError):  # the error of `work` is more informative
                _call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
            if graph.value:
                _call("cuGraphDestroy", graph)
            raise
        _call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            _call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Execute the work on the stream, asynchronously."""
        _call("cuGraphLaunch", self._executable, self._stream)

    def destroy(self) -> None:
        """Free its memory; it must not be running."""
        _call("cuGraphExecDestroy", self._executable)


def _call(name: str, *arguments: object) -> None:
    status = getattr(load_driver(), name)(*arguments)  # it exists if a context could be retained
    if status != 0:
        raise CudaError(f"{name}: CUDA error {status}")
