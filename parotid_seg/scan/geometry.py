"""The geometry of a NIfTI file: compares sform, qform and pixdim, chooses one, and corrects axes to right angles.

docs/scan-checks.md states the rules. A choice despite a contradiction is flagged; impossible geometry is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.volume import Orientation, axis_codes, spacing_of
from parotid_seg.wording import by_axes

Affine = NDArray[np.float64]

UNITS = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
"""nibabel's names of the units of space, by the lowest three bits of xyzt_units; the others are the unit of time."""
MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
SPACING_RANGE_MM = (0.05, 20.0)
"""Range of the spacing of a head scan in mm; values outside mean a wrong unit or a damaged header."""
SAME_SPACING = 0.01
"""Most relative difference between the sform's spacing and pixdim: 3 % of a volume. Rounded headers are within it."""
SLICE_RANGE_MM = (150.0, 1000.0)
"""Range of width and height of a head's slices in mm: a head with both glands is not narrower, and no scanner's bore is
wider. It is only used if sform and pixdim disagree."""
TEMPLATES = (3, 4, 5)
"""Codes of an sform to a template's space, whose mm are not the patient's."""
NOTED_MM = 0.1
"""Smaller differences in position, in mm, are rounding."""
TURNED_DEGREES = 45.0
"""If sform and qform rotate an axis further apart than this, they assign it to different axes of the patient."""
EXACT = 1e-5
"""Largest cosine between two axes that counts as 0: 0.005 mm over 500 mm."""
RIGHT_ANGLE = 1e-2
"""Largest cosine between axes that are corrected to a right angle: 0.57 degrees, as for directions rounded to two
decimals. Larger ones are shear."""
REPEATED_MM = 1e-3
"""Most distance in mm between a voxel's positions by two transforms that count as equal."""
ASSUMED = 2
"""Code of a mask's sform and qform if the scan's codes are 0 (NIFTI_XFORM_ALIGNED_ANAT)."""
TRANSFORMS = {
    "sform_code": ("srow_x", "srow_y", "srow_z"),
    "qform_code": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
}
"""A header's transforms: the field of the code and the fields of the transform."""


class Geometry(NamedTuple):
    """The geometry of a file's voxels.

    Attributes:
        affine: (4, 4), from a stored voxel's indices to the patient's right, front and head in mm (RAS).
        code: of the chosen transform; `ASSUMED` if it has none.
        flags: remarks on the choice and on the geometry.
    """

    affine: Affine
    code: int
    flags: tuple[Flag, ...]


def geometry_of(header: Nifti1Header, path: Path) -> Geometry:
    """The geometry in a header.

    Args:
        header: of a 3-D image, with spacings above 0.
        path: of the file, for errors.

    Raises:
        ScanError: if all its transforms are impossible, its unit is unknown, or its spacing is not that of a head scan.
    """
    unit_mm = _unit_mm(header, path)
    stated, code, flags = _chosen(header, path, unit_mm)
    affine = stated.astype(np.float64)
    affine[:3] *= unit_mm
    _check_spacing_of(header, affine, path)
    shape, shear = header.get_data_shape(), _shear(affine)
    if EXACT < shear <= RIGHT_ANGLE:
        upright = right_angled(affine, shape)
        moved_mm = _largest_distance(affine, upright, shape)
        flags += [Flag(FlagCode.SQUARED, value=moved_mm)] if moved_mm > NOTED_MM else []
        affine = upright
    return Geometry(affine, code, (*flags, *_position_flags(affine, shear)))


def right_angled(affine: Affine, shape: Sequence[int]) -> Affine:
    """The nearest affine with axes at right angles, and the same spacing and middle of the volume."""
    lengths = spacing_of(affine)
    u, _, vt = np.linalg.svd(affine[:3, :3] / lengths)
    upright = affine.copy()
    upright[:3, :3] = (u @ vt) * lengths
    middle = (np.array(shape[:3]) - 1) / 2
    upright[:3, 3] += (affine[:3, :3] - upright[:3, :3]) @ middle
    return upright


def header_in_place(header: Nifti1Header, geometry: Geometry, dtype: DTypeLike, note: bytes = b"") -> Nifti1Header:
    """A new header with the shape, unit and geometry of another, and nothing else of it.

    Transforms and spacing are copied bit for bit if all of them agree with `geometry`. Otherwise sform and qform are
    both set to it; a sheared one is in the sform only, as a qform cannot express shear.

    Args:
        header: of the scan.
        geometry: the result of `geometry_of` for the header.
        dtype: of the voxels.
        note: the new header's description.
    """
    fresh = type(header)()
    fresh.set_data_dtype(dtype)
    fresh.set_data_shape(header.get_data_shape())
    fresh.set_slope_inter(1.0, 0.0)
    fresh.set_xyzt_units(_unit_of(header))
    fresh["descrip"] = note
    fresh["pixdim"][:4] = header["pixdim"][:4]
    for code, fields in TRANSFORMS.items():
        if header[code] > 0:
            for name in (code, *fields):
                fresh[name] = header[name]
    if not _agrees(fresh, geometry.affine):
        _set(fresh, geometry)
    return fresh


def check_spacing(path: Path, spacing: NDArray[np.float64], hint: str = "is the unit in the header right?") -> None:
    """Raise ScanError if a spacing in mm is not that of a head scan.

    Args:
        path: of the file, for the error.
        spacing: along any number of axes.
        hint: possible cause, for the error.
    """
    low, high = SPACING_RANGE_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        found = tuple(float(f"{value:.4g}") for value in spacing)
        raise ScanError(f"found spacing {found} mm, expected {low} to {high} mm along each axis; {hint}", path=path)


def _check_spacing_of(header: Nifti1Header, affine: Affine, path: Path) -> None:
    """Raise ScanError if the spacing of an affine in mm is not that of a head scan."""
    unit = _unit_of(header)
    if unit in ("meter", "micron"):
        check_spacing(path, spacing_of(affine), f"the header's unit is {unit}; are its numbers in mm?")
    else:
        check_spacing(path, spacing_of(affine))


def _unit_of(header: Nifti1Header) -> str:
    """The unit of space, of a header that `_unit_mm` accepts."""
    return UNITS[int(header["xyzt_units"]) % 8]


def _unit_mm(header: Nifti1Header, path: Path) -> float:
    code = int(header["xyzt_units"]) % 8
    if code not in UNITS:
        raise ScanError(
            f"found the unit {code} in the header (xyzt_units), expected 1 (metre), 2 (mm), 3 (micron) or 0", path=path
        )
    return MM_PER_UNIT[UNITS[code]]


def _chosen(header: Nifti1Header, path: Path, unit_mm: float) -> tuple[Affine, int, list[Flag]]:
    """The chosen affine in the header's unit, its code, and flags on the choice."""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sform, qform = header.get_sform(), _qform_of(header)
    flags = [Flag(FlagCode.QFORM_UNUSABLE)] if qform_code > 0 and qform is None else []
    if qform is not None and (sform_code <= 0 or not _is_regular(sform)):
        return qform, qform_code, [Flag(FlagCode.SFORM_UNUSABLE)] if sform_code > 0 else []
    if sform_code <= 0:
        affine, flag = _assumed(header)
        return affine, ASSUMED, [*flags, flag]
    if not _is_regular(sform):
        raise ScanError(
            "the affine (sform) is singular or not finite, expected three independent axes of positive spacing",
            path=path,
        )
    if _has_spacing(sform, _pixdim(header)):
        return sform, sform_code, [*flags, *_compared(sform, qform, header, unit_mm)]
    spacings = (
        f"{by_axes(spacing_of(sform) * unit_mm)} mm by the sform, {by_axes(_pixdim(header) * unit_mm)} mm by pixdim"
    )
    doubt = _doubt(sform, header, unit_mm)
    if not doubt:
        noted = FlagCode.PIXDIM_STALE if _is_stale(header, sform, unit_mm) else FlagCode.SPACING_DISAGREE
        return sform, sform_code, [*flags, Flag(noted, detail=spacings)]
    if qform is not None and _is_of_head(qform, header, unit_mm):
        return qform, qform_code, [*flags, Flag(FlagCode.SFORM_STALE, detail=spacings)]
    raise ScanError(
        f"sform and pixdim contradict each other: found a spacing of {spacings}; {doubt}, and no qform to go by; "
        "expected one spacing in both",
        path=path,
    )


def _qform_of(header: Nifti1Header) -> Affine | None:
    """The qform; None if it has no code or is damaged."""
    if header["qform_code"] <= 0:
        return None
    try:
        qform: Affine = header.get_qform()
    except (HeaderDataError, ValueError):
        return None
    return qform if _is_regular(qform) else None


def _assumed(header: Nifti1Header) -> tuple[Affine, Flag]:
    """The affine of a header without a valid transform, and flags on it.

    An sform without a code is used if it has the spacing of pixdim and is not just that spacing on its diagonal.
    """
    sform: Affine = header.get_sform()
    if (
        _is_regular(sform)
        and _has_spacing(sform, _pixdim(header))
        and not np.allclose(sform[:3, :3], np.diag(spacing_of(sform)))
    ):
        return sform, Flag(FlagCode.SFORM_WITHOUT_CODE)
    return header.get_base_affine(), Flag(FlagCode.ORIENTATION_UNKNOWN)


def _doubt(sform: Affine, header: Nifti1Header, unit_mm: float) -> str:
    """Why a regular sform whose spacing differs from pixdim is impossible; empty if it is plausible."""
    code = int(header["sform_code"])
    if code in TEMPLATES:
        return f"an sform of code {code} leads to a template's space"
    if _is_default(spacing_of(sform)):
        return "an sform that was never set has 1 along every axis"
    if not _is_of_head(sform, header, unit_mm):
        low, high = SLICE_RANGE_MM
        width, height = _slice_size(sform, header)
        return (
            f"by the sform the slices are {width * unit_mm:.4g} x {height * unit_mm:.4g} mm, where a head's are "
            f"{low:.0f} to {high:.0f} mm"
        )
    return ""


def _is_stale(header: Nifti1Header, sform: Affine, unit_mm: float) -> bool:
    """Whether pixdim is impossible while the sform is plausible."""
    stated = sform.copy()
    stated[:3, :3] = _directions(sform) * _pixdim(header)
    return _is_default(_pixdim(header)) or not _is_of_head(stated, header, unit_mm)


def _is_default(spacing: NDArray[np.float64]) -> bool:
    """Whether a spacing is the default of headers in which it was never set."""
    return bool(np.allclose(spacing, 1.0, atol=1e-3))


def _is_of_head(affine: Affine, header: Nifti1Header, unit_mm: float) -> bool:
    low, high = SLICE_RANGE_MM
    return all(low <= size * unit_mm <= high for size in _slice_size(affine, header))


def _slice_size(affine: Affine, header: Nifti1Header) -> tuple[float, float]:
    """Width and height of the slices across the patient's axis, in the header's unit."""
    _, rows, columns = Orientation.from_affine(affine).axes
    sizes = spacing_of(affine) * header.get_data_shape()[:3]
    return float(sizes[columns]), float(sizes[rows])


def _compared(sform: Affine, qform: Affine | None, header: Nifti1Header, unit_mm: float) -> list[Flag]:
    """Flags if sform and qform of equal spacing disagree."""
    if qform is None:
        return []
    off_mm = _largest_distance(sform, qform, header.get_data_shape()) * unit_mm
    if off_mm <= NOTED_MM:
        return []
    cosines = (_directions(sform) * _directions(qform)).sum(axis=0)
    if cosines.min() < np.cos(np.radians(TURNED_DEGREES)):
        return [Flag(FlagCode.AXES_DISAGREE, value=off_mm, detail=f"{axis_codes(sform)}, {axis_codes(qform)}")]
    return [Flag(FlagCode.SFORM_QFORM_DISAGREE, value=off_mm)]


def _position_flags(affine: Affine, shear: float) -> list[Flag]:
    flags = []
    tilt = float(np.degrees(np.arccos(np.clip(np.abs(_directions(affine)).max(axis=0).min(), -1, 1))))
    if tilt > 1:
        flags.append(Flag(FlagCode.OBLIQUE, value=tilt))
    if shear > RIGHT_ANGLE:
        flags.append(Flag(FlagCode.SHEARED, value=float(np.degrees(np.arcsin(min(shear, 1))))))
    return flags


def _agrees(header: Nifti1Header, affine: Affine) -> bool:
    """Whether a header has a transform, and all its transforms agree with an affine in mm."""
    unit_mm = MM_PER_UNIT[_unit_of(header)]
    transforms = [header.get_sform()] if header["sform_code"] > 0 else []
    if header["qform_code"] > 0:
        qform = _qform_of(header)
        if qform is None:
            return False
        transforms.append(qform)
    stated = affine.copy()
    stated[:3] /= unit_mm
    off = [_largest_distance(each, stated, header.get_data_shape()) * unit_mm for each in transforms]
    same_spacing = np.allclose(_pixdim(header), spacing_of(stated), rtol=EXACT, atol=0)
    return bool(off) and all(each <= REPEATED_MM for each in off) and same_spacing


def _set(header: Nifti1Header, geometry: Geometry) -> None:
    """Set the geometry in a header, and clear all other transforms."""
    stated = geometry.affine.copy()
    stated[:3] /= MM_PER_UNIT[_unit_of(header)]
    header.set_sform(stated, geometry.code)
    if _shear(stated) <= EXACT:
        header.set_qform(stated, geometry.code)
        return
    header["qform_code"] = 0
    for name in TRANSFORMS["qform_code"]:
        header[name] = 0.0
    header["pixdim"][:4] = (1.0, *spacing_of(stated))


def _is_regular(affine: Affine) -> bool:
    if not np.isfinite(affine).all():
        return False
    lengths = spacing_of(affine)
    return bool((lengths > 0).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _has_spacing(affine: Affine, spacing: NDArray[np.float64]) -> bool:
    """Whether a regular affine has a spacing: along its axes or, if they are sheared, perpendicular to the other
    axes."""
    along, across = spacing_of(affine), 1.0 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)
    return bool((np.minimum(abs(along - spacing), abs(across - spacing)) <= SAME_SPACING * spacing).all())


def _largest_distance(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """Largest distance between the corners of a volume by two affines."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape[:3]))])
    return float(np.linalg.norm(corners @ (a - b)[:3].T, axis=1).max())


def _shear(affine: Affine) -> float:
    """Largest cosine between two axes."""
    directions = _directions(affine)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def _directions(affine: Affine) -> NDArray[np.float64]:
    """Unit vectors of the axes as columns (3, 3)."""
    return np.asarray(affine[:3, :3] / spacing_of(affine))


def _pixdim(header: Nifti1Header) -> NDArray[np.float64]:
    return np.asarray(header["pixdim"][1:4], dtype=np.float64)
