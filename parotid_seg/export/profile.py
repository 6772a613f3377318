"""The shapes an engine is built for: from batch sizes, the model's grid and the scans there are."""

from __future__ import annotations

import math

from parotid_seg.contract import Contract, Grid
from parotid_seg.runtime.engines.engine_file import BatchProfile, Shape, Shapes

SIDE = (16, 512, 1024)
"""Native rows and columns, smallest, usual and largest. CT comes as 512 x 512, exports of planning systems as 128 x 128
or less, the largest reconstructions as 1024 x 1024; a CT of 16 pixels shows no gland. The range costs no speed at the
usual size."""
THINNEST_MM = 0.5
"""Distance of slices. Head-and-neck CT has 1 to 3 mm, reconstructions for the temporal bone about 0.5 mm."""


def input_shapes(contract: Contract, batch: BatchProfile) -> Shapes:
    """Smallest, usual and largest shape of every input, so that `scan.chunks.chunks` stays within them.

    It does for all scans with sides of `SIDE` and slices `THINNEST_MM` apart or more that are cut into chunks of
    `batch.max` looks or fewer. The usual shape is a chunk of `batch.opt` from the middle of a scan with slices as far
    apart as the network looks, 512 x 512.

    Args:
        contract: the model's.
        batch: samples at once. Chunks may have one more than they were cut into, so the largest shape has.
    """
    grid, channels = contract.grid, len(contract.channels)
    sizes = (
        _shapes_of(grid, channels, looks=batch.min, slices_out=1, slices_in=1, side=SIDE[0]),
        _sized(grid, channels, batch.opt, grid.slice_step_mm, SIDE[1], extra_looks=0),
        _sized(grid, channels, batch.max, min(THINNEST_MM, grid.slice_step_mm), SIDE[2], extra_looks=1),
    )
    return {name: (sizes[0][name], sizes[1][name], sizes[2][name]) for name in sizes[0]}


def _sized(
    grid: Grid, channels: int, batch_size: int, distance_mm: float, side: int, *, extra_looks: int
) -> dict[str, Shape]:
    """Shapes of the largest chunk of a scan with slices that far apart."""
    step = max(1, int(grid.slice_step_mm / distance_mm + 1e-6))
    reach_mm = (max(grid.offsets_mm) - min(grid.offsets_mm)) + 2 * max(grid.slice_kernel_mm, distance_mm)
    return _shapes_of(
        grid,
        channels,
        looks=batch_size + extra_looks,
        slices_out=batch_size * step,
        slices_in=(batch_size - 1 + extra_looks) * step + math.ceil(reach_mm / distance_mm) + 1,
        side=side,
    )


def _shapes_of(
    grid: Grid, channels: int, *, looks: int, slices_out: int, slices_in: int, side: int
) -> dict[str, Shape]:
    size = grid.size
    return {
        "slices": (channels, slices_in, side, side),
        "window": (channels, 2),
        "rows": (size, side),
        "columns": (size, side),
        "neighbours": (looks, len(grid.offsets_mm), slices_in),
        "slices_back": (slices_out, looks),
        "rows_back": (side, size),
        "columns_back": (side, size),
    }
