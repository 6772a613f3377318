"""All contours of a structure in one slice, as the voxels that they enclose together.

DICOM says of CLOSED_PLANAR contours only that each encloses an area (PS3.3, C.8.8.6). Planning systems draw a hole as a
contour inside another one, or as a keyhole. Copies and merges leave contours that repeat or cross each other. Every two
contours are therefore compared, and one rule decides:

- A contour that repeats another one, from any first point and in any direction, counts once. It repeats the other if
  neither area reaches more than three quarters of a voxel beyond the other and they share 85 % of their union; the
  union counts.
- A contour inside another one with a distance of a quarter of a voxel from its edge is a hole, one inside a hole is an
  island, and so on.
- Contours that overlap in any other way are joined: the structure is their union.
- An area that one contour encloses more than once, as where it runs past its first point, is inside. Exception: the
  hole of a keyhole, which lies between two edges that run through the same points in both directions.

Contours of type CLOSEDPLANAR_XOR are combined by exclusive or, as defined for that type, but repeated ones count once,
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from parotid_seg.dicom.contours import SAME_DECIMALS, Points, winding_numbers
from parotid_seg.errors import ScanError

SUBDIVISIONS = 4
"""Of a voxel along each side; areas are compared in these."""
HOLE_DISTANCE, REPEAT_DISTANCE = 1, 3
"""In subdivisions: least distance of a hole from the edge around it, and most distance of a repeated contour from the
first one."""
REPEAT_SHARED = 0.85
"""Least share of the union that a contour and its repetition have in common."""
SQUARE = np.ones((3, 3), dtype=np.bool_)
MOST_OVERLAPPING = 100
"""Most contours of one slice that overlap others. No organ has so many, and each pair takes time."""
MOST_HOLLOW = 0.5
"""Share of a contour's voxels above which holes are flagged."""

Area = NDArray[np.bool_]
Edge = tuple[tuple[float, ...], tuple[float, ...]]
"""Two points."""


class Combined(NamedTuple):
    """The area that the contours of a slice enclose together.

    Attributes:
        mask: bool (rows, columns).
        repeated: whether a contour repeats another one, or encloses an area more than once.
        overlapping: whether contours overlap in part.
        hollow: whether holes take more than `MOST_HOLLOW` of a contour.
    """

    mask: Area
    repeated: bool = False
    overlapping: bool = False
    hollow: bool = False


class Relation(Enum):
    """Relation of the areas of two contours; APART: they share at most an edge."""

    APART = auto()
    SAME = auto()
    INSIDE = auto()
    AROUND = auto()
    OVERLAPS = auto()


@dataclass(frozen=True, eq=False)
class _DrawnContour:
    """A contour, the voxels it encloses within a window of the slice, and whether it encloses some more than once."""

    points: Points
    window: tuple[slice, slice]
    voxels: Area
    twice: bool


def combined(closed: Sequence[Points], rows: int, columns: int, *, exclusive: bool = False) -> Combined:
    """The voxels that some contours of one slice enclose together, by the rule above.

    Args:
        closed: contours in coordinates of voxel centres, each of three or more points.
        rows, columns: of the slice.
        exclusive: whether all of them are of type CLOSEDPLANAR_XOR.

    Raises:
        ScanError: if more than `MOST_OVERLAPPING` contours overlap.
    """
    contours = [part for points in closed for part in _parts(points, rows, columns)]
    twice = any(each.twice for each in contours)
    counts = np.zeros((rows, columns), dtype=np.int32)
    for each in contours:
        counts[each.window] += each.voxels
    meets = [bool((counts[each.window][each.voxels] > 1).any()) for each in contours]
    meeting = [each for each, met in zip(contours, meets, strict=True) if met]
    if not meeting:
        return Combined(_union(contours, rows, columns), twice)
    if len(meeting) > MOST_OVERLAPPING:
        raise ScanError(f"{len(meeting)} contours overlap in one slice, expected at most {MOST_OVERLAPPING}")
    rest = _union([each for each, met in zip(contours, meets, strict=True) if not met], rows, columns)
    relations = _compared(meeting)
    same, overlaps, inside = (relations == each.value for each in (Relation.SAME, Relation.OVERLAPS, Relation.INSIDE))
    repeated, overlapping = twice or bool(same.any()), bool(overlaps.any())
    count, group_of = connected_components(same if exclusive else same | overlaps)
    groups = [np.flatnonzero(group_of == group) for group in range(count)]
    areas = [_union([meeting[place] for place in group], rows, columns) for group in groups]
    if exclusive:
        return Combined(rest | np.logical_xor.reduce(areas), repeated, overlapping)
    within = np.array(
        [[one is not other and bool(inside[np.ix_(one, other)].any()) for other in groups] for one in groups]
    )
    mask, hollow = _nested(areas, within)
    return Combined(rest | mask, repeated, overlapping, hollow)


def relation_of(first: Points, second: Points) -> Relation:
    """Relation of the first of two contours to the second, in coordinates of voxel centres."""
    low = np.maximum(first.min(axis=0), second.min(axis=0)) - 1
    high = np.minimum(first.max(axis=0), second.max(axis=0)) + 1
    if (high - low < 2).any():
        return Relation.APART
    rows, columns = (int(size) for size in np.ceil((high - low) * SUBDIVISIONS))
    one, other = (winding_numbers([(points - low) * SUBDIVISIONS], rows, columns) != 0 for points in (first, second))
    if not one.any() or not other.any():
        return Relation.APART
    if not (one & ~_grown(other, REPEAT_DISTANCE)).any() and not (other & ~_grown(one, REPEAT_DISTANCE)).any():
        alike = np.count_nonzero(one & other) >= REPEAT_SHARED * np.count_nonzero(one | other)
        return Relation.SAME if alike else Relation.OVERLAPS
    if not (_grown(one, HOLE_DISTANCE) & ~other).any():
        return Relation.INSIDE
    if not (_grown(other, HOLE_DISTANCE) & ~one).any():
        return Relation.AROUND
    return Relation.OVERLAPS if ndimage.binary_erosion(one & other, SQUARE).any() else Relation.APART


def _grown(area: Area, by: int) -> Area:
    return np.asarray(ndimage.binary_dilation(area, SQUARE, iterations=by))


def _parts(points: Points, rows: int, columns: int) -> list[_DrawnContour]:
    """A contour as it is, or if it encloses an area twice, its loops: a keyhole becomes its outline and its hole."""
    whole = _contour(points, rows, columns)
    return [_contour(loop, rows, columns) for loop in _loops(points)] if whole.twice else [whole]


def _loops(points: Points) -> list[Points]:
    """The closed paths of a contour without the edges through which it runs in both directions."""
    at = [tuple(point) for point in np.round(points, SAME_DECIMALS).tolist()]
    loops, path = [], list[Edge]()
    places: dict[Edge, int] = {}
    for start, end in zip(at, (*at[1:], at[0]), strict=True):
        back = places.get((end, start))
        if back is not None:
            loops.append(path[back + 1 :])
            for edge in path[back:]:
                places.pop(edge, None)
            del path[back:]
        elif start != end:
            places[start, end] = len(path)
            path.append((start, end))
    loops.append(path)
    return [np.array([start for start, _ in loop]) for loop in loops if len(loop) >= 3]


def _contour(points: Points, rows: int, columns: int) -> _DrawnContour:
    """A contour with its voxels in the smallest window that holds them."""
    first = np.clip(np.floor(points.min(axis=0)), 0, (rows, columns)).astype(int)
    stop = np.clip(np.ceil(points.max(axis=0)) + 1, first, (rows, columns)).astype(int)
    window = (slice(int(first[0]), int(stop[0])), slice(int(first[1]), int(stop[1])))
    around = winding_numbers([points - first], *(int(size) for size in stop - first))
    return _DrawnContour(points, window, around != 0, bool((abs(around) > 1).any()))


def _union(contours: Sequence[_DrawnContour], rows: int, columns: int) -> Area:
    mask = np.zeros((rows, columns), dtype=np.bool_)
    for each in contours:
        mask[each.window] |= each.voxels
    return mask


def _compared(contours: Sequence[_DrawnContour]) -> NDArray[np.int64]:
    """Values of `Relation` (contours, contours) of the first contour to the second."""
    turned = {Relation.INSIDE: Relation.AROUND, Relation.AROUND: Relation.INSIDE}
    relations = np.full((len(contours), len(contours)), Relation.APART.value)
    for one, other in combinations(range(len(contours)), 2):
        relation = relation_of(contours[one].points, contours[other].points)
        relations[one, other], relations[other, one] = relation.value, turned.get(relation, relation).value
    return relations


def _nested(areas: Sequence[Area], within: Area) -> tuple[Area, bool]:
    """Areas with holes, islands in the holes and so on; and whether holes take most of an area.

    Args:
        areas: bool (rows, columns) each.
        within: (areas, areas), whether the first is inside the second.
    """
    depths = within.sum(axis=1)
    mask, hollow = np.zeros_like(areas[0]), False
    for place in map(int, np.argsort(depths, kind="stable")):
        if depths[place] % 2 == 0:
            mask |= areas[place]
            holes = [
                areas[hole] for hole in np.flatnonzero(within[:, place]).tolist() if depths[hole] == depths[place] + 1
            ]
            hollow |= sum(int(hole.sum()) for hole in holes) > MOST_HOLLOW * int(areas[place].sum())
        else:
            mask &= ~areas[place]
    return mask, hollow
