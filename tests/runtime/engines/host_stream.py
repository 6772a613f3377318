"""`onnxruntime.stream.Stream` for a session on the CPU: what runs on a GPU, but for the device."""

import ctypes
from typing import Any

import numpy as np

from parotid_seg.runtime.engines.onnxruntime.stream import Bytes


class HostStream:
    """Copies at once, and knows what it has given out."""

    def __init__(self) -> None:
        self.buffers: list[Bytes] = []
        self.waits = 0
        self.failure: Exception | None = None

    def buffer(self, size: int) -> Bytes:
        self.buffers.append(np.full(size, 255, np.uint8))
        return self.buffers[-1]

    def free(self, buffer: Bytes) -> None:
        self.buffers = [each for each in self.buffers if each is not buffer]

    def upload(self, buffer: Bytes, address: int) -> None:
        ctypes.memmove(address, buffer.ctypes.data, buffer.nbytes)

    def download(self, address: int, buffer: Bytes) -> None:
        ctypes.memmove(buffer.ctypes.data, address, buffer.nbytes)

    def event(self) -> Any:
        return object()

    def record(self, event: Any) -> None:
        pass

    def wait(self, event: Any) -> None:
        self.waits += 1
        if self.failure:
            raise self.failure

    def close(self) -> None:
        self.buffers = []
