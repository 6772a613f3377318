"""Reads the bytes of a NIfTI file: its header, and its stored voxels, decompressed only as far as stated there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Image
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.files import open_input
from parotid_seg.scan.foreign import check_room, foreign

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its messages on headers are reported here

DAMAGED = "damaged or cut off: its voxels cannot be read"
GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""
HEADER_BYTES = 540
"""Bytes of a NIfTI-2 header; a NIfTI-1 header has 348."""


class Stored(NamedTuple):
    """The content of a file: see `scan_of`; `more` is whether it holds more voxels than stated in its header."""

    image_class: type[Nifti1Image]
    header: Nifti1Header
    voxels: NDArray[np.generic]
    scaling: tuple[float, float] | None
    more: bool


def read_stored(path: Path, *, labels: bool = False) -> Stored:
    """A file's stored voxels: only as many bytes as stated in its header are decompressed, after a check of their
    number.

    Args:
        path: the file.
        labels: whether they are read as labels, which take less memory.
    """
    with _unpacked(path) as (file, size, packed):
        image_class, header = _header_in(file.read(HEADER_BYTES), path)
        shape, dtype, offset, scaling = layout_in(header, path, size, labels=labels)
        length = math.prod(shape) * dtype.itemsize
        with foreign(path, "isal" if packed else "Python", DAMAGED):
            if not packed and size < offset + length:
                raise ScanError(f"{DAMAGED}: found {max(0, size - offset)} bytes, expected {length}", path=path)
            file.seek(offset)
            content = file.read(length)
            more = len(file.read(dtype.itemsize)) == dtype.itemsize  # at its end the checksum is compared as well
        if len(content) < length:
            raise ScanError(f"{DAMAGED}: found {len(content)} bytes, expected {length}", path=path)
    voxels = np.ndarray(shape, dtype, content, order="F")
    return Stored(image_class, header, voxels, scaling, more)


def layout_in(
    header: Nifti1Header, path: Path, size: int, *, labels: bool = False
) -> tuple[tuple[int, ...], np.dtype[np.generic], int, tuple[float, float] | None]:
    """The layout of voxels by a header: shape, type, offset in bytes, and slope and intercept unless 1 and 0.

    Args:
        header: of a NIfTI file or pair.
        path, size: of the file with the voxels.
        labels: see `read_stored`.

    Raises:
        ScanError: if it is not a 3-D volume of real numbers, or larger than the file can hold or a scan may be.
    """
    with foreign(path, "nibabel", "not a readable NIfTI file"):
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        shape = tuple(map(int, header.get_data_shape()))
    shape_in(path, shape, dtype)
    if offset < header.sizeof_hdr:  # nibabel takes 0, and reads the header as the first voxels
        raise ScanError(
            f"{DAMAGED}: found the offset {offset} (vox_offset), which is within the header, expected "
            f"{header.single_vox_offset} or more",
            path=path,
        )
    scaling = None if slope is None or (slope, intercept) == (1.0, 0.0) else (float(slope), float(intercept))
    voxels = math.prod(shape)
    check_room(path, voxels, offset + voxels * (dtype.itemsize + _further(dtype, scaling is not None, labels)), size)
    return shape, dtype, offset, scaling


def _further(dtype: np.dtype[np.generic], scaled: bool, labels: bool) -> int:
    """Bytes of memory per voxel in addition to the stored ones: as int16 or float32, or as a label."""
    if scaled or dtype.itemsize > 2:
        return 4
    if dtype.itemsize == 1:
        return 1 if labels else 2
    return 0 if dtype == np.int16 and not labels else 4


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[IO[bytes], int, bool]]:
    """A file for reading, decompressed on the fly; its size on disk; and whether it is compressed."""
    if not path.exists():
        raise ScanError("no such file", path=path)
    with foreign(path, "isal", "not a readable NIfTI file"), open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if packed:
            with igzip.IGzipFile(fileobj=file, mode="rb") as unpacked:
                yield unpacked, size, True
        else:
            yield file, size, False


def read_header(path: Path) -> tuple[type[Nifti1Image], Nifti1Header]:
    """The NIfTI version of a file, and its header."""
    with _unpacked(path) as (file, _, _):
        return _header_in(file.read(HEADER_BYTES), path)


def _header_in(start: bytes, path: Path) -> tuple[type[Nifti1Image], Nifti1Header]:
    """The NIfTI version of a file by its first bytes, and its header."""
    with foreign(path, "nibabel", "not a readable NIfTI file"):
        classes = (each for each in (Nifti1Image, Nifti2Image) if each.header_class.may_contain_header(start))
        image_class = next(classes, None)
        if image_class is None:
            raise ScanError("not a readable NIfTI file (its first bytes are not a NIfTI header)", path=path)
        stored = image_class.header_class(start[: image_class.header_class.sizeof_hdr], check=False)
    return image_class, checked_header(stored, path)


def checked_header(stored: Nifti1Header, path: Path) -> Nifti1Header:
    """A file's header as nibabel checks it, after a check of what nibabel would repair.

    If the spacing is negative, the header has no qform any more: only the sform can say which way the axes run.

    Args:
        stored: as in the file, unchecked.
        path: the file, for errors.

    Raises:
        ScanError: if the spacing is impossible, or negative without an sform, or nibabel refuses the header.
    """
    spacing = stored["pixdim"][1:4]
    if not np.isfinite(spacing).all() or (spacing == 0).any():  # nibabel would repair a spacing of 0 to 1
        raise ScanError(
            f"found voxel spacing {spacing.tolist()} in the header, expected positive, finite numbers", path=path
        )
    if (spacing < 0).any() and stored["sform_code"] <= 0:  # nibabel would drop the sign
        raise ScanError(
            f"found voxel spacing {spacing.tolist()} in the header (pixdim), expected positive numbers: a negative one "
            "may mean a mirrored axis, and there is no sform to decide it",
            path=path,
        )
    with foreign(path, "nibabel", "not a readable NIfTI file"):
        header = type(stored)(stored.binaryblock, endianness=stored.endianness)
    if (spacing < 0).any():
        header["qform_code"] = 0  # with the sign that nibabel has dropped its axes may be others
    return header


def shape_in(path: Path, stored: Sequence[int], dtype: np.dtype[np.generic] | None = None) -> tuple[int, int, int]:
    """The three spatial sizes of a shape; trailing axes of length 1 are allowed.

    Raises:
        ScanError: if it is not a volume, or its type is not a real number.
    """
    shape = tuple(int(size) for size in stored)
    spatial = (*shape, 1, 1, 1)[:3]
    if len(shape) > 3 and any(size != 1 for size in shape[3:]):
        raise ScanError(f"found a {len(shape)}-D image of shape {shape}, expected one 3-D volume", path=path)
    if min(spatial) < 2:
        raise ScanError(f"found shape {shape}, expected a volume of several slices, not a single one", path=path)
    if dtype is not None and dtype.kind not in "iufb":
        found = "RGB colour" if dtype.names else str(dtype)
        raise ScanError(f"found voxels of type {found}, expected one real number a voxel", path=path)
    return spatial[0], spatial[1], spatial[2]
