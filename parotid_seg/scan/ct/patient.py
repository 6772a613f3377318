"""What of a CT's tissue is the patient, and what a table, a head rest or arms beside the head."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEAST_THICK_MM = 20.0
"""What is thinner within a slice is not the patient, such as a table."""
IN_SLICE = np.array((np.zeros((3, 3)), ((0, 1, 0), (1, 1, 1), (0, 1, 0)), np.zeros((3, 3))), np.bool_)
"""Neighbours of one piece: those in the same slice."""


def of_patient(tissue: NDArray[np.bool_], step_mm: tuple[float, float]) -> NDArray[np.bool_]:
    """The tissue of the patient: the largest piece of each slice, without what is thinner than `LEAST_THICK_MM`.

    Args:
        tissue: what is as bright as tissue (slices, rows, columns).
        step_mm: of rows and columns.
    """
    from scipy import ndimage

    reach = [math.ceil((LEAST_THICK_MM / step - 1) / 2) for step in step_mm]
    thick = ndimage.minimum_filter(tissue, [1, *(2 * each + 1 for each in reach)])
    pieces, _ = ndimage.label(thick, IN_SLICE)
    sizes = np.bincount(pieces.ravel())[pieces] * thick
    largest = thick & (sizes == sizes.max(axis=(1, 2), keepdims=True))
    patient: NDArray[np.bool_] = tissue & ndimage.maximum_filter(largest, [1, *(2 * each + 3 for each in reach)])
    return patient
