"""Several labels in a byte, so that fewer bytes go from a GPU to the host.

A model has few labels: three need two bits each. `rewriting.packed_labels` lets a graph pack them.
"""

from __future__ import annotations

import numpy as np

from parotid_seg.runtime.engines.padding import Size
from parotid_seg.scan.volume import Mask

PACKED = "packed"
"""Name of the size of a packed output (1, packed)."""


def labels_per_byte(count: int) -> int:
    """How many labels a byte holds if there are so many different ones: 8, 4, 2 or 1. It divides `STEPS["out"]`."""
    return next(number for number in (8, 4, 2, 1) if count <= 1 << (8 // number))


def unpacked(packed: Mask, number: int, size: Size) -> Mask:
    """The labels of a chunk without its padding.

    Args:
        packed: (S, H, W) for number * S slices: the first S slices are in the lowest bits of each byte, the next S in
            the next bits, and so on.
        number: labels in a byte.
        size: slices, rows and columns without padding.
    """
    part = np.ascontiguousarray(packed[:, : size.height, : size.width])
    labels = np.empty((number, *part.shape), np.uint8)
    for place, slices in enumerate(labels):
        np.right_shift(part, place * (8 // number), out=slices)
    labels &= (1 << (8 // number)) - 1
    return labels.reshape(-1, *part.shape[1:])[: size.out]
