"""A CUDA stream for onnxruntime, with page-locked memory and copies that do not wait, by CUDA's runtime library.

onnxruntime's Python interface has none of this, but computes on a stream that it is given. The library is the one that
onnxruntime has loaded, so that no other package is needed. `device_error` turns errors of CUDA's libraries, which
onnxruntime reports only as text, into errors of this package.
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parotid_seg.errors import DeviceError, DeviceMemoryError, InputError, ParotidSegError
from parotid_seg.runtime.engines.gpu import find_gpu

Bytes = NDArray[np.uint8]

_NON_BLOCKING = 1
"""cudaStreamNonBlocking in driver_types.h: it does not wait for work on the default stream."""
_WITHOUT_TIMING = 2
"""cudaEventDisableTiming in driver_types.h."""
_UP, _DOWN = 1, 2
"""cudaMemcpyHostToDevice and cudaMemcpyDeviceToHost in driver_types.h."""
PACKAGE = "onnxruntime-gpu[cuda,cudnn]>=1.27,<1.32"
"""Newer versions are not tested; their CUDA provider may be a package of its own."""
INSTALL = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '{PACKAGE}'"
OUT_OF_MEMORY = (
    "Failed to allocate memory",
    "out of memory",
    "bad allocation",
    "smaller than requested bytes",
    "ErrorMemoryAllocation",
    "ALLOC_FAILED",
)
"""Messages of onnxruntime's arena, CUDA, cuBLAS and cuDNN when memory runs out. There is no exception class for it."""
FAILURE = re.compile(r"(CUDA|CUBLAS|CUDNN\w*|CUFFT|CURAND) (?:failure \d+: |error \w+: ?)([^;)\n]+)")
"""A library of CUDA and its message, as in "CUDA failure 719: unspecified launch failure ; GPU=0 ; ..." (onnxruntime's
cuda_call.cc and cudnn_fe_call.cc) and "CUDA error cudaErrorLaunchFailure:unspecified launch failure"."""


class Stream:
    """Work of a device in order: copies here, and what onnxruntime computes.

    This one copies by onnxruntime, on any device; each call waits for the end of its work.

    Attributes:
        asynchronous: whether copies and computing only begin when they are submitted, and `wait` waits for their end.
    """

    asynchronous = False

    def buffer(self, size: int) -> Bytes:
        """Host memory of so many bytes; copies from and to other memory would wait."""
        return np.empty(size, np.uint8)

    def free(self, buffer: Bytes) -> None:
        """Free host memory of `buffer`."""

    def upload(self, buffer: Bytes, memory: onnxruntime.OrtValue) -> None:
        """Copy to the device's memory. The buffer must stay unchanged until an event says so."""
        memory.update_inplace(buffer)

    def download(self, memory: onnxruntime.OrtValue, buffer: Bytes) -> None:
        """Copy from the device's memory."""
        np.copyto(buffer, memory.numpy())

    def event(self) -> Any:
        """A mark that can be recorded and waited for."""

    def record(self, event: Any) -> None:
        """Mark the end of all work so far."""

    def wait(self, event: Any) -> None:
        """Wait until the device has reached a mark."""

    def close(self) -> None:
        """Free what is left; nothing must be running."""


class CudaRuntimeError(Exception):
    """A call of CUDA's runtime library failed, with the text that onnxruntime would give it."""


class CudaStream(Stream):
    """A stream on a GPU.

    Args:
        device: number of the GPU.

    Attributes:
        handle: its address, for onnxruntime.

    Raises:
        OSError: if CUDA's runtime library is missing.
        CudaRuntimeError: if there is no such GPU, or it cannot be used.
    """

    asynchronous = True

    def __init__(self, device: int) -> None:
        major = onnxruntime.cuda_version.partition(".")[0]
        name = f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}"
        self._library = ctypes.CDLL(name)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._addresses: dict[int, int] = {}
        self._events: list[ctypes.c_void_p] = []
        self._stream = ctypes.c_void_p()
        self._call("cudaSetDevice", device)
        self._call("cudaStreamCreateWithFlags", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """See the class."""
        return self._stream.value or 0

    def buffer(self, size: int) -> Bytes:
        """See `Stream`."""
        address = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(address), ctypes.c_size_t(size))
        assert address.value is not None
        found: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))
        self._addresses[found.ctypes.data] = address.value
        return found

    def free(self, buffer: Bytes) -> None:
        """See `Stream`. Errors are ignored, as in `close`."""
        self._library.cudaFreeHost(ctypes.c_void_p(self._addresses.pop(buffer.ctypes.data)))

    def upload(self, buffer: Bytes, memory: onnxruntime.OrtValue) -> None:
        """See `Stream`."""
        self._copy(memory.data_ptr(), buffer.ctypes.data, buffer.nbytes, _UP)

    def download(self, memory: onnxruntime.OrtValue, buffer: Bytes) -> None:
        """See `Stream`."""
        self._copy(buffer.ctypes.data, memory.data_ptr(), buffer.nbytes, _DOWN)

    def event(self) -> ctypes.c_void_p:
        """See `Stream`."""
        event = ctypes.c_void_p()
        self._call("cudaEventCreateWithFlags", ctypes.byref(event), _WITHOUT_TIMING)
        self._events.append(event)
        return event

    def record(self, event: ctypes.c_void_p) -> None:
        """See `Stream`."""
        self._call("cudaEventRecord", event, self._stream)

    def wait(self, event: ctypes.c_void_p) -> None:
        """See `Stream`."""
        self._call("cudaEventSynchronize", event)

    def close(self) -> None:
        """See `Stream`. Errors are ignored, since a GPU that has failed refuses every call."""
        for address in self._addresses.values():
            self._library.cudaFreeHost(ctypes.c_void_p(address))
        for event in self._events:
            self._library.cudaEventDestroy(event)
        if self._stream:
            self._library.cudaStreamDestroy(self._stream)
        self._addresses, self._events, self._stream = {}, [], ctypes.c_void_p()

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, self._stream
        )

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            text = self._library.cudaGetErrorString(code).decode()
            raise CudaRuntimeError(f"CUDA failure {code}: {text} ; {name}")


def device_error(error: BaseException, what: str, device: int) -> ParotidSegError | None:
    """The error of this package for one of CUDA's libraries; None if the GPU is not the cause.

    Args:
        error: raised by onnxruntime.
        what: what was to be put on the GPU, for the message.
        device: number of the GPU.

    Returns:
        DeviceMemoryError if memory ran out, InputError if a library is missing, else DeviceError.
    """
    text = str(error)
    if any(words in text for words in OUT_OF_MEMORY):
        return DeviceMemoryError(f"{what} does not fit into the memory of cuda:{device}")
    name = f"onnxruntime {onnxruntime.__version__}"
    if "cuDNN is unavailable" in text:
        return InputError(f"{name}: CUDA does not run: cuDNN is missing; it comes with this: {INSTALL}")
    found = FAILURE.search(text)
    if found is None:
        return None
    library, reason = found[1], found[2].strip()
    gpu = find_gpu(device)
    if "driver version is insufficient" in reason:
        supported = f"found one for CUDA {gpu.cuda}" if gpu else "found an older one"
        return DeviceError(
            f"{name}: the NVIDIA driver is too old: {supported}, expected CUDA {onnxruntime.cuda_version}"
        )
    if "no kernel image" in reason:
        return DeviceError(f"{name} has no kernels for cuda:{device} {gpu or ''}".rstrip())
    return DeviceError(f"{name}: cuda:{device} failed: {library}: {reason}")
