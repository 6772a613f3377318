"""What reading hostile files may take of memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MOST_BYTES = 1 << 30
"""More than before, for files of less than 10 MB."""


def peak_bytes() -> int:
    """The most memory that this process has had."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if the block takes more than `MOST_BYTES`."""
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_BYTES
