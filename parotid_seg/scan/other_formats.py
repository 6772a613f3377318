"""Other image formats than .nii and .nii.gz: NIfTI pairs and NRRD are read, all others are reported.

`unread` is for files that are neither NIfTI nor DICOM. It checks the name first; files that are not images are ignored.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from parotid_seg.errors import ScanError, system_reason
from parotid_seg.files import open_input
from parotid_seg.scan.foreign import foreign
from parotid_seg.scan.nifti import (
    ENDINGS,
    NiftiScan,
    is_nifti,
    scan_of_image,
    scan_of_stored,
    voxels_in,
    without_ending,
)
from parotid_seg.scan.nifti_file import DAMAGED, GZIP, HEADER_BYTES, Stored, checked_header, layout_in
from parotid_seg.scan.nrrd_file import nrrd_sizes, read_nrrd
from parotid_seg.scan.search import DICOM_ENDINGS, NO_SCANS

NRRD = ".nrrd"
SEGMENTATION = ".seg.nrrd"
"""Endings of masks from 3D Slicer and parotid-seg."""
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
    ".minc": "MINC",
    ".gipl": "GIPL",
    ".par": "Philips PAR/REC",
    ".brik": "AFNI",
    ".nia": "NIfTI as text",
    ".mif": "MRtrix",
    ".mih": "MRtrix",
    ".avw": "AnalyzeAVW",
    ".isq": "Scanco ISQ",
    ".mrc": "MRC",
    ".vti": "VTK image",
}
"""Formats that are not read, by the ending of their names."""
VTK = ".vtk"
"""Ending of VTK's first format, whose files may also contain a surface."""
VTK_IMAGES = (b"structured_points", b"structured_grid", b"rectilinear_grid")
INSIDE = (*ENDINGS, NRRD, *NAMES, *DICOM_ENDINGS)
"""Endings of archives and of other compressions that may contain scans."""
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".z", ".br")
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP = (".zip", ".mrb", ".mitk")
"""Endings of ZIP archives, among them the scenes of 3D Slicer and MITK."""
ARCHIVES = (*ZIP, *TAR, ".tar.zst", ".7z", ".rar")
MOST_MEMBERS = 1000
"""Most files of an archive that are searched; an archive of scans has a scan among them."""
UNSEARCHED = "an archive that is damaged, encrypted or too large to search"
MOST_UNPACKED = 1 << 30
"""Most bytes of an archive's content that are skipped in the search for a scan."""
MOST_HEADER_BYTES = 1 << 16
"""Most bytes of a tar archive between two members' contents: header, long name and extended attributes."""
TAR_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    GZIP: partial(igzip.IGzipFile, None, "rb", 2),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0\x80": lzma.LZMAFile,
}
"""How the content of a compressed archive is read, by its first bytes."""
DAMAGED_PAIR = "a damaged NIfTI pair"
BEGINNINGS = (
    (344, b"n+1\0", ".nii"),
    (4, b"n+2\0", ".nii"),
    (0, b"NRRD00", NRRD),
    (128, b"DICM", ".dcm"),
)
"""Bytes near the beginning of files: where they are, which, and the ending of the files' names."""
SIZES = {Nifti1Image: 348, Nifti2Image: 540}
"""Bytes of the headers."""


def is_readable(path: Path) -> bool:
    """Whether a file is a readable image: NIfTI or NRRD by its name, the header of a NIfTI pair by its content."""
    name = path.name.lower()
    if is_nifti(path) or (name.endswith(NRRD) and not name.endswith(SEGMENTATION)):
        return True
    return name.endswith(PAIR[0]) and _pair_class(path) is not None and _image_of(path) is not None


def is_segmentation(path: Path) -> bool:
    """Whether a file has the name of a segmentation, which is not a scan."""
    return path.name.lower().endswith(SEGMENTATION)


def image_name(path: Path) -> str:
    """The file's name without an image's ending."""
    return without_ending(path.name, (*ENDINGS, NRRD, *PAIR))


def files_of_image(path: Path) -> list[Path]:
    """The files of an image."""
    second = _image_of(path) if path.name.lower().endswith(PAIR[0]) else None
    return [path] if second is None else [path, second]


def unread(path: Path) -> str:
    """Why a file that may hold a scan is not read, with advice; empty if it is irrelevant.

    Args:
        path: a file that is neither `is_readable` nor DICOM nor a segmentation.
    """
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        wrapper = _held_by(path)
        return f"not read: {wrapper}; unpack it" if wrapper else ""
    if name.endswith(PAIR):
        found = _pair_without(path, NAMES[path.suffix.lower()])
        return f"not read: {found}; convert it to NIfTI" if found else ""
    if name.endswith(VTK):
        is_image = any(each in _start(path).lower() for each in VTK_IMAGES)
        return "not read: VTK image; convert it to NIfTI" if is_image else ""
    return unread_by_name(path) or ("" if path.suffix.lower() in NO_SCANS else _unread_by_content(path))


def unread_by_name(path: Path) -> str:
    """As `unread`, without opening the file."""
    name = path.name.lower()
    if name.endswith(COMPRESSED):
        if not name.rpartition(".")[0].endswith(INSIDE):
            return ""
        return f"not read: compressed otherwise than .nii.gz ({path.suffix}); unpack it"
    description = next((kind for ending, kind in NAMES.items() if name.endswith(ending)), "")
    return f"not read: {description}; convert it to NIfTI" if description else ""


def _unread_by_content(path: Path) -> str:
    """As `unread`, for a file whose name does not end as that of an image, such as "ct.nii (1).gz"."""
    start = _start(path)
    packed = start.startswith(GZIP)
    if packed:
        with suppress(ScanError), foreign(path, "isal", DAMAGED), open_input(path) as file:
            start = igzip.IGzipFile(fileobj=file, mode="rb").read(HEADER_BYTES)
    ending = next((ending for at, magic, ending in BEGINNINGS if start[at : at + len(magic)] == magic), "")
    if ending == ".dcm":
        return "not read: a compressed DICOM file; unpack it" if packed else ""
    name = f"{ending}.gz" if packed and ending == ".nii" else ending
    return f"not read: by its content a file of {name}, which its name does not end in; rename it" if ending else ""


def _pair_without(path: Path, description: str) -> str:
    """A description of a file with the name of a pair; empty if it is not one, or the other file represents both."""
    if path.suffix.lower() == ".img":
        return "" if any(path.with_suffix(each).exists() for each in (".hdr", ".HDR")) else description
    if _pair_class(path) is not None:
        return "the header of a NIfTI pair without its .img file"
    return description if _is_analyze(path) else ""


def _pair_class(path: Path) -> type[Nifti1Image] | None:
    """The NIfTI version of a pair's header; None if the file is not one."""
    start = _start(path)
    found: type[Nifti1Image] | None = Nifti2Image if start[4:8] == b"ni2\0" else None
    return Nifti1Image if start[344:348] == b"ni1\0" else found


def _is_analyze(path: Path) -> bool:
    start = _start(path)
    return len(start) >= 348 and 348 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))


def _start(path: Path) -> bytes:
    try:
        with open_input(path) as file:
            return file.read(HEADER_BYTES)
    except OSError:
        return b""


def _image_of(header: Path) -> Path | None:
    """The second file of a pair."""
    candidates = (header.with_suffix(ending) for ending in (".img", ".IMG"))
    return next((path for path in candidates if path.is_file()), None)


def _held_by(path: Path) -> str:
    """A description of an archive with scans; empty if it contains none."""
    name = path.name.lower()
    if not name.endswith((*ZIP, *TAR)):
        return "an archive that cannot be searched here"
    try:
        with open_input(path) as file, foreign(path, "Python", UNSEARCHED):
            members = _in_zip(file) if name.endswith(ZIP) else _in_tar(file)
            return next(filter(None, (_held_as(*member) for member in islice(members, MOST_MEMBERS))), "")
    except OSError as error:
        return f"an archive that cannot be read ({system_reason(error)})"
    except ScanError:
        return UNSEARCHED


def _held_as(inside: str, opened: Callable[[], bytes]) -> str:
    """The description of an archive by one of its files; empty if that file is not a scan."""
    if inside.lower().endswith(ARCHIVES):
        return "an archive of archives"
    return "an archive that holds scans" if inside.lower().endswith(INSIDE) or opened()[128:] == b"DICM" else ""


def _in_zip(file: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Files of an archive: name, and a function that returns the first bytes."""

    def start_of(member: zipfile.ZipInfo) -> bytes:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("a compression of which Python unpacks more than is read")
        return archive.open(member).read(132)

    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, partial(start_of, member)


class _Unpacked:
    """A tar archive without its compression; what is read of it ends with an error behind a limit.

    tarfile reads the headers of a member, long names among them, as a whole before it yields the member.
    """

    def __init__(self, file: IO[bytes]) -> None:
        start = file.read(6)
        file.seek(0)
        openers = (opened for magic, opened in TAR_COMPRESSIONS.items() if start.startswith(magic))
        self._content: IO[bytes] = next(openers, lambda file: file)(file)
        self._read = 0
        self.most = MOST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: if they end behind the limit `most`, in bytes from the beginning.
        """
        content = self._content.read(size)
        self._read += len(content)
        if self._read > self.most + tarfile.RECORDSIZE:
            raise ValueError("too large")
        return content


def _in_tar(file: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    unpacked = _Unpacked(file)
    with tarfile.open(fileobj=cast(IO[bytes], unpacked), mode="r|") as archive:
        for member in archive:
            if member.offset_data > MOST_UNPACKED:
                raise ValueError("too large")
            unpacked.most = archive.offset + MOST_HEADER_BYTES  # the next member begins at the offset
            if member.isfile():
                yield member.name, lambda member=member: cast(IO[bytes], archive.extractfile(member)).read(132)  # type: ignore[misc]


def read_image(path: Path) -> NiftiScan:
    """Read a NIfTI pair or a NRRD file as if it were a single NIfTI file of the same image.

    Raises:
        ScanError: if it cannot be read, or has no geometry; otherwise as `nifti.read_nifti`.
    """
    if path.name.lower().endswith(NRRD):
        return scan_of_image(read_nrrd(path), path)
    return scan_of_stored(_read_pair(path), path)


def count_voxels_of(path: Path) -> int:
    """Number of voxels by the header, at most `MOST_VOXELS`; 0 if it cannot be read."""
    try:
        if path.name.lower().endswith(NRRD):
            return voxels_in(nrrd_sizes(path))
        with foreign(path, "nibabel", DAMAGED_PAIR):
            image_class = _pair_class(path) or Nifti1Image
            start = _start(path)[: SIZES[image_class]]
            return voxels_in(image_class.header_class(start, check=False).get_data_shape())
    except ScanError:
        return 0


def _read_pair(path: Path) -> Stored:
    """The content of a pair, with the header of an equivalent single file (magic "n+1" instead of "ni1")."""
    second, image_class = _image_of(path), _pair_class(path)
    if second is None or image_class is None:
        raise ScanError("not a NIfTI pair: expected an .hdr file and the .img file of the same name", path=path)
    size = SIZES[image_class]
    with foreign(path, "nibabel", DAMAGED_PAIR):
        pair_header = image_class.header_class(_start(path)[:size], check=False)
        offset = max(0, int(pair_header["vox_offset"]))
        pair_header["magic"] = b"n+1" if image_class is Nifti1Image else b"n+2"
        pair_header["vox_offset"] = size + 4
    header = checked_header(pair_header, path)
    with foreign(second, "Python", DAMAGED_PAIR), open_input(second) as file:
        shape, dtype, _, scaling = layout_in(header, path, os.fstat(file.fileno()).st_size)
        length = math.prod(shape) * dtype.itemsize
        file.seek(offset)
        content = file.read(length)
        more = len(file.read(dtype.itemsize)) == dtype.itemsize
    if len(content) < length:
        raise ScanError(f"{DAMAGED}: found {len(content)} bytes in {second.name}, expected {length}", path=path)
    return Stored(image_class, header, np.ndarray(shape, dtype, content, order="F"), scaling, more)
