"""The model's grid: matrices that resample a scan's native voxels to it and its scores back.

Resampling is linear and separable, so every axis needs one small matrix. The matrices are computed here from the scan's
spacing, both for training and at runtime, and are inputs of the exported graph.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Grid
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Volume

MOST_OUTSIDE = 0.01
"""Largest share of a structure outside the grid without a remark."""

Matrix = NDArray[np.float32]


def resampling_matrix(
    source_mm: NDArray[np.float64], target_mm: NDArray[np.float64], kernel_mm: float, *, clamp: bool = False
) -> Matrix:
    """Weights of a triangle filter from evenly spaced samples to any positions on the same axis.

    With a kernel as wide as the sample distance this is linear interpolation; a wider one smooths, which keeps a fine
    scan from aliasing on a coarser grid.

    Args:
        source_mm: positions of the samples (N,), rising, evenly spaced.
        target_mm: target positions (M,), in any order.
        kernel_mm: half width of the triangle; never less than the sample distance.
        clamp: True repeats the outermost sample beyond the ends; False treats values outside as 0 (air).

    Returns:
        (M, N) float32; a row sums to 1 inside the samples' range.
    """
    count = len(source_mm)
    step = float(source_mm[-1] - source_mm[0]) / (count - 1) if count > 1 else max(kernel_mm, 1e-6)
    half_width = max(kernel_mm, step)
    if clamp:
        target_mm = np.clip(target_mm, source_mm[0], source_mm[-1])
    pad = 0 if clamp else int(np.ceil(half_width / step))
    extended_mm = source_mm[0] + step * np.arange(-pad, count + pad)
    weights = np.maximum(1.0 - np.abs(target_mm[:, None] - extended_mm[None, :]) / half_width, 0.0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    return np.ascontiguousarray(weights[:, pad : pad + count], dtype=np.float32)


def axis_mm(size: int, spacing_mm: float) -> NDArray[np.float64]:
    """Positions of an axis's voxel centres, from 0."""
    return np.arange(size, dtype=np.float64) * spacing_mm


def grid_mm(grid: Grid) -> NDArray[np.float64]:
    """In-plane positions (size,) of the model's pixels relative to the grid's centre."""
    return axis_mm(grid.size, grid.spacing_mm) - (grid.size - 1) * grid.spacing_mm / 2


def body_centre(volume: Volume, windows: Windows) -> tuple[int, int]:
    """Row and column of the patient's middle, on which the grid is centred: the median position of tissue over all
    slices.

    Couch and head rest hardly change the median. See `tissue_centre`.
    """
    return tissue_centre(volume, windows, (slice(None), slice(None), slice(None)))


def share_outside(
    area: NDArray[np.integer], spacing_mm: tuple[float, float], middle_mm: tuple[float, float], grid: Grid
) -> float:
    """Share of a structure that lies outside the grid around a place.

    Args:
        area: its voxels in each row and column.
        spacing_mm: of rows and columns.
        middle_mm: distance of the place from the first row and column.
    """
    half_mm = grid.size * grid.spacing_mm / 2
    inside = (
        np.abs(np.arange(count) * step - middle) <= half_mm
        for count, step, middle in zip(area.shape, spacing_mm, middle_mm, strict=True)
    )
    return 1 - float(area[np.ix_(*inside)].sum() / area.sum())


def tissue_centre(volume: Volume, windows: Windows, part: tuple[slice, slice, slice]) -> tuple[int, int]:
    """Row and column of the median position of tissue in a part of a scan; that part's middle if there is none.

    Tissue means intensities above the lower end of the first channel's window. In CT that is -200 HU by default: fat is
    near -100; lung, foam and air are well below.

    Args:
        volume, windows: from `scan.intensity.in_windows`.
        part: slices, rows and columns.
    """
    slices, rows, columns = (range(*side.indices(size)) for side, size in zip(part, volume.shape, strict=True))
    voxels = volume.voxels[0, slices.start : slices.stop, rows.start : rows.stop : 2, columns.start : columns.stop]
    lowest = float(windows[0, 0])
    below = math.floor(lowest) if voxels.dtype.kind in "iu" else lowest  # the same, without a conversion of all voxels
    over_slices = np.zeros(voxels.shape[1:], np.uint32)
    for each in voxels:  # whole rows of a slice fit into the processor's cache: a third of the time for a large scan
        over_slices += each > below
    centre = []
    for axis, side in ((1, rows), (0, columns)):
        profile = over_slices[:, ::2].sum(axis=axis, dtype=np.int64)
        total = profile.sum()
        within = 2 * int(np.searchsorted(np.cumsum(profile), total / 2)) if total else (len(side) - 1) // 2
        centre.append(side.start + within)
    return centre[0], centre[1]


class Axis(NamedTuple):
    """One in-plane axis of a scan on the grid.

    Attributes:
        covered: its voxels within the grid.
        there: (G, N) matrix from these N voxels to the grid.
        back: (N, G) matrix from the grid to them.
    """

    covered: slice
    there: Matrix
    back: Matrix


def axis_on_grid(size: int, spacing_mm: float, centre: int, grid: Grid) -> Axis:
    """Centre the grid on a voxel of an axis.

    The matrices depend on the spacing only, bit for bit, unless the scan ends within the grid. Scans of equal spacing
    can therefore share a batch, and shapes repeat.
    """
    model_mm = grid_mm(grid)
    reach = math.ceil((model_mm[-1] + max(grid.kernel_mm, grid.spacing_mm, spacing_mm)) / spacing_mm)
    native_mm = spacing_mm * np.arange(-reach, reach + 1)
    there = resampling_matrix(native_mm, model_mm, grid.kernel_mm)
    back = resampling_matrix(model_mm, native_mm, spacing_mm)
    reached = used(np.concatenate([there, back.T]))
    first, stop = max(0, centre - reach + reached.start), min(size, centre - reach + reached.stop)
    columns = slice(first - centre + reach, stop - centre + reach)
    return Axis(slice(first, stop), np.ascontiguousarray(there[:, columns]), np.ascontiguousarray(back[columns]))


def used(weights: Matrix) -> slice:
    """The range of columns outside which all weights are 0 up to rounding; one column if all are 0."""
    columns = np.flatnonzero((weights > 1e-6).any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)
