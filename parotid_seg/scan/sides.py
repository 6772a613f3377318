"""On which side of the patient's middle a structure lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parotid_seg.scan.labels import LEFT

ASIDE_MM = 20.0
"""A structure whose middle lies so far (mm) to one side of the patient's has a side. Parotid glands lie 44 mm or more
beside the middle."""
MOST_BEYOND = 0.1
"""Largest share of a parotid gland so far on the other side: a label with more of it has both glands. Of 192 contoured
glands of OpenKBP one has any voxel there (0.15 %, a stray contour); all others lie 23 mm or more on their own side."""


def share_beyond(profile: NDArray[np.integer], middle: float, spacing_mm: float, side: str) -> float:
    """Share of a structure that lies more than `ASIDE_MM` from the middle, on the side that is not its own.

    Args:
        profile: its voxels in each column; columns run to the patient's left.
        middle: column of the patient's middle.
        spacing_mm: of the columns.
        side: its own, "left" or "right".
    """
    left_mm = (np.arange(len(profile)) - middle) * spacing_mm
    beyond = (-left_mm if side == LEFT else left_mm) > ASIDE_MM
    return float(profile[beyond].sum() / profile.sum())
