"""Clean-up of a label map: one connected piece a gland."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from parotid_seg.scan.volume import Mask


def keep_largest_components(mask: Mask, labels: int) -> Mask:
    """Keep each gland's largest piece; smaller ones become background.

    Pieces are joined by faces, edges and corners (26 neighbours) and compared by voxel count; of equal ones the
    first in canonical order stays. Each gland is looked at by itself.

    Args:
        mask: label map (D, H, W).
        labels: number of labels, background included.

    Returns:
        A new label map; the input is not changed.
    """
    cleaned = np.zeros_like(mask)
    for value in range(1, labels):
        box = ndimage.find_objects(mask == value, max_label=1)[0]
        if box is None:
            continue
        pieces, count = ndimage.label(mask[box] == value, structure=np.ones((3, 3, 3)))
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:]))
        cleaned[box][pieces == largest] = value
    return cleaned
