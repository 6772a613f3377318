"""The shapes that an engine is built for, from batch sizes, the model's grid and typical scans."""

from __future__ import annotations

from parotid_seg.contract import INPUT_SPECS, Contract, Grid, model_sizes
from parotid_seg.runtime.engines.engine_file import BatchProfile, Shape, Shapes
from parotid_seg.scan.chunks import THINNEST_MM, most_slices, sample_step

SIDE = (16, 512, 1024)
"""Native rows and columns: smallest, usual and largest. CT has 512 x 512, exports of planning systems have 128 x 128
or less, the largest reconstructions 1024 x 1024; a CT of 16 pixels shows no gland. The range costs no speed at the
usual size."""


def input_shapes(contract: Contract, batch: BatchProfile) -> Shapes:
    """Smallest, usual and largest shape of every input, so that `scan.chunks.chunks` stays within them.

    This holds for all scans with sides within `SIDE` and slices at least `THINNEST_MM` apart that are cut into chunks
    of at most `batch.max` samples. The usual shape is a chunk of `batch.opt` from the middle of a 512 x 512 scan whose
    slices are as far apart as the network samples.

    Args:
        contract: the model's.
        batch: samples at once. Chunks may have one sample more than they were cut into; the largest shape allows for
            it.
    """
    grid, channels = contract.grid, len(contract.channels)
    sizes = (
        _shapes_of(grid, channels, samples=batch.min, slices_out=1, slices_in=1, side=SIDE[0]),
        _sized(grid, channels, batch.opt, grid.slice_step_mm, SIDE[1], extra_samples=0),
        _sized(grid, channels, batch.max, min(THINNEST_MM, grid.slice_step_mm), SIDE[2], extra_samples=1),
    )
    return {name: (sizes[0][name], sizes[1][name], sizes[2][name]) for name in sizes[0]}


def _sized(
    grid: Grid, channels: int, batch_size: int, distance_mm: float, side: int, *, extra_samples: int
) -> dict[str, Shape]:
    """Shapes of the largest chunk of a scan with slices that far apart."""
    return _shapes_of(
        grid,
        channels,
        samples=batch_size + extra_samples,
        slices_out=batch_size * sample_step(distance_mm, grid),
        slices_in=most_slices(grid, batch_size + extra_samples, distance_mm),
        side=side,
    )


def _shapes_of(
    grid: Grid, channels: int, *, samples: int, slices_out: int, slices_in: int, side: int
) -> dict[str, Shape]:
    free = {"depth": slices_in, "height": side, "width": side, "batch": samples, "out": slices_out}
    return {spec.name: spec.shape(free | model_sizes(grid, channels)) for spec in INPUT_SPECS}
