"""Pieces of a label map: bounding boxes, and the clean-up to one piece for each structure that a patient has once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from parotid_seg.scan.labels import side_of
from parotid_seg.scan.volume import Mask

Box = tuple[slice, slice, slice]


def keep_largest_components(mask: Mask, labels: Sequence[str]) -> Mask:
    """Keep the largest piece of each structure with a side in its name; smaller ones become background.

    Other structures stay unchanged: there may be several tumours, and one label may mean both glands.

    Pieces are connected by faces, edges and corners (26 neighbours) and compared by voxel count; of equal ones the
    first in canonical order stays. Each structure is processed separately.

    Args:
        mask: label map (D, H, W).
        labels: label names by value, background first.

    Returns:
        A new label map; the input is not changed.
    """
    from scipy import ndimage

    cleaned = mask.copy()
    for value, box in enumerate(label_boxes(mask, len(labels) - 1), start=1):
        if box is None or not side_of(labels[value]):
            continue
        pieces, count = ndimage.label(mask[box] == value, structure=np.ones((3, 3, 3)))
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
            cleaned[box][(pieces > 0) & (pieces != largest)] = 0
    return cleaned


CLEAN_UP_RULES: tuple[Callable[[Mask, Sequence[str]], Mask], ...] = (keep_largest_components,)
"""Rules in their order; each gets a label map (D, H, W) and the label names by value, and returns a new map."""


def clean_labels(mask: Mask, labels: Sequence[str]) -> Mask:
    """A model's label map after all of `CLEAN_UP_RULES`.

    Args:
        mask: label map (D, H, W).
        labels: label names by value, background first.
    """
    for rule in CLEAN_UP_RULES:
        mask = rule(mask, labels)
    return mask


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
    from scipy import ndimage

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
