"""Handles untrusted files: exceptions of libraries become errors of the file, and memory is limited.

docs/runtime.md states the limits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isal import isal_zlib
from nibabel.spatialimages import HeaderDataError

from parotid_seg.errors import ParotidSegError, ScanError, system_reason

MOST_VOXELS = 1 << 30
"""Most voxels of a scan, all slices together."""
FREE_BYTES = 768 << 20
"""Bytes of memory that reading a scan may take, however small its files are."""
MOST_EXPANSION = 64
"""Above that, bytes of memory that reading a scan may take per byte of its files: real scans take up to 20."""

CAUSES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (RecursionError, "it is nested too deeply"),
    (OverflowError, "a number in it is out of range"),
    (UnicodeError, "text in it has another encoding than declared"),
    ((EOFError, struct.error), "it ends too early"),
    ((zlib.error, isal_zlib.error), "its compressed data are damaged"),
    (KeyError, "a code in it is unknown"),
    (IndexError, "a part of it is missing"),
)  # type: ignore[assignment]
"""Causes of errors by the exception type of a library."""


@contextmanager
def foreign(path: Path, library: str, what: str) -> Iterator[None]:
    """Turn any exception of a library over a file into the file's error.

    A library's own text may quote the file, which may say who the patient is. Only nibabel's errors about a header are
    repeated, as they quote codes and numbers.

    Args:
        path: the file.
        library: the library that reads it.
        what: the failure, for example "not a readable NIfTI file".

    Raises:
        ScanError: with the cause as far as it is known, and the library's name.
    """
    try:
        yield
    except ParotidSegError:
        raise
    except MemoryError:
        raise ScanError("there is not enough memory for it", path=path) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise ScanError(f"cannot be read ({system_reason(error)})", path=path) from error
        text = next(iter(str(error).splitlines()), "") if isinstance(error, HeaderDataError) else ""
        cause = cause_of(error) or text or "its content is not as expected"
        raise ScanError(f"{what} ({library}: {cause})", path=path) from error


def cause_of(error: BaseException) -> str:
    """The cause of an error by its type alone, without any content of the file; empty if unknown."""
    return next((cause for kind, cause in CAUSES if isinstance(error, kind)), "")


def check_room(path: Path, voxels: int, needed: int, stored: int) -> None:
    """Raise ScanError if reading a scan would take more memory than its files justify; call it before allocating.

    Args:
        path: the file, or a series' folder.
        voxels: of the scan.
        needed: bytes of memory.
        stored: bytes of the files.
    """
    if voxels > MOST_VOXELS:
        raise ScanError(f"found {voxels} voxels, expected at most {MOST_VOXELS}", path=path)
    most = max(FREE_BYTES, MOST_EXPANSION * stored)
    if needed > most:
        raise ScanError(
            f"reading it would take {needed >> 20} MB of memory, expected at most {most >> 20} MB for "
            f"{stored} bytes of files",
            path=path,
        )
