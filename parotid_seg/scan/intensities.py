"""Converts stored values of an image to intensities by slope and intercept: int16 where exact, else float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.scan.foreign import foreign
from parotid_seg.scan.volume import Voxels

SLAB_VOXELS = 1 << 22
"""Voxels that are scaled at once, so that a large scan does not need memory for all its values as float64."""
LOWEST, HIGHEST = -32768, 32767
"""Of int16."""
LARGEST = float(np.finfo(np.float32).max)


def intensities_of(
    stored: NDArray[np.generic], scaling: tuple[float, float] | None, path: Path, *, constant_allowed: bool = False
) -> Voxels:
    """Intensities of stored values; the same array if it is int16 and needs no scaling.

    Args:
        stored: real numbers (I, J, K).
        scaling: slope and intercept; None for 1 and 0.
        path: the file, for errors.
        constant_allowed: whether all voxels may have one value.

    Raises:
        ScanError: if a voxel is not finite, or all have one value.
    """
    if scaling is not None:
        return _scaled(stored, scaling, path, constant_allowed)
    low, high = stored.min(), stored.max()
    _check(path, low, high, [stored], stored.size, constant_allowed)
    if stored.dtype.kind in "iub" and low >= LOWEST and high <= HIGHEST:
        return np.asarray(stored, dtype=np.int16)
    if low >= LOWEST and high <= HIGHEST:
        as_int16 = np.asarray(stored, dtype=np.int16)
        if np.array_equal(as_int16, stored):
            return as_int16
    return np.asarray(stored, dtype=np.float32)


def _scaled(stored: NDArray[np.generic], scaling: tuple[float, float], path: Path, constant_allowed: bool) -> Voxels:
    slabs = list(_slabs(stored))

    def values(slab: NDArray[np.generic]) -> NDArray[np.floating]:
        with foreign(path, "nibabel", "slope and intercept that cannot be applied"), np.errstate(all="ignore"):
            return np.asarray(apply_read_scaling(slab, *scaling))

    ends = [(each.min(), each.max()) for each in map(values, slabs)]
    low, high = np.min([end for end, _ in ends]), np.max([end for _, end in ends])
    _check(path, low, high, map(values, slabs), stored.size, constant_allowed)
    if low >= LOWEST and high <= HIGHEST:
        integers = np.empty_like(stored, dtype=np.int16, subok=False)
        for target, slab in zip(_slabs(integers), slabs, strict=True):
            exact = values(slab)
            target[...] = exact
            if not np.array_equal(target, exact):
                break
        else:
            return integers
    floats = np.empty_like(stored, dtype=np.float32, subok=False)
    for target, slab in zip(_slabs(floats), slabs, strict=True):
        target[...] = values(slab)
    return floats


def _slabs(stored: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Views of neighbouring slices that together form an array (I, J, K)."""
    thickness = max(1, SLAB_VOXELS // max(1, stored.shape[0] * stored.shape[1]))
    for begin in range(0, stored.shape[2], thickness):
        yield stored[..., begin : begin + thickness]


def _check(
    path: Path, low: np.generic, high: np.generic, parts: Iterable[NDArray[np.generic]], size: int, constant: bool
) -> None:
    """Raise ScanError unless the lowest and highest intensity are finite as float32, and differ or may be equal."""
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = sum(each.size - int(np.count_nonzero(np.isfinite(each))) for each in parts)
        raise ScanError(f"{bad} of {size} voxels are NaN or infinite, expected finite intensities", path=path)
    if float(low) < -LARGEST or float(high) > LARGEST:
        raise ScanError(f"found intensities from {low:g} to {high:g}, expected at most {LARGEST:g}", path=path)
    if low == high and not constant:
        raise ScanError(f"every voxel has the value {low:g}, expected an image", path=path)
