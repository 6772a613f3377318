"""The model's grid: matrices that take a scan's native voxels to it and its scores back.

Resampling is linear and separable, so every axis is one small matrix. The matrices are computed here from the scan's
spacing, for training and for runtime alike, and are inputs of the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Grid
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Mask, Volume, Voxels

Matrix = NDArray[np.float32]


def resampling_matrix(
    source_mm: NDArray[np.float64], target_mm: NDArray[np.float64], kernel_mm: float, *, clamp: bool = False
) -> Matrix:
    """Weights of a triangle filter from evenly spaced samples to any positions on the same axis.

    With a kernel as wide as the sample distance this is linear interpolation; a wider one smooths, which keeps a fine
    scan from aliasing on a coarser grid.

    Args:
        source_mm: positions of the samples (N,), rising, evenly spaced.
        target_mm: positions wanted (M,), in any order.
        kernel_mm: half width of the triangle; never less than the sample distance.
        clamp: True repeats the outermost sample beyond the ends; False counts what lies outside as 0 (air).

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


def body_centre_mm(volume: Volume, windows: Windows) -> tuple[float, float]:
    """In-plane centre (y, x) of the patient: the median position of tissue over all slices, where the grid is laid.

    Tissue is what lies above the lower end of the first channel's window; of CT that is -200 HU by default: fat is near
    -100, lung, foam and air are well below. The median is hardly moved by couch and head rest. Positions are those of
    `axis_mm`; the middle of the slice is returned if there is no tissue at all.
    """
    tissue = np.asarray(volume.voxels[0, :, ::2, ::2] > float(windows[0, 0]))
    over_slices = tissue.sum(axis=0, dtype=np.int64)
    centre = []
    for profile, size, spacing in (
        (over_slices.sum(axis=1), volume.shape[1], volume.spacing_mm[1]),
        (over_slices.sum(axis=0), volume.shape[2], volume.spacing_mm[2]),
    ):
        total = profile.sum()
        middle = 2 * np.searchsorted(np.cumsum(profile), total / 2) if total else (size - 1) / 2
        centre.append(float(middle * spacing))
    return centre[0], centre[1]


@dataclass(frozen=True)
class Chunk:
    """A run of neighbouring slices of one scan, as far as the grid covers them, as the model takes it.

    Attributes:
        place: where in the volume the labels (S, H, W) that come out belong; beyond it all is background.
        inputs: the model's inputs by name:
            slices (C, D, H, W) intensities of those slices and the neighbours they need, in every channel,
            window (C, 2) of each channel,
            rows (G, H) and columns (G, W) to the grid, neighbours (B, K, D) to the 2.5-D images of the B slices that
            the network looks at,
            slices_back (S, B), rows_back (H, G) and columns_back (W, G) to native voxels.
    """

    place: tuple[slice, slice, slice]
    inputs: dict[str, NDArray[np.float16] | Matrix]


def segmented(
    volume: Volume,
    windows: Windows,
    grid: Grid,
    batch_size: int,
    run: Callable[[Mapping[str, NDArray[np.float16] | Matrix]], Mask],
) -> Mask:
    """Labels (D, H, W) of a whole scan, chunk by chunk.

    Args:
        volume, windows, batch_size: see `chunks`.
        run: a chunk's inputs to its labels.
    """
    labels = np.zeros(volume.shape, np.uint8)
    for chunk in chunks(volume, windows, grid, batch_size):
        labels[chunk.place] = run(chunk.inputs)
    return labels


def chunks(volume: Volume, windows: Windows, grid: Grid, batch_size: int) -> Iterator[Chunk]:
    """Cut a volume into model inputs, in order.

    Args:
        volume, windows: as `scan.intensity.in_windows` gives them.
        batch_size: slices a chunk that the network looks at; of thin slices one more, shared with the next chunk.
    """
    depth, height, width = volume.shape
    centre_y, centre_x = body_centre_mm(volume, windows)
    slices_mm = axis_mm(depth, volume.spacing_mm[0])
    in_plane: dict[str, Matrix] = {}
    covered: list[slice] = []
    for name, size, spacing, centre in (
        ("rows", height, volume.spacing_mm[1], centre_y),
        ("columns", width, volume.spacing_mm[2], centre_x),
    ):
        native_mm, model_mm = axis_mm(size, spacing), centre + grid_mm(grid)
        there = resampling_matrix(native_mm, model_mm, grid.kernel_mm)
        back = resampling_matrix(model_mm, native_mm, spacing)
        covered.append(used(np.concatenate([there, back.T])))  # often a tenth of a slice's pixels, air around the head
        in_plane[name] = np.ascontiguousarray(there[:, covered[-1]])
        in_plane[f"{name}_back"] = back[covered[-1]]
    step = max(1, int(grid.slice_step_mm / volume.spacing_mm[0] + 1e-6))
    looked_mm = axis_mm(-(-(depth - 1) // step) + 1, step * volume.spacing_mm[0])
    slices_back = resampling_matrix(looked_mm, slices_mm, 0.0, clamp=True)
    for first in range(0, depth, batch_size * step):
        stop = min(first + batch_size * step, depth)
        looks = used(slices_back[first:stop])
        wanted_mm = looked_mm[looks, None] + np.asarray(grid.offsets_mm)
        neighbours = resampling_matrix(slices_mm, wanted_mm.ravel(), grid.slice_kernel_mm, clamp=True)
        needed = used(neighbours)
        yield Chunk(
            place=(slice(first, stop), covered[0], covered[1]),
            inputs={
                "slices": as_float16(volume.voxels[:, needed, covered[0], covered[1]]),
                "window": windows,
                "neighbours": np.ascontiguousarray(neighbours[:, needed].reshape(*wanted_mm.shape, -1)),
                "slices_back": np.ascontiguousarray(slices_back[first:stop, looks]),
                **in_plane,
            },
        )


def used(weights: Matrix) -> slice:
    """The run of columns outside which all weights are 0, but for rounding; one column if all are."""
    columns = np.flatnonzero((weights > 1e-6).any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)


def as_float16(voxels: Voxels) -> NDArray[np.float16]:
    """Intensities in two bytes, exact for whole numbers up to +-2048; larger ones keep 11 significant bits."""
    limit = float(np.finfo(np.float16).max)
    return np.clip(voxels.astype(np.float32), -limit, limit).astype(np.float16)
