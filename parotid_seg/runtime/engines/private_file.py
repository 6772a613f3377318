"""Files that the process itself trusts, such as compiled code: in a folder of the user's own, and checked for damage.

One that others could have written is not read. Of each folder and ending the latest used are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

from parotid_seg.errors import OutputError
from parotid_seg.files import read_input, write_bytes
from parotid_seg.runtime.engines.autotune import is_private, make_private

log = logging.getLogger(__name__)

DIGEST_BYTES = 32
"""Bytes of the SHA-256 at the beginning of a file."""
KEPT = 8
"""Files of an ending in a folder: several models, versions and precisions in turn. Compiled code has some 20 MB."""


def read_private(path: Path | None) -> memoryview | None:
    """The content that `write_private` has written; None if there is none that can be trusted, or no place for it."""
    if path is None:
        return None
    try:
        if not (is_private(path.parent) and is_private(path)):
            log.info("%s: not used: others may write to it", path)
            return None
        stored = memoryview(read_input(path, follow=False))
    except OSError:
        return None
    content = stored[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != stored[:DIGEST_BYTES]:
        log.info("%s: not used: damaged; made anew", path)
        return None
    with contextlib.suppress(OSError):  # on a read-only disk it cannot be noted that it was used
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return content


def write_private(content: bytes, path: Path | None) -> bool:
    """Write a file into a folder that only its owner can open; False if it cannot be written, or has no place.

    Of the files with its ending the `KEPT` latest are left.
    """
    if path is None:
        return False
    try:
        make_private(path.parent)
        write_bytes(hashlib.sha256(content).digest() + content, path)
        make_private(path.parent, path)
    except OutputError as error:
        log.info("%s: not kept: %s", path, error)
        return False
    _remove_oldest(path)
    return True


def _remove_oldest(latest: Path) -> None:
    """Remove all but the `KEPT` latest files with the ending of one."""
    with contextlib.suppress(OSError):  # another process may remove them, too
        others = [each for each in latest.parent.glob(f"*{latest.suffix}") if each != latest]
        for old in sorted(others, key=lambda each: -each.stat().st_atime)[KEPT - 1 :]:
            log.info("%s: removed: not used for long", old)
            old.unlink()
