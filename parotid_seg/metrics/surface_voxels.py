"""Voxels at the surface of masks, and the distances between two surfaces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LARGEST_BOX = 1 << 24
"""Most voxels of a box in which distances are computed for every voxel, in about 40 bytes each. In a larger one, as of
single voxels far from a gland, they are computed for the voxels of the surfaces alone."""
Planes = tuple[NDArray[np.intp], ...]
"""Indices of planes across each axis."""


def inside_along(mask: NDArray[np.generic], axes: Iterable[int]) -> NDArray[np.bool_]:
    """Voxels of a mask whose neighbours along some axes are all in it; outside the volume there are none.

    Args:
        mask: bool, or whole numbers 0 and 1.
        axes: along which neighbours count.
    """
    whole: NDArray[np.bool_] = np.asarray(mask, dtype=np.bool_)
    inside = whole.copy()
    for axis in axes:
        of_result, of_mask = np.moveaxis(inside, axis, 0), np.moveaxis(whole, axis, 0)
        of_result[1:] &= of_mask[:-1]
        of_result[:-1] &= of_mask[1:]
        of_result[[0, -1]] = False
    return inside


def occupied_planes(mask: NDArray[np.generic]) -> Planes:
    """Indices of the planes across each axis that have voxels of a mask, or lie beside one that has."""
    axes = range(mask.ndim)
    occupied = (np.asarray(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(np.flatnonzero(ndimage.binary_dilation(each, np.ones(3, np.bool_))) for each in occupied)


def distances_mm(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    spacing_mm: tuple[float, ...],
    planes: Planes | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance in mm of every voxel of each surface to the nearest one of the other, in the order of the voxels.

    Args:
        first, second: surfaces, of the same shape; neither is empty.
        spacing_mm: voxel size along each axis.
        planes: indices of the planes across each axis if some are left out; the surfaces may have one more at the end.
            Distances are computed for the surfaces' voxels alone then.
    """
    if planes is None:
        to_second, to_first = (ndimage.distance_transform_edt(~each, sampling=spacing_mm) for each in (second, first))
        return to_second[first], to_first[second]
    from scipy.spatial import cKDTree

    at_mm = [np.append(each, each[-1] + 1) * size for each, size in zip(planes, spacing_mm, strict=True)]
    points = [
        np.stack([at[index] for at, index in zip(at_mm, np.nonzero(each), strict=True)], axis=1)
        for each in (first, second)
    ]
    nearest = [np.asarray(cKDTree(others).query(own)[0]) for own, others in (points, points[::-1])]
    return nearest[0], nearest[1]
