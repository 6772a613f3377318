"""Splits a scan into chunks for the model, and assembles its labels.

Only the rows and columns within the model's grid are passed to the model: often a tenth of a slice's pixels, the rest
is air around the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Grid
from parotid_seg.flags import Flag
from parotid_seg.scan.grid import Matrix, axis_mm, axis_on_grid, body_centre, resampling_matrix, used
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Mask, Volume, Voxels

MOST_SLICES = 4096
"""Most slices of a scan; a whole body in slices of 0.5 mm has 4000. Matrices grow with the square of this number."""

THINNEST_MM = 0.5
"""Smallest slice distance in mm. Head-and-neck CT has 1 to 3 mm, temporal bone reconstructions about 0.5 mm."""
Inputs = Mapping[str, NDArray[np.float16] | Matrix]
"""The model's inputs for a chunk, by name; see `Chunk`."""


@dataclass(frozen=True)
class CroppedScan:
    """The part of a scan within the grid.

    Attributes:
        voxels: intensities (C, D, h, w) in two bytes each.
        windows: (C, 2), see `scan.intensity.in_windows`.
        distance_mm: between slices.
        rows, columns: its rows and columns in the scan.
        in_plane: the matrices of rows and columns, see `Chunk`.
        flags: those of the scan.
        samples: the samples along the patient that the network computes (see `SliceChunker`); None for all.
        grow: whether all slices around those samples are labelled, and further ones as long as the outermost contain
            a structure. Otherwise only the samples' own slices are.
        known: with `grow`, samples that are not computed, since their labels are known; those of `samples` among them
            contain a structure, the others do not.
    """

    voxels: NDArray[np.float16]
    windows: Windows
    distance_mm: float
    rows: slice
    columns: slice
    in_plane: dict[str, Matrix]
    flags: tuple[Flag, ...] = ()
    samples: tuple[int, ...] | None = None
    grow: bool = False
    known: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Slices of one scan as input of the model.

    Attributes:
        slices: the scan's slices of the resulting labels (S, h, w).
        samples: the samples of the scan that are computed: a run, or single ones.
        inputs: the model's inputs by name:
            slices (C, D, h, w) intensities of those slices and the neighbours they need, in every channel,
            window (C, 2) of each channel,
            rows (G, h) and columns (G, w) to the grid, neighbours (B, K, D) to the 2.5-D images of the B slices that
            the network computes,
            slices_back (S, B), rows_back (h, G) and columns_back (w, G) to native voxels.
    """

    slices: slice | NDArray[np.intp]
    samples: range | tuple[int, ...]
    inputs: dict[str, NDArray[np.float16] | Matrix]

    @property
    def size(self) -> int:
        """Samples that the network computes."""
        return len(self.inputs["neighbours"])

    @property
    def count(self) -> int:
        """Slices that get labels."""
        return len(self.inputs["slices_back"])


def crop_to_grid(volume: Volume, windows: Windows, grid: Grid, centre: tuple[int, int] | None = None) -> CroppedScan:
    """Crop a scan to the grid.

    Args:
        volume, windows: from `scan.intensity.in_windows`.
        grid: the model's.
        centre: row and column of the grid's middle; None for `body_centre`.
    """
    _, height, width = volume.shape
    distance_mm, row_mm, column_mm = volume.spacing_mm
    centre_row, centre_column = centre or body_centre(volume, windows)
    rows = axis_on_grid(height, row_mm, centre_row, grid)
    columns = axis_on_grid(width, column_mm, centre_column, grid)
    in_plane = {
        "rows": rows.there,
        "columns": columns.there,
        "rows_back": rows.back,
        "columns_back": columns.back,
    }
    voxels = as_float16(volume.voxels[:, :, rows.covered, columns.covered])
    return CroppedScan(voxels, windows, distance_mm, rows.covered, columns.covered, in_plane, volume.flags)


def chunks(volume: Volume, windows: Windows, grid: Grid, batch_size: int) -> Iterator[Chunk]:
    """A scan as model inputs: `crop_to_grid` and `cut`."""
    return cut(crop_to_grid(volume, windows, grid), grid, batch_size)


def cut(cropped: CroppedScan, grid: Grid, batch_size: int) -> Iterator[Chunk]:
    """Split a scan into model inputs, in order.

    Args:
        cropped: the scan.
        grid: the model's.
        batch_size: samples per chunk; with thin slices one more, shared with the next chunk.
    """
    cutter, start = SliceChunker(cropped, grid), 0
    while start < cutter.depth:
        chunk = cutter.chunk(start, batch_size)
        yield chunk
        start += chunk.count


def most_slices(grid: Grid, count: int, distance_mm: float) -> int:
    """Slices of the largest chunk with a number of neighbouring samples, for a slice distance."""
    reach_mm = max(grid.offsets_mm) - min(grid.offsets_mm) + 2 * max(grid.slice_kernel_mm, distance_mm)
    return (count - 1) * sample_step(distance_mm, grid) + math.ceil(reach_mm / distance_mm) + 1


def sample_step(distance_mm: float, grid: Grid) -> int:
    """The n of "the network computes every n-th slice", for a slice distance."""
    return max(1, int(grid.slice_step_mm / distance_mm + 1e-6))


class SliceChunker:
    """Splits a scan into chunks of any size.

    The network computes samples of the scan: every n-th slice, and one at or beyond the last. Scores of slices between
    two samples are interpolated.

    Attributes:
        depth: slices of the scan.
        step: a sample is taken every so many of them.
        count: samples on slices of the scan.
    """

    def __init__(self, cropped: CroppedScan, grid: Grid) -> None:
        self._cropped, self._grid = cropped, grid
        self.depth = cropped.voxels.shape[1]
        self.step = sample_step(cropped.distance_mm, grid)
        self.count = -(-self.depth // self.step)
        self._slices_mm = axis_mm(self.depth, cropped.distance_mm)
        self._samples_mm = axis_mm(-(-(self.depth - 1) // self.step) + 1, self.step * cropped.distance_mm)
        self._slices_back = resampling_matrix(self._samples_mm, self._slices_mm, 0.0, clamp=True)

    def chunk(self, start: int, count: int) -> Chunk:
        """The chunk of slices from `start` on that a number of samples yields; thin slices need one more sample."""
        stop = min(start + count * self.step, self.depth)
        sampled = used(self._slices_back[start:stop])
        samples = range(start // self.step, -(-stop // self.step))
        return self._chunk(slice(start, stop), samples, sampled, self._slices_back[start:stop, sampled])

    def single(self, samples: Sequence[int]) -> Chunk:
        """A chunk with only the slices of these samples, in rising order."""
        slices = self.step * np.array(samples, np.intp)
        return self._chunk(slices, tuple(samples), list(samples), np.eye(len(samples), dtype=np.float32))

    def _chunk(
        self,
        slices: slice | NDArray[np.intp],
        samples: range | tuple[int, ...],
        sampled: slice | list[int],
        back: Matrix,
    ) -> Chunk:
        wanted_mm = self._samples_mm[sampled][:, None] + np.asarray(self._grid.offsets_mm)
        neighbours = resampling_matrix(self._slices_mm, wanted_mm.ravel(), self._grid.slice_kernel_mm, clamp=True)
        needed = used(neighbours)
        return Chunk(
            slices,
            samples,
            inputs={
                "slices": self._cropped.voxels[:, needed],
                "window": self._cropped.windows,
                "neighbours": np.ascontiguousarray(neighbours[:, needed].reshape(*wanted_mm.shape, -1)),
                "slices_back": np.ascontiguousarray(back),
                **self._cropped.in_plane,
            },
        )


def segmented(volume: Volume, windows: Windows, grid: Grid, batch_size: int, run: Callable[[Inputs], Mask]) -> Mask:
    """Labels (D, H, W) of a whole scan, chunk by chunk.

    Args:
        volume, windows, grid: see `crop_to_grid`.
        batch_size: see `chunks`.
        run: computes a chunk's labels from its inputs.
    """
    labels = np.zeros(volume.shape, np.uint8)
    cropped = crop_to_grid(volume, windows, grid)
    for chunk in cut(cropped, grid, batch_size):
        labels[chunk.slices, cropped.rows, cropped.columns] = run(chunk.inputs)
    return labels


def can_share(one: CroppedScan, other: CroppedScan) -> bool:
    """Whether slices of two scans can share a batch: they have the same windows and matrices."""
    return np.array_equal(one.windows, other.windows) and all(
        np.array_equal(matrix, other.in_plane[name]) for name, matrix in one.in_plane.items()
    )


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Join chunks of scans that `can_share` a batch; its labels are those of the chunks, one after the other."""
    if len(parts) == 1:
        return parts[0]
    sizes, outs, depths = (
        [part[name].shape[axis] for part in parts]
        for name, axis in (("neighbours", 0), ("slices_back", 0), ("slices", 1))
    )
    neighbours = np.zeros((sum(sizes), parts[0]["neighbours"].shape[1], sum(depths)), np.float32)
    back = np.zeros((sum(outs), sum(sizes)), np.float32)
    sample = out = depth = 0
    for part, more, more_outs, more_depth in zip(parts, sizes, outs, depths, strict=True):
        neighbours[sample : sample + more, :, depth : depth + more_depth] = part["neighbours"]
        back[out : out + more_outs, sample : sample + more] = part["slices_back"]
        sample, out, depth = sample + more, out + more_outs, depth + more_depth
    slices: NDArray[np.float16] = np.concatenate([part["slices"] for part in parts], axis=1, dtype=np.float16)
    return {**parts[0], "slices": slices, "neighbours": neighbours, "slices_back": back}


def mirrored(inputs: Inputs) -> Inputs:
    """The chunk mirrored for the network; the labels are at their original place, with sides swapped."""
    columns: Matrix = np.ascontiguousarray(inputs["columns"][::-1], np.float32)
    columns_back: Matrix = np.ascontiguousarray(inputs["columns_back"][:, ::-1], np.float32)
    return {**inputs, "columns": columns, "columns_back": columns_back}


def as_float16(voxels: Voxels) -> NDArray[np.float16]:
    """Intensities in two bytes, exact for whole numbers up to +-2048; larger ones keep 11 significant bits.

    NumPy converts them in small blocks: as float32 a large scan would need twice the memory of its voxels.
    """
    limit = float(np.finfo(np.float16).max)
    converted = np.empty(voxels.shape, np.float16)
    return np.clip(voxels, -limit, limit, out=converted, dtype=np.float32, casting="unsafe")
