"""Copies for a session on the CPU, counted."""

import numpy as np

from parotid_seg.runtime.engines.onnxruntime.stream import Bytes, Stream


class HostStream(Stream):
    """Knows which buffers it has given out, counts waits, and can fail."""

    def __init__(self) -> None:
        self.buffers: list[Bytes] = []
        self.waits = 0
        self.failure: Exception | None = None

    def buffer(self, size: int) -> Bytes:
        self.buffers.append(np.full(size, 255, np.uint8))
        return self.buffers[-1]

    def free(self, buffer: Bytes) -> None:
        self.buffers = [each for each in self.buffers if each is not buffer]

    def wait(self, event: None) -> None:
        self.waits += 1
        if self.failure:
            raise self.failure
