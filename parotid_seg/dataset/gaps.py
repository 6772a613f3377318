"""Slices without contours between the ends of a structure.

If only every second or third slice is contoured, the structure continues on the slices between, but a planning system
exports no contours there unless it interpolates. These slices are filled from the nearest contoured slices on both
sides, by the mean of both shapes' signed distances, weighted by proximity (Raya and Udupa, IEEE TMI 9, 1990).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.dicom.contours import filled, outlines
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode

MOST_MM = 10.0
"""Most mm between two contoured slices. Parotid glands of OpenKBP reduced to slices 5, 7.5 and 10 mm apart and filled
again have a mean DSC of 0.96, 0.93 and 0.91 with the complete contours; at 12.5 and 20 mm 0.89 and 0.83."""
ROUNDING = 1.001
FINE = 4
"""Steps per voxel side in which distances are measured."""


def without_gaps(
    inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], tuple[Flag, ...]]:
    """A structure with its missing slices filled, and flags with their number.

    Slices between two pieces that do not overlap in the plane stay empty, with a flag.

    Args:
        inside: (slices, rows, columns).
        spacing_mm: distances of slices, rows and columns.

    Raises:
        ScanError: if the structure has no voxel, or two contoured slices are more than `MOST_MM` apart.
    """
    shown = np.flatnonzero(inside.any(axis=(1, 2)))
    if not len(shown):
        raise ScanError("its contours enclose no voxel of the scan")
    filled, filled_in, between, span = inside.copy(), 0, 0, int(shown[-1] - shown[0]) + 1
    for before, after in pairwise(map(int, shown)):
        missing, apart_mm = after - before - 1, (after - before) * float(spacing_mm[0])
        if not missing:
            continue
        if not (inside[before] & inside[after]).any():
            between += missing
        elif apart_mm > MOST_MM * ROUNDING:
            raise ScanError(
                f"no contour on {missing} slices in a row between its ends ({len(shown)} of {span} have one): "
                f"found contours {apart_mm:.1f} mm apart, expected at most {MOST_MM:g}"
            )
        else:
            filled_in += missing
            filled[before + 1 : after] = _between(inside[before], inside[after], missing, spacing_mm[1:])
    flags = (
        Flag(FlagCode.SLICES_INTERPOLATED, value=filled_in, detail=str(span)),
        Flag(FlagCode.SLICES_BETWEEN_PIECES, value=between),
    )
    return filled, tuple(flag for flag in flags if flag.value)


def _between(
    first: NDArray[np.bool_], last: NDArray[np.bool_], count: int, spacing_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The shapes between two slices (count, rows, columns)."""
    places = np.argwhere(first | last)
    low, high = np.maximum(places.min(axis=0) - 1, 0), places.max(axis=0) + 2
    window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    one, other = (_signed_mm(each[window], spacing_mm) for each in (first, last))
    shapes = np.zeros((count, *first.shape), dtype=np.bool_)
    for number in range(count):
        share = (number + 1) / (count + 1)
        shapes[number][window] = (1.0 - share) * one + share * other > 0.0
    return shapes


def _signed_mm(inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each voxel to the outline in mm, positive inside."""
    rows, columns = inside.shape
    fine = filled([(points + 0.5) * FINE - 0.5 for points in outlines(inside)], rows * FINE, columns * FINE)
    sides = spacing_mm / FINE
    outside = np.pad(~fine, 1, constant_values=True)
    inner = ndimage.distance_transform_edt(~outside, sampling=sides)
    outer = ndimage.distance_transform_edt(outside, sampling=sides)
    signed = (inner - outer)[1:-1, 1:-1]
    return np.asarray(signed.reshape(rows, FINE, columns, FINE).mean(axis=(1, 3)))
