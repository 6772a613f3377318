"""Kernels that TensorRT-RTX compiled for an engine on this GPU, kept in a file for the next process.

A cache holds machine code, see `private_file`. The library itself rejects a cache of another GPU, driver or version.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from parotid_seg.runtime.engines.autotune import cache_file
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.private_file import read_private, write_private

log = logging.getLogger(__name__)

FOLDER = "kernels"


class KernelCache:
    """The cache of one engine on one GPU.

    Args:
        engine_sha256: hash of the engine file.
        library: name and version of the library.
        gpu: the GPU.
    """

    def __init__(self, engine_sha256: str, library: str, gpu: Gpu) -> None:
        facts = f"{engine_sha256}\n{library}\n{gpu}\nCUDA {gpu.cuda}"
        self.path = cache_file(FOLDER, f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.bin")
        self._stored = b""

    def load(self, cache: Any) -> bool:
        """Fill the library's `IRuntimeCache` from the file; False if there is none that can be used.

        The GPU's context must be current.
        """
        stored = read_private(self.path)
        if stored is None:
            return False
        kernels = bytes(stored)
        if not cache.deserialize(kernels):
            log.info("%s: not used: of another driver; made anew", self.path)
            return False
        self._stored = kernels
        return True

    def store(self, cache: Any) -> None:
        """Write the library's cache to the file, if it holds more than that. The GPU's context must be current."""
        kernels = bytes(cache.serialize() or b"")
        if not kernels or kernels == self._stored:
            return
        if write_private(kernels, self.path):
            self._stored = kernels
