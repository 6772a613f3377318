"""Pads chunks to few different shapes: a known shape needs no new memory on a GPU, and its CUDA graph exists."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from parotid_seg.runtime.engines.base import Output
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.input_spec import INPUT_SPECS

STEPS = {"depth": 8, "height": 32, "width": 32, "out": 8}
"""Sizes are rounded up to multiples of these. Scans of one protocol differ by a few rows within the grid; a chunk has
as many slices as its samples need. The number of samples is not padded, because each costs computing time."""

AXES = {spec.name: spec.axes for spec in INPUT_SPECS}


class Size(NamedTuple):
    """Slices, rows and columns of a chunk's output."""

    out: int
    height: int
    width: int

    def of(self, output: Output) -> Output:
        """A copy of the part of a padded chunk's output (S, [K,] H, W) that belongs to the scan."""
        return cast(Output, np.array(output[: self.out, ..., : self.height, : self.width]))


def pad_to_bucket(inputs: Inputs) -> tuple[Inputs, Size]:
    """A chunk with sizes rounded up, and the size to which its output must be cropped.

    The matrices are padded with 0, so that padded slices have no influence.
    """
    size = Size(len(inputs["slices_back"]), len(inputs["rows_back"]), len(inputs["columns_back"]))
    return {name: _grown(array, AXES[name]) for name, array in inputs.items()}, size


def _grown(array: NDArray[Any], axes: tuple[str, ...]) -> NDArray[Any]:
    more = [-size % STEPS.get(axis, 1) for size, axis in zip(array.shape, axes, strict=True)]
    return np.pad(array, [(0, each) for each in more]) if any(more) else np.ascontiguousarray(array)
