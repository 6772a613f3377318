"""Bounding boxes of the labels of a map, without a visit to every background voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from parotid_seg.scan.volume import Mask

Box = tuple[slice, slice, slice]


def label_boxes(mask: Mask, count: int) -> Sequence[Box | None]:
    """The smallest box around each label of a map.

    `find_objects` visits every voxel, so it gets only the slices, rows and columns with labels, a fiftieth of a head
    scan. Those are found by maxima, which are vectorised.

    Args:
        mask: label map (D, H, W).
        count: labels are 1 to this.

    Returns:
        For each label its slices, rows and columns; None if it is absent.
    """
    part = [slice(0, 0)] * 3
    part[0] = _span(mask.reshape(len(mask), -1).max(axis=1, initial=0))
    plane = mask[part[0]].max(axis=0, initial=0)
    part[1], part[2] = _span(plane.max(axis=1, initial=0)), _span(plane.max(axis=0, initial=0))
    boxes = ndimage.find_objects(mask[tuple(part)], max_label=count)
    return [_moved(box, part) if box else None for box in boxes]


def _span(values: Mask) -> slice:
    """The range from the first to the last value that is not 0; empty if all are 0."""
    places = np.flatnonzero(values)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _moved(box: Sequence[slice], part: Sequence[slice]) -> Box:
    """Convert a box within a part to one within the whole."""
    z, y, x = (slice(side.start + by.start, side.stop + by.start) for side, by in zip(box, part, strict=True))
    return z, y, x
