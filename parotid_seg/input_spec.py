"""The inputs of a model file: names, types and axes, defined once. docs/onnx.md has their formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from parotid_seg.contract import Grid

FREE = ("depth", "batch", "out", "height", "width")
"""Sizes that differ from chunk to chunk: input slices, computed samples, labelled slices, rows, columns."""


class InputSpec(NamedTuple):
    """One input.

    Attributes:
        name: in the graph.
        dtype: of its numbers.
        axes: names of its sizes: those of `FREE`, and "channels", "bounds" (2), "grid" and "offsets" of the model.
    """

    name: str
    dtype: type[np.float16] | type[np.float32]
    axes: tuple[str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape for sizes by name."""
        return tuple(sizes[axis] for axis in self.axes)


INPUT_SPECS = (
    InputSpec("slices", np.float16, ("channels", "depth", "height", "width")),
    InputSpec("window", np.float32, ("channels", "bounds")),
    InputSpec("rows", np.float32, ("grid", "height")),
    InputSpec("columns", np.float32, ("grid", "width")),
    InputSpec("neighbours", np.float32, ("batch", "offsets", "depth")),
    InputSpec("slices_back", np.float32, ("out", "batch")),
    InputSpec("rows_back", np.float32, ("height", "grid")),
    InputSpec("columns_back", np.float32, ("width", "grid")),
)


def model_sizes(grid: Grid, channels: int) -> dict[str, int]:
    """The sizes that a model fixes."""
    return {"channels": channels, "bounds": 2, "grid": grid.size, "offsets": len(grid.offsets_mm)}
