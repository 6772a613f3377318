"""Reads and writes NIfTI: any storage order, units, scaling and oblique affine; masks with exactly the scan's geometry.

A scan of several channels (sequences of an MR examination) has one file per channel, on the same voxels.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from numpy.typing import NDArray

from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import write_bytes
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.foreign import MOST_VOXELS, foreign
from parotid_seg.scan.geometry import Geometry, geometry_of, header_in_place
from parotid_seg.scan.intensity import intensities_of
from parotid_seg.scan.nifti_file import Stored, read_header, read_stored, shape_in
from parotid_seg.scan.volume import Mask, Orientation, Volume, Voxels, axis_codes, spacing_of
from parotid_seg.wording import by_axes

ENDINGS = (".nii.gz", ".nii")
MIN_DEPTH_MM = 20.0
"""Least extent along the patient's axis in mm; a shorter scan cannot show a gland."""

SAME_PLACE = 0.25
"""Share of a voxel by which a mask may lie off its scan. Tools round affines by less; half a voxel is a shift."""
MASK_NOTE = b"parotid-seg mask"
"""The header's description of every mask written here."""
PACKING = 1
"""Compression level of masks, 0 to 3: labels shrink a hundredfold at any."""


@dataclass(frozen=True)
class NiftiScan:
    """A NIfTI scan: the volume for the model, and the first channel's file, whose geometry a mask must have."""

    path: Path
    volume: Volume
    header: Nifti1Header
    image_class: type[Nifti1Image]
    geometry: Geometry


def is_nifti(path: Path) -> bool:
    """Whether the file has the name of a NIfTI file."""
    return path.name.lower().endswith(ENDINGS)


def case_name(path: Path) -> str:
    """The file's name without its ending and without nnU-Net's channel number `_0000`."""
    return without_ending(path.name, ENDINGS).removesuffix("_0000")


def without_ending(name: str, endings: Iterable[str]) -> str:
    """A file's name without the first of some endings that it has, in upper or lower case."""
    ending = next((each for each in endings if name.lower().endswith(each)), "")
    return name[: len(name) - len(ending)]


def by_case(paths: Iterable[Path]) -> dict[str, Path]:
    """NIfTI files by the name of their case.

    Raises:
        InputError: if two are of one case, such as a.nii and a.nii.gz.
    """
    files: dict[str, Path] = {}
    for path in paths:
        name = case_name(path)
        if (other := files.setdefault(name, path)) != path:
            raise InputError(f"found {other.name} and {path.name}, expected one file of case {name}", path=path.parent)
    return files


def read_nifti(path: Path, *further: Path) -> NiftiScan:
    """Read a scan from its file, or from the files of its channels in their order.

    Files may differ in storage order and type; int16 and float32 together become float32. If sform, qform and pixdim
    disagree, the volume's flags state which was used, see `geometry.geometry_of`.

    Raises:
        ScanError: if the file is missing, not NIfTI, damaged, not a 3-D volume of real numbers, not finite, constant,
            or its geometry is impossible for a head scan; or if a further channel has other voxels than the first.
    """
    for other in further:
        check_same_voxels(other, path)
    first, *others = (scan_of_stored(read_stored(each), each) for each in (path, *further))
    return replace(first, volume=joined_channels([first.volume, *(other.volume for other in others)]))


def joined_channels(volumes: Sequence[Volume]) -> Volume:
    """Join volumes on the same voxels as the channels of one."""
    if len(volumes) == 1:
        return volumes[0]
    flags = dict.fromkeys(flag for volume in volumes for flag in volume.flags)
    decoders = dict.fromkeys(decoder for volume in volumes for decoder in volume.decoders)
    voxels: Voxels = np.concatenate([volume.voxels for volume in volumes])
    return replace(volumes[0], voxels=voxels, flags=tuple(flags), decoders=tuple(decoders))


def scan_of_stored(stored: Stored, path: Path) -> NiftiScan:
    """The content of a file as a scan of one channel.

    Raises:
        ScanError: as `read_nifti`.
    """
    scan = scan_of(stored.header, stored.image_class, stored.voxels, path, stored.scaling)
    if stored.more:
        scan = replace(scan, volume=replace(scan.volume, flags=(*scan.volume.flags, Flag(FlagCode.MORE_VOXELS))))
    return scan


def scan_of_image(image: Nifti1Image, path: Path) -> NiftiScan:
    """A NIfTI image in memory as a scan of one channel.

    Args:
        image: a nibabel image.
        path: its origin, for errors.

    Raises:
        ScanError: as `read_nifti`.
    """
    shape_in(path, image.shape, image.get_data_dtype())
    with foreign(path, "nibabel", "not a readable NIfTI image"):
        stored = np.asanyarray(image.dataobj)
    return scan_of(image.header, type(image), stored, path)


def scan_of(
    header: Nifti1Header,
    image_class: type[Nifti1Image],
    stored: NDArray[np.generic],
    path: Path,
    scaling: tuple[float, float] | None = None,
) -> NiftiScan:
    """Stored values and their header as a scan of one channel.

    Args:
        header, image_class: of the image.
        stored: stored values in storage order.
        path: its origin, for errors.
        scaling: slope and intercept from stored values to intensities.

    Raises:
        ScanError: as `read_nifti`.
    """
    shape = shape_in(path, stored.shape, stored.dtype)
    geometry = geometry_in(header, path)
    spacing_stored = spacing_of(geometry.affine)
    orientation = Orientation.from_affine(geometry.affine)
    spacing = tuple(float(spacing_stored[axis]) for axis in orientation.axes)
    check_extent(path, tuple(shape[axis] for axis in orientation.axes), spacing)
    intensities = intensities_of(stored.reshape(shape), scaling, path)
    voxels = cast(Voxels, orientation.to_canonical(intensities)[None])  # as stored: a large scan is not copied
    shear = shear_of(geometry.affine)
    volume = Volume(voxels, (spacing[0], spacing[1], spacing[2]), orientation, geometry.flags, shear=shear)
    return NiftiScan(path, volume, header, image_class, geometry)


def shear_of(affine: NDArray[np.float64]) -> float:
    """Volume of a voxel over the product of its spacings; below 1 where the axes are not at right angles."""
    lengths = spacing_of(affine)
    return round(abs(float(np.linalg.det(affine[:3, :3] / lengths))), 6)  # 1 to rounding, else less


def geometry_in(header: Nifti1Header, path: Path) -> Geometry:
    """The geometry in a file's header.

    Raises:
        ScanError: as `geometry_of`, or if nibabel cannot read it.
    """
    with foreign(path, "nibabel", "a header without usable geometry"):
        return geometry_of(header, path)


def count_voxels(path: Path) -> int:
    """Number of voxels of a scan by its header, at most `MOST_VOXELS`; 0 if it cannot be read."""
    try:
        header = read_header(path)[1]
    except ScanError:
        return 0
    return voxels_in(header.get_data_shape())


def voxels_in(shape: Iterable[int]) -> int:
    """Number of voxels of an untrusted shape: 0 to `MOST_VOXELS`."""
    return max(0, min(math.prod(max(0, int(size)) for size in shape), MOST_VOXELS))


def geometry_at(path: Path) -> Geometry:
    """The geometry of a file.

    Raises:
        ScanError: if its header cannot be read, or its geometry is impossible.
    """
    return geometry_in(read_header(path)[1], path)


def read_mask(path: Path, like: NiftiScan | None = None) -> tuple[Mask, tuple[float, float, float]]:
    """Read a label map in canonical order, with its spacing in mm.

    Raises:
        ScanError: as `read_nifti`; if a value is not a whole number from 0 to 255; or if the map does not lie on the
            voxels of the scan `like`.
    """
    stored_file = read_stored(path, labels=True)
    affine = geometry_in(stored_file.header, path).affine
    orientation = Orientation.from_affine(affine)
    voxels = stored_file.voxels
    stored: NDArray[np.generic] = voxels.reshape(shape_in(path, voxels.shape, voxels.dtype))
    if stored.dtype != np.uint8 or stored_file.scaling:
        stored = intensities_of(stored, stored_file.scaling, path, constant_allowed=True)
    labels = stored.astype(np.uint8, copy=False)
    if labels is not stored and not np.array_equal(labels, stored):
        raise ScanError("not a label map: found values that are not whole numbers from 0 to 255", path=path)
    canonical = np.ascontiguousarray(orientation.to_canonical(labels))
    spacing = spacing_of(affine)[list(orientation.axes)]
    if like is not None:
        check_same_voxels(path, like.path)
    return canonical, (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def check_same_voxels(path: Path, other: Path) -> None:
    """Raise ScanError unless two files have the same voxels, independent of their storage order."""
    found, expected = _placed(path), _placed(other)
    shown = other.name if other.parent == path.parent else other
    if found.shape != expected.shape:
        raise ScanError(
            f"not on the voxels of {shown}: found {by_axes(found.shape)} voxels (slices, rows, columns), "
            f"expected {by_axes(expected.shape)}",
            path=path,
        )
    off_mm = float(np.linalg.norm(found.corners_mm - expected.corners_mm, axis=1).max())
    if off_mm > SAME_PLACE * min(expected.spacing_mm):
        raise ScanError(
            f"not on the voxels of {shown}: they lie up to {off_mm:.2f} mm apart "
            f"(voxels of {by_axes(expected.spacing_mm)} mm)",
            path=path,
        )


class _Placed(NamedTuple):
    """Canonical shape and spacing of a volume, and the positions of its eight corner voxels (8, 3) in mm."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    corners_mm: NDArray[np.float64]


def _placed(path: Path) -> _Placed:
    _, header = read_header(path)
    shape = np.array(shape_in(path, header.get_data_shape()))
    affine = geometry_in(header, path).affine
    orientation = Orientation.from_affine(affine)
    axes = list(orientation.axes)
    corners = np.empty((8, 3))
    corners[:, axes] = np.array(list(itertools.product((False, True), repeat=3))) ^ np.array(orientation.flips)
    corners_mm = (corners * (shape - 1)) @ affine[:3, :3].T + affine[:3, 3]
    return _Placed(tuple(shape[axes]), tuple(spacing_of(affine)[axes]), corners_mm)


def write_mask(mask: Mask, scan: NiftiScan, path: Path) -> None:
    """Write labels (D, H, W) uint8 as `write_volume` does."""
    write_volume(mask, scan, path, MASK_NOTE)


def write_volume(voxels: Voxels | Mask, scan: NiftiScan, path: Path, note: bytes = b"") -> None:
    """Write voxels with the scan's geometry, completely or not at all; nothing else of the scan's header is in the
    file.

    Args:
        voxels: (D, H, W) in canonical order.
        scan: the scan they belong to.
        path: the file to make (.nii or .nii.gz); it appears only when it is complete and on disk.
        note: the header's description.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full.
    """
    header = header_in_place(scan.header, scan.geometry, voxels.dtype, note)
    stored = scan.volume.orientation.to_storage(np.asarray(voxels)).reshape(scan.header.get_data_shape())
    image = scan.image_class(stored, None, header)
    write_bytes(packed(image) if path.name.lower().endswith(".gz") else image.to_bytes(), path)


def packed(image: Nifti1Image) -> bytes:
    """The content of a .nii.gz file. It has no time stamp, so that equal images give equal bytes."""
    content = io.BytesIO()
    with igzip.IGzipFile(fileobj=content, mode="wb", compresslevel=PACKING, mtime=0) as file:
        image.to_stream(file)  # slice by slice: a whole uncompressed copy may need as much memory as the scan
    return content.getvalue()


def is_own_mask(path: Path) -> bool:
    """Whether a file is a mask that `write_mask` made."""
    try:
        return bool(read_header(path)[1]["descrip"].item() == MASK_NOTE)
    except ScanError:
        return False


def check_extent(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Raise ScanError if a volume of a canonical shape and spacing in mm is too short to show a gland."""
    depth_mm = shape[0] * spacing[0]
    if depth_mm < MIN_DEPTH_MM:
        raise ScanError(
            f"{shape[0]} slices cover {depth_mm:.1f} mm from inferior to superior, "
            f"expected at least {MIN_DEPTH_MM:.0f} mm",
            path=path,
        )


def describe(scan: NiftiScan) -> dict[str, str]:
    """The description of a scan in a file of any readable format for `inspect`, as labels and values."""
    volume = scan.volume
    affine = scan.geometry.affine
    found = {
        "file": str(scan.path),
        "kind": "NIfTI scan",
        "shape": " x ".join(map(str, scan.header.get_data_shape())),
        "spacing": f"{by_axes(spacing_of(affine))} mm",
        "voxel axes run to": axis_codes(affine),
        "stored as": str(scan.header.get_data_dtype()),
        "intensities": f"{volume.voxels.min():g} to {volume.voxels.max():g}",
    }
    if scan.path.suffix.lower() == ".nrrd":
        return found | {"kind": "NRRD scan"}
    return found | {"sform / qform code": f"{int(scan.header['sform_code'])} / {int(scan.header['qform_code'])}"}
