"""Whether a label has the parotid glands of both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDEST_MM = 80.0
"""Largest width of a parotid gland in mm, see `width_mm`: a label that is wider has both glands. The widest of 128
contoured glands of OpenKBP has 27 mm; the left and right ones of 64 patients together have 102 mm or more."""
END = 0.1
"""Share of a structure at either end that is not counted, as stray contours may lie there."""


def width_mm(profile: NDArray[np.integer], spacing_mm: float) -> float:
    """Width of a structure from side to side, without `END` at either end.

    Args:
        profile: its voxels in each column.
        spacing_mm: of the columns.
    """
    first, last = np.searchsorted(np.cumsum(profile) / profile.sum(), (END, 1.0 - END))
    return float(last - first) * spacing_mm
