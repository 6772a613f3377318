"""Images in other files than .nii and .nii.gz: NIfTI pairs and NRRD are read, all others are named.

`unread` is asked about files that are neither NIfTI nor DICOM, by name first: what is no image is of no interest.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from parotid_seg.errors import ScanError, system_reason
from parotid_seg.scan.nifti import ENDINGS, UNREADABLE, NiftiScan, is_nifti, scan_of_image

NRRD = ".nrrd"
SEGMENTATION = ".seg.nrrd"
"""What 3D Slicer and we write masks as."""
PAIR = (".hdr", ".img")
NAMES = {
    ".hdr": "Analyze 7.5, which does not say which side is left",
    ".img": "an .img file without its .hdr",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nhdr": "NRRD in two files",
    ".mgz": "FreeSurfer MGH",
    ".mgh": "FreeSurfer MGH",
    ".mnc": "MINC",
    ".gipl": "GIPL",
    ".par": "Philips PAR/REC",
    ".brik": "AFNI",
}
"""Images that are not read, by the ending of their names."""
INSIDE = (*ENDINGS, NRRD, *NAMES, ".dcm", ".ima")
"""Endings of scans in archives, or behind another compression."""
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".z", ".br")
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".zip", *TAR, ".tar.zst", ".7z", ".rar")
MOST_MEMBERS = 1000
"""Of an archive's files that are searched: one with scans has one among them."""
MOST_UNPACKED = 1 << 30
"""Bytes of an archive's content that are passed over in search of a scan."""
SIZES = {Nifti1Image: 348, Nifti2Image: 540}
"""Bytes of the headers."""
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
"""What a NRRD file's spaces must be multiplied by."""


def is_readable(path: Path) -> bool:
    """Whether a file is an image that is read: NIfTI or NRRD by its name, the header of a NIfTI pair by its content."""
    name = path.name.lower()
    if is_nifti(path) or (name.endswith(NRRD) and not name.endswith(SEGMENTATION)):
        return True
    return name.endswith(PAIR[0]) and _pair_class(path) is not None and _image_of(path) is not None


def is_segmentation(path: Path) -> bool:
    """Whether a file's name is that of a segmentation, which is no scan."""
    return path.name.lower().endswith(SEGMENTATION)


def image_name(path: Path) -> str:
    """The file's name without an image's ending."""
    ending = next((each for each in (*ENDINGS, NRRD, *PAIR) if path.name.lower().endswith(each)), "")
    return path.name[: len(path.name) - len(ending)]


def files_of_image(path: Path) -> list[Path]:
    """The files that an image is in."""
    second = _image_of(path) if path.name.lower().endswith(PAIR[0]) else None
    return [path] if second is None else [path, second]


def unread(path: Path) -> str:
    """Why a file that may hold a scan is not read, and the way out; empty if it is of no interest.

    Args:
        path: a file that is neither `is_readable` nor DICOM nor a segmentation.
    """
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        held = _held_by(path)
        return f"not read: {held}; unpack it" if held else ""
    if name.endswith(PAIR):
        found = _pair_without(path, NAMES[path.suffix.lower()])
        return f"not read: {found}; convert it to NIfTI" if found else ""
    return unread_by_name(path)


def unread_by_name(path: Path) -> str:
    """As `unread`, of a file that is not opened."""
    name = path.name.lower()
    if name.endswith(COMPRESSED):
        inner = name.rpartition(".")[0]
        return f"not read: compressed otherwise than .nii.gz ({path.suffix}); unpack it" * inner.endswith(INSIDE)
    found = next((what for ending, what in NAMES.items() if name.endswith(ending)), "")
    return f"not read: {found}; convert it to NIfTI" if found else ""


def _pair_without(path: Path, found: str) -> str:
    """What a file named as one of a pair is; empty if it is none, or the other one stands for both."""
    if path.suffix.lower() == ".img":
        return "" if any(path.with_suffix(each).exists() for each in (".hdr", ".HDR")) else found
    if _pair_class(path) is not None:
        return "the header of a NIfTI pair without its .img file"
    return found if _is_analyze(path) else ""


def _pair_class(path: Path) -> type[Nifti1Image] | None:
    """Which NIfTI the header of a pair is of; None if the file is none."""
    start = _start(path)
    found: type[Nifti1Image] | None = Nifti2Image if start[4:8] == b"ni2\0" else None
    return Nifti1Image if start[344:348] == b"ni1\0" else found


def _is_analyze(path: Path) -> bool:
    start = _start(path)
    return len(start) >= 348 and 348 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(540)
    except OSError:
        return b""


def _image_of(header: Path) -> Path | None:
    """The second file of a pair."""
    found = (header.with_suffix(ending) for ending in (".img", ".IMG"))
    return next((path for path in found if path.is_file()), None)


def _held_by(path: Path) -> str:
    """What of scans is in an archive; empty if there is none."""
    name = path.name.lower()
    if not name.endswith((".zip", *TAR)):
        return "an archive that cannot be searched here"
    members = _in_zip(path) if name.endswith(".zip") else _in_tar(path)
    unsearched = "an archive that is damaged, encrypted or too large to search"
    try:
        return next(filter(None, (_held_as(*member) for member in islice(members, MOST_MEMBERS))), "")
    except OSError as error:
        return f"an archive that cannot be read ({system_reason(error)})" if error.errno else unsearched
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, ValueError, NotImplementedError, RuntimeError):
        return unsearched


def _held_as(inside: str, opened: Callable[[], bytes]) -> str:
    """What an archive is for one of its files; empty if that is no scan."""
    if inside.lower().endswith(ARCHIVES):
        return "an archive of archives"
    return "an archive that holds scans" if inside.lower().endswith(INSIDE) or opened()[128:] == b"DICM" else ""


def _in_zip(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Files of an archive: name, and what gives the first bytes."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.open(member).read(132)  # type: ignore[misc]


def _in_tar(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.offset_data > MOST_UNPACKED:
                raise ValueError("too large")
            if member.isfile():
                yield member.name, lambda member=member: cast(IO[bytes], archive.extractfile(member)).read(132)  # type: ignore[misc]


def read_image(path: Path) -> NiftiScan:
    """Read a NIfTI pair or a NRRD file as the scan that a NIfTI file of the same image is.

    Raises:
        ScanError: if it cannot be read, does not say where its voxels lie, or as `nifti.read_nifti`.
    """
    try:
        image = _read_nrrd(path) if path.name.lower().endswith(NRRD) else _read_pair(path)
        return scan_of_image(image, path)
    except OSError as error:
        raise ScanError(f"cannot be read ({system_reason(error)})", path=path) from error


def count_voxels_of(path: Path) -> int:
    """Voxels by the header; 0 if that cannot be read."""
    try:
        if path.name.lower().endswith(NRRD):
            shape = _nrrd_header(path)["sizes"]
        else:
            image_class = _pair_class(path) or Nifti1Image
            shape = image_class.header_class(_start(path)[: SIZES[image_class]], check=False).get_data_shape()
    except ScanError:
        return 0
    except UNREADABLE:
        return 0
    return int(np.prod(shape, dtype=np.int64))


def _read_pair(path: Path) -> Nifti1Image:
    """A pair as the single file that NIfTI has for the same (magic "n+1" instead of "ni1")."""
    second, image_class = _image_of(path), _pair_class(path)
    if second is None or image_class is None:
        raise ScanError("not a NIfTI pair: expected an .hdr file and the .img file of the same name", path=path)
    size = SIZES[image_class]
    try:
        header = image_class.header_class(path.read_bytes()[:size], check=False)
        if (np.asarray(header["pixdim"][1:4]) == 0).any():  # nibabel would repair a spacing of 0 to 1
            raise ScanError("found a voxel spacing of 0, expected positive numbers", path=path)
        voxels = second.read_bytes()[max(0, int(header["vox_offset"])) :]
        header["magic"] = b"n+1" if image_class is Nifti1Image else b"n+2"
        header["vox_offset"] = size + 4
        return image_class.from_bytes(header.binaryblock + bytes(4) + voxels)
    except UNREADABLE as error:
        raise ScanError(f"a damaged NIfTI pair ({type(error).__name__})", path=path) from error


def _nrrd_header(path: Path) -> dict[str, Any]:
    import nrrd

    try:
        return dict(nrrd.read_header(str(path)))
    except OSError:
        raise
    except Exception as error:  # pynrrd has many
        raise ScanError("not a readable NRRD file", path=path) from error


def _read_nrrd(path: Path) -> Nifti1Image:
    import nrrd

    header = _nrrd_header(path)
    if "data file" in header or "datafile" in header:
        raise ScanError("not read: NRRD in two files; convert it to NIfTI", path=path)
    affine = _nrrd_affine(path, header)
    try:
        voxels, _ = nrrd.read(str(path))
    except OSError:
        raise
    except Exception as error:  # pynrrd has many
        raise ScanError("damaged or cut off: its voxels cannot be read", path=path) from error
    if voxels.dtype.kind not in "iuf" or not 1 <= voxels.dtype.itemsize <= 8:
        raise ScanError(f"found voxels of type {voxels.dtype}, expected one real number a voxel", path=path)
    image = Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    return image


def _nrrd_affine(path: Path, header: dict[str, Any]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Affine from voxel to RAS in mm.

    Raises:
        ScanError: if the header does not say where all three axes run.
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
        raise ScanError(f"found the units {', '.join(map(str, units))} in a NRRD file, expected mm", path=path)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    return np.diag([*map(float, signs), 1.0]) @ affine
