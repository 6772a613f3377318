"""One slice of a mask as outlines, and outlines as a mask.

Outlines run halfway between the centres of voxels inside and outside (marching squares), in coordinates of voxel
centres: (row, column), with (0, 0) the centre of the first voxel. Every centre is at least a third of a voxel away from
all outlines, so the outlines reproduce the mask exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Corners (N, 2) of a closed outline as row and column; the last is joined to the first."""

BLOCK = 1024
"""Edges that are rasterised at once; bounds the memory."""
SAME_DECIMALS = 6
"""Decimals of voxel coordinates that count; removes the rounding errors of an affine."""


def outlines(inside: NDArray[np.bool_]) -> list[Points]:
    """Outlines of the pieces of one slice, each of at least three points.

    A hole is joined to its piece by a channel of no width (a keyhole), so that every piece is one outline. Voxels that
    touch at a corner only are pieces of their own. Points on a straight line are left out.

    Args:
        inside: (rows, columns).
    """
    shown = np.argwhere(inside)
    if not len(shown):
        return []
    first, last = shown.min(axis=0), shown.max(axis=0) + 1
    padded = np.pad(inside[first[0] : last[0], first[1] : last[1]], 1).astype(np.float64)
    pieces: Any = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    joined = []
    for points, offsets in zip(*pieces, strict=True):
        rings = [_corners(points[start : stop - 1, ::-1]) for start, stop in pairwise(offsets)]
        joined.append(_joined(rings) + (first - 1))
    return joined


def _corners(ring: Points) -> Points:
    """A ring without the points on its straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[turns])


def _joined(rings: list[Points]) -> Points:
    """An outer ring with its holes joined to it.

    A channel starts at the topmost corner of a hole (of several the rightmost) and runs to the right, between two rows
    of voxels, to the first ring that it meets. That is the outer ring or a hole that is already joined, because holes
    are joined in the order of their topmost, rightmost corners.
    """
    ring = rings[0]
    holes = [np.roll(hole, -_channel_start(hole), axis=0) for hole in rings[1:]]
    for hole in sorted(holes, key=lambda hole: (hole[0, 0], -hole[0, 1])):
        edge, column = _met(ring, hole[0])
        end = np.array([[hole[0, 0], column]])
        ring = np.concatenate([ring[: edge + 1], end, hole, hole[:1], end, ring[edge + 1 :]])
    return np.asarray(ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)])


def _channel_start(hole: Points) -> int:
    top = np.flatnonzero(hole[:, 0] == hole[:, 0].min())
    return int(top[np.argmax(hole[top, 1])])


def _met(ring: Points, start: NDArray[np.float64]) -> tuple[int, float]:
    """Index of the first edge of a ring that a line to the right from a point meets, and the column of that point."""
    starts, ends = ring, np.roll(ring, -1, axis=0)
    low, high = np.minimum(starts[:, 0], ends[:, 0]), np.maximum(starts[:, 0], ends[:, 0])
    crossing = np.flatnonzero((low <= start[0]) & (high >= start[0]) & (low < high))
    starts, ends = starts[crossing], ends[crossing]
    columns = starts[:, 1] + (start[0] - starts[:, 0]) * (ends[:, 1] - starts[:, 1]) / (ends[:, 0] - starts[:, 0])
    columns[columns <= start[1]] = np.inf
    nearest = int(np.argmin(columns))
    return int(crossing[nearest]), float(columns[nearest])


def filled(closed: Sequence[Points], rows: int, columns: int) -> NDArray[np.bool_]:
    """The voxels of one slice whose centres lie inside an odd number of outlines (even-odd rule).

    Exact except for rounding: every edge is intersected with every row of centres. A centre on an outline counts as
    inside if the inside lies to its right or, on a horizontal edge, below. Parts outside the slice are ignored.

    Args:
        closed: outlines in coordinates of voxel centres.

    Returns:
        (rows, columns)
    """
    return (winding_numbers(closed, rows, columns) & 1).astype(np.bool_)


def winding_numbers(closed: Sequence[Points], rows: int, columns: int) -> NDArray[np.int16]:
    """How often outlines run round the centre of each voxel of one slice, negative in the other direction.

    Args:
        closed: outlines in coordinates of voxel centres.

    Returns:
        (rows, columns)
    """
    changes = np.zeros((rows, columns + 1), dtype=np.int16)
    for points in closed:
        starts = np.round(points, SAME_DECIMALS)
        ends = np.roll(starts, -1, axis=0)
        for start in range(0, len(starts), BLOCK):
            _cross(changes, starts[start : start + BLOCK], ends[start : start + BLOCK])
    return np.cumsum(changes[:, :columns], axis=1, dtype=np.int16)


def _cross(changes: NDArray[np.int16], starts: Points, ends: Points) -> None:
    """Count a turn from the first voxel on to the right of where an edge crosses a row of centres, for all edges."""
    rows, columns = changes.shape
    upward = starts[:, 0] > ends[:, 0]
    upper, lower = np.where(upward[:, None], ends, starts), np.where(upward[:, None], starts, ends)
    first = np.clip(np.ceil(upper[:, 0]), 0, rows).astype(np.int64)
    stop = np.clip(np.ceil(lower[:, 0]), 0, rows).astype(np.int64)
    edge = np.repeat(np.arange(len(starts)), stop - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - (stop - first), stop - first) + first[edge]
    upper, lower = upper[edge], lower[edge]
    crossing = upper[:, 1] + (row - upper[:, 0]) * (lower[:, 1] - upper[:, 1]) / (lower[:, 0] - upper[:, 0])
    column = np.clip(np.ceil(crossing), 0, columns - 1).astype(np.int64)
    np.add.at(changes, (row, column), np.where(upward[edge], -1, 1))
