"""An engine that is slowed down on purpose; in a module of its own, so that a contestant's process can import it."""

from __future__ import annotations

import time

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Done
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import Inputs


class Slowed(OnnxRuntimeBackend):
    """The packaged model on onnxruntime.

    Args:
        share: of each chunk's time, slept after it.
        threads: computing threads; default: one a core.
    """

    def __init__(self, share: float, threads: int | None = None) -> None:
        super().__init__(DEFAULT_MODEL, threads)
        self._share = share

    def start(self, inputs: Inputs) -> Done:
        """Compute a chunk, and sleep."""
        begun = time.perf_counter()
        done = super().start(inputs)
        time.sleep(self._share * (time.perf_counter() - begun))
        return done
