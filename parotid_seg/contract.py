"""The contract of a model file: the description that training, export and runtime share, and the inputs of its graph.

The contract is stored as JSON in the ONNX file's `metadata_props`. The runtime reads it and never guesses: a missing
field or another version is an error that states what was expected. The inputs are the same for every model;
docs/onnx.md has their formulas.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from parotid_seg.calibration import Calibration, OperatingRange
from parotid_seg.errors import InputError, ModelError, RecordError
from parotid_seg.records import convert, parse

METADATA_KEY = "parotid_seg.contract"
SCHEMA_VERSION = 7
PRECISIONS = ("fp32", "fp16", "int8")
LARGEST_GRID = 2048
"""Most pixels along a side."""
MOST_LABELS = 256
"""Label maps hold bytes."""
BACKGROUND = "background"
"""The name of label 0."""
FREE = ("depth", "batch", "out", "height", "width")
"""Sizes that differ from chunk to chunk: input slices, computed samples, labelled slices, rows, columns."""
IGNORE = "ignore"
"""nnU-Net's name for unlabelled voxels. It is never a label of a model."""


@dataclass(frozen=True)
class Grid:
    """The model's own sampling of a scan, in patient millimetres.

    Attributes:
        size: pixels along each side of the square in-plane grid.
        spacing_mm: distance between its pixels.
        kernel_mm: half width of the in-plane low-pass (triangle) filter. Scans finer than this are smoothed to it,
            so that a 1 mm and a 4 mm scan of one patient look alike to the network.
        offsets_mm: positions along the patient's axis, relative to the slice to segment, that become the
            network's input channels (2.5-D).
        slice_kernel_mm: half width of the filter between slices.
        slice_step_mm: largest distance between the slices that the network segments, every n-th of the scan (every
            slice if they lie further apart); scores in between are interpolated.
    """

    size: int = 96
    spacing_mm: float = 2.25
    kernel_mm: float = 4.0
    offsets_mm: tuple[float, ...] = (-24.0, -16.0, -10.0, -6.0, -3.0, 0.0, 3.0, 6.0, 10.0, 16.0, 24.0)
    slice_kernel_mm: float = 3.0
    slice_step_mm: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets_mm", tuple(float(offset) for offset in self.offsets_mm))
        if not self.size <= LARGEST_GRID:
            raise InputError(f"grid.size: found {self.size}, expected at most {LARGEST_GRID}")
        for name in ("size", "spacing_mm", "kernel_mm", "slice_kernel_mm", "slice_step_mm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"grid.{name}: found {value}, expected a positive number")
        if not self.offsets_mm or not all(math.isfinite(offset) for offset in self.offsets_mm):
            raise InputError(f"grid.offsets_mm: found {self.offsets_mm}, expected at least one finite offset")


@dataclass(frozen=True)
class Contract:
    """Everything that must be known to run a model file and to trust its output.

    Attributes:
        labels: label names by value, from 0 (background) upwards without a gap.
        channels: modality of each input channel, for example ("CT",) or ("T1", "T2", "STIR").
        windows: for each channel the intensities mapped to 0 and 1 at the network's entrance, HU for CT; None where
            they come from the scan itself (see `scan.intensity.window_of`). Intensities outside are clipped.
        grid: the model's sampling of a scan.
        precision: type the network computes in ("fp32", "fp16", "int8").
        weights: type the weights are stored in ("fp32", "fp16").
        opset: ONNX operator set.
        graph_sha256: SHA-256 of the file's graph, weights included, as `graph_hash` computes it.
        training: data, preset, epochs and scores, as written by `parotid-seg train`.
        cost: "parameters" of the network, and "multiply_adds" of one sample (one slice), resampling included.
        verification: record of the checks of `parotid-seg export`; empty before them.
        calibrations: what is known of the quality of its masks; empty for a model that is not calibrated.
        operating_range: the scans it is made for; None if it is not stated.
        schema_version: version of this schema.
    """

    labels: tuple[str, ...]
    channels: tuple[str, ...]
    windows: tuple[tuple[float, float] | None, ...]
    grid: Grid
    precision: str = "fp32"
    weights: str = "fp32"
    opset: int = 20
    graph_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    calibrations: tuple[Calibration, ...] = ()
    operating_range: OperatingRange | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("labels", "channels", "calibrations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        windows = tuple(None if window is None else tuple(window) for window in self.windows)
        object.__setattr__(self, "windows", windows)
        if len(self.labels) < 2 or self.labels[0] != BACKGROUND:
            raise InputError(f"labels: found {self.labels}, expected 'background' and at least one structure")
        if len(self.labels) > MOST_LABELS or len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise InputError(f"labels: found {self.labels}, expected at most {MOST_LABELS} different names")
        if any(label.strip().casefold() == IGNORE for label in self.labels):
            raise InputError(f"labels: found {self.labels}, expected structures only: 'ignore' marks what is not known")
        if not self.channels or len(windows) != len(self.channels):
            raise InputError(f"windows: found {len(windows)} for {len(self.channels)} channels, expected one for each")
        for window in windows:
            if window is not None and (len(window) != 2 or not window[0] < window[1]):
                raise InputError(f"windows: found {window}, expected two rising intensities")
        calibrated = [label for each in self.calibrations for label in each.structures]
        if len(set(calibrated)) < len(calibrated) or not set(calibrated) <= set(self.labels[1:]):
            raise InputError(f"calibrations: found {', '.join(calibrated)}, expected each of the labels at most once")
        for name in ("precision", "weights"):
            if getattr(self, name) not in PRECISIONS:
                raise InputError(f"{name}: found {getattr(self, name)!r}, expected one of: {', '.join(PRECISIONS)}")

    def to_json(self) -> str:
        """The contract as JSON text, keys in a fixed order."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Contract:
        """Read a contract back.

        Args:
            text: JSON from `to_json`.
            where: beginning of error messages.

        Raises:
            ModelError: if it is of another schema version, incomplete, has a value of another type, or has fields that
                this version does not know.
        """
        try:
            return convert(
                parse(text),
                cls,
                version=SCHEMA_VERSION,
                advice="export the checkpoint again with this version of parotid-seg",
            )
        except RecordError as error:
            raise ModelError(f"{where}: the model's contract is not usable: {error.reason}") from error


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
