"""Features of a segmented structure from which its expected DSC is computed (`calibration`).

They are taken at points `STEP_MM` apart, so that they hardly depend on the size of the voxels, and on intensities as
shares of the model's window.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from parotid_seg.scan.components import Box
from parotid_seg.scan.volume import Mask

STEP_MM = 3.0
FEATURES = ("volume", "side_ratio", "slice_overlap", "fill", "contrast")
"""Names: the logarithm of the volume in ml; the absolute logarithm of its ratio to the other side's volume, 0 without
one; DSC of all slices but the last with those above them; share of the smallest box around it; mean intensity inside
minus that of the shell of `STEP_MM` around it."""


def gland_features(
    mask: Mask,
    intensities: NDArray[np.floating] | NDArray[np.integer],
    window: tuple[float, float],
    spacing_mm: tuple[float, float, float],
    value: int,
    box: Box,
    volume_ml: float,
    other_ml: float,
) -> dict[str, float] | None:
    """Features of a structure by name, see `FEATURES`.

    Args:
        mask: labels (D, H, W) in canonical order.
        intensities: (D, H, W), of the first channel.
        window: intensities of 0 and 1.
        spacing_mm: of the voxels.
        value: the structure's label.
        box: around it.
        volume_ml: its volume.
        other_ml: that of the same structure on the other side, 0 if there is none.

    Returns:
        None for a structure so small that no point is in it.
    """
    from scipy import ndimage

    from parotid_seg.metrics import dice

    points = [_points(side, size, mm) for side, size, mm in zip(box, mask.shape, spacing_mm, strict=True)]
    at = np.ix_(*points)
    inside = mask[at] == value
    if not inside.any() or volume_ml <= 0:
        return None
    shell = ndimage.binary_dilation(inside) & ~inside
    low, high = window
    shares = np.clip((intensities[at].astype(np.float32) - low) / (high - low), 0.0, 1.0)
    (smallest,) = ndimage.find_objects(inside.astype(np.uint8))
    slices = inside[smallest]
    return {
        "volume": math.log(volume_ml),
        "side_ratio": abs(math.log(volume_ml / other_ml)) if other_ml > 0 else 0.0,
        "slice_overlap": dice(slices[:-1], slices[1:]) if len(slices) > 1 else 0.0,
        "fill": float(slices.mean()),
        "contrast": float(shares[inside].mean() - shares[shell].mean()) if shell.any() else 0.0,
    }


def _points(side: slice, size: int, step_mm: float) -> NDArray[np.intp]:
    """Indices of the voxels nearest to points `STEP_MM` apart, evenly around the middle of a box and beyond it by a
    point."""
    middle_mm = (side.start + side.stop - 1) / 2 * step_mm
    count = int((side.stop - 1 - side.start) / 2 * step_mm / STEP_MM) + 2
    points = (middle_mm + STEP_MM * np.arange(-count, count + 1)) / step_mm
    # Of a point half-way between two voxels it is always the upper one, whatever the rounding of `points`.
    places: NDArray[np.intp] = np.floor(points + 0.5 + 1e-6).astype(np.intp)
    return places[(places >= 0) & (places < size)]
