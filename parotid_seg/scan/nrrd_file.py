"""Reads NRRD files: header, geometry, and voxels, decompressed only as far as stated in the header."""

from __future__ import annotations

import bz2
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.files import open_input
from parotid_seg.scan.foreign import check_room, foreign
from parotid_seg.scan.nifti_file import DAMAGED, shape_in

UNREADABLE = "not a readable NRRD file"
PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
"""Names of compressed encodings in a header."""
TEXT = ("ASCII", "ascii", "text", "txt")
SKIPS = ("line skip", "lineskip", "byte skip", "byteskip")
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
"""Factors from a NRRD file's spaces to RAS."""


def nrrd_sizes(path: Path) -> Sequence[int]:
    """Voxels along each axis.

    Raises:
        ScanError: if the header cannot be read.
    """
    with foreign(path, "pynrrd", UNREADABLE), open_input(path) as file:
        return tuple(map(int, _header_in(file, path)["sizes"]))


def read_nrrd(path: Path) -> Nifti1Image:
    """A NRRD file as a NIfTI image in memory.

    Raises:
        ScanError: if it cannot be read, has no geometry, is not a 3-D volume of real numbers, or states more voxels
            than the file can hold or a scan may have.
    """
    with foreign(path, "pynrrd", UNREADABLE), open_input(path) as file:
        header = _header_in(file, path)
        if "data file" in header or "datafile" in header:
            raise ScanError("not read: NRRD in two files; convert it to NIfTI", path=path)
        affine = _affine(path, header)
        with foreign(path, "pynrrd", DAMAGED):
            voxels = _voxels(file, header, path)
    with foreign(path, "nibabel", UNREADABLE):
        image = Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
    return image


def _header_in(file: IO[bytes], path: Path) -> dict[str, Any]:
    """A file's header; afterwards the file is positioned at its data."""
    import nrrd

    with foreign(path, "pynrrd", UNREADABLE):
        return dict(nrrd.read_header(file))


def _voxels(file: IO[bytes], header: dict[str, Any], path: Path) -> NDArray[np.generic]:
    """The voxels in storage order, from a file positioned at its data."""
    import nrrd

    shape = tuple(map(int, header["sizes"]))
    one = {**header, "dimension": 1, "sizes": np.array([1]), "encoding": "raw", **dict.fromkeys(SKIPS, 0)}
    if header["encoding"] in TEXT:
        one.setdefault("endian", "little")
    dtype = nrrd.read_data(one, io.BytesIO(bytes(16))).dtype
    shape_in(path, shape, dtype)
    size, length = os.fstat(file.fileno()).st_size, math.prod(shape) * dtype.itemsize
    check_room(path, math.prod(shape), length + 4 * math.prod(shape), size)
    if any(abs(header.get(name, 0)) > size for name in SKIPS):
        raise ScanError(f"{DAMAGED}: found more lines or bytes to skip than it has", path=path)
    packing = PACKED.get(header["encoding"])
    if packing is None:
        if header["encoding"] == "raw" and size - file.tell() < length:
            raise ScanError(f"{DAMAGED}: found {size - file.tell()} bytes, expected {length}", path=path)
        voxels: NDArray[np.generic] = nrrd.read_data(header, file)
        return voxels
    if any(header.get(name, 0) for name in SKIPS):
        raise ScanError("found lines or bytes to skip before compressed voxels, expected none", path=path)
    with igzip.IGzipFile(fileobj=file, mode="rb") if packing == "gzip" else bz2.BZ2File(file) as unpacked:
        content = unpacked.read(length)
        more = unpacked.read(1)
    if len(content) < length or more:
        byte_count = f"more than {length}" if more else len(content)
        raise ScanError(f"{DAMAGED}: found {byte_count} bytes, expected {length}", path=path)
    return np.ndarray(shape, dtype, content, order="F")


def _affine(path: Path, header: dict[str, Any]) -> NDArray[np.float64]:
    """Affine from voxel to RAS in mm.

    Raises:
        ScanError: if the header does not state the directions of all three axes.
    """
    signs = TO_RAS.get(str(header.get("space", "")).strip().lower())
    directions = np.asarray(header.get("space directions", ()), dtype=np.float64)
    origin = np.asarray(header.get("space origin", ()), dtype=np.float64)
    if signs is None or directions.shape != (3, 3) or origin.shape != (3,):
        raise ScanError(
            "a NRRD file that does not say where its voxels lie: expected three axes with space (left or right, "
            "anterior or posterior, superior), space directions and space origin",
            path=path,
        )
    units = header.get("space units")
    if isinstance(units, (list, tuple)) and any(str(each).strip('"').lower() not in ("mm", "") for each in units):
        raise ScanError("found space units other than mm in a NRRD file, expected mm", path=path)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    return np.diag([*map(float, signs), 1.0]) @ affine
