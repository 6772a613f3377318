"""Pads chunks to few different shapes: a known shape needs no new memory on a GPU, and its CUDA graph exists."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import INPUT_SPECS
from parotid_seg.runtime.engines.base import Output
from parotid_seg.scan.chunks import Inputs

STEPS = {"depth": 8, "height": 8, "width": 8, "out": 8}
"""Sizes are rounded up to multiples of these. Scans of one protocol differ by a few rows within the grid; a chunk has
as many slices as its samples need. The number of samples is padded only on request, because each costs computing
time."""

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
    shapes, size = padded_shapes(inputs)
    padded: dict[str, Any] = {}
    for name, array in inputs.items():
        if array.shape == shapes[name]:
            padded[name] = np.ascontiguousarray(array)
            continue
        padded[name] = np.empty(shapes[name], array.dtype)
        write_padded(array, padded[name])
    return padded, size


def padded_shapes(inputs: Inputs, samples: int = 1) -> tuple[dict[str, tuple[int, ...]], Size]:
    """Shapes of a chunk's inputs with sizes rounded up, and the size to which its output must be cropped.

    Args:
        inputs: of the chunk.
        samples: a chunk of fewer gets as many.
    """
    size = Size(len(inputs["slices_back"]), len(inputs["rows_back"]), len(inputs["columns_back"]))
    shapes = {
        name: tuple(
            max(each, samples) if axis == "batch" else each + -each % STEPS.get(axis, 1)
            for each, axis in zip(array.shape, AXES[name], strict=True)
        )
        for name, array in inputs.items()
    }
    return shapes, size


def write_padded(array: NDArray[Any], place: NDArray[Any]) -> None:
    """Write an array into one of the same type that is at least as large, and 0 beside it."""
    if array.shape != place.shape:
        place[...] = 0
    np.copyto(place[tuple(map(slice, array.shape))], array, casting="no")
