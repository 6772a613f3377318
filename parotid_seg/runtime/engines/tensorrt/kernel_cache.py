"""Kernels that TensorRT-RTX compiled for an engine on this GPU, kept in a file for the next process.

A cache holds machine code. It lies in a folder of the user's own, and one that others could have written is not read.
Damage is detected by a hash before the library reads it; the library itself rejects a cache of another GPU, driver or
version.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from parotid_seg.errors import OutputError
from parotid_seg.files import read_input, write_bytes
from parotid_seg.runtime.engines.autotune import cache_folder, is_private
from parotid_seg.runtime.engines.gpu import Gpu

log = logging.getLogger(__name__)

FOLDER = "kernels"
DIGEST_BYTES = 32
"""Bytes of the SHA-256 at the beginning of a file."""


class KernelCache:
    """The cache of one engine on one GPU.

    Args:
        engine_sha256: hash of the engine file.
        library: name and version of the library.
        gpu: the GPU.
    """

    def __init__(self, engine_sha256: str, library: str, gpu: Gpu) -> None:
        facts = f"{engine_sha256}\n{library}\n{gpu}\nCUDA {gpu.cuda}"
        self.path = cache_folder() / FOLDER / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.bin"
        self._stored = b""

    def load(self, cache: Any) -> bool:
        """Fill the library's `IRuntimeCache` from the file; False if there is none that can be used.

        The GPU's context must be current.
        """
        try:
            if not (is_private(self.path.parent) and is_private(self.path)):
                log.info("%s: not used: others may write to it", self.path)
                return False
            content = read_input(self.path, follow=False)
        except OSError:
            return False
        digest, kernels = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(kernels).digest() != digest or not cache.deserialize(kernels):
            log.info("%s: not used: damaged, or of another driver; made anew", self.path)
            return False
        self._stored = kernels
        return True

    def store(self, cache: Any) -> None:
        """Write the library's cache to the file, if it holds more than that. The GPU's context must be current."""
        kernels = bytes(cache.serialize() or b"")
        if not kernels or kernels == self._stored:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.parent.chmod(0o700)
            write_bytes(hashlib.sha256(kernels).digest() + kernels, self.path)
        except (OutputError, OSError) as error:
            log.info("compiled kernels are not kept: %s", error)
            return
        self._stored = kernels
