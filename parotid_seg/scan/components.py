"""Clean-up of a label map: one connected piece for each structure that a patient has once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from parotid_seg.scan.boxes import label_boxes
from parotid_seg.scan.labels import side_of
from parotid_seg.scan.volume import Mask


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
