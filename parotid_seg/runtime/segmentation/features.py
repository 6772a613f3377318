"""Features of a scan and its segmented structures, which hardly depend on the size of the scan's voxels.

From `gland_features` the expected DSC of a structure is computed. They are taken at points `STEP_MM` apart, and on
intensities as shares of the model's window.

By `range_features` a scan outside the model's operating range is noticed. They are taken from what the network sees:
some slices through the structures, resampled to the model's grid and clipped to its window. Intensities are in HU for
CT, and for channels with a window from the scan in thousandths of it. Calibration and range are in the model file
(`parotid_seg.calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.scan.chunks import CroppedScan
from parotid_seg.scan.components import Box
from parotid_seg.scan.labels import side_of
from parotid_seg.scan.volume import Mask

STEP_MM = 3.0
FEATURES = ("volume", "side_ratio", "slice_overlap", "fill", "contrast")
"""Names: the logarithm of the volume in ml; the absolute logarithm of its ratio to the other side's volume, 0 without
one; DSC of all slices but the last with those above them; share of the smallest box around it; mean intensity inside
minus that of the shell of `STEP_MM` around it."""
MOST_SLICES = 12
"""Slices, evenly from the lowest to the highest with a structure."""
AIR = 0.1
"""Shares of the window below it are air."""
TISSUE = 0.15
"""Shares above it are tissue."""
SOFT = (0.4, 0.65)
"""Shares of soft tissue: 0 to 125 HU for a window of -200 to 300 HU."""
BONE = 0.8
"""Shares above it are bone: 200 HU for that window."""
BELOW_SKIN = (3, 4, 5)
"""Pixels of the grid below the skin whose mean is the intensity below the skin."""
SCAN_FEATURES = (
    "sharpness",
    "soft_tissue",
    "bone_behind",
    "distance_of_sides_mm",
    "turn_mm",
    "difference_of_sides",
    "difference_below_skin",
)
"""Names: mean absolute difference of a pixel and its four neighbours' mean, times four, within tissue (low in blurred
scans, high in noisy ones and with sharp kernels); median of soft tissue; bone behind the structures, in the upper third
of the slices less that in the lower third, as a share of both (missing without bone, and in one or two slices);
distance of the left structures' centre from the right ones' across the patient, and from front to back; difference of
the median intensities in the left and the right structures, and of the means below the skin beside them. Without
structures on both sides the last four are missing."""
STRUCTURE_FEATURES = ("intensity", "slice_overlap")
"""Names: mean intensity inside; DSC of neighbouring slices, see `gland_features`."""
LEAST_SKIN = 20
"""Pixels of the grid's skin beside a structure, fewer of which say nothing about its shape."""


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


class RangeFeatures(NamedTuple):
    """What is seen of a scan and its structures.

    Attributes:
        scan: features by name.
        structures: features of each structure by name.
        in_air: share of each structure that is air.
        straight: share of the skin beside each structure with a side that lies in the same column of the grid: high
            where the field of view ends instead of the patient.
    """

    scan: dict[str, float]
    structures: dict[str, dict[str, float]]
    in_air: dict[str, float]
    straight: dict[str, float]


class _Side(NamedTuple):
    """The structures of a side: middle (row, column), median intensity, mean below the skin (None if unseen)."""

    middle: tuple[float, float]
    intensity: float
    below_skin: float | None


def range_features(
    found: Sequence[str],
    labels: Mask,
    cropped: CroppedScan,
    boxes: Sequence[Box | None],
    contract: Contract,
    glands: Mapping[str, Mapping[str, float]],
) -> RangeFeatures:
    """Features of a scan and its structures; see `SCAN_FEATURES` and `STRUCTURE_FEATURES`.

    Args:
        found: the structures that count as found.
        labels: (D, h, w) within the grid, after clean-up.
        cropped: the scan within the grid.
        boxes: around the labels from 1 on.
        contract: the model's.
        glands: features of structures, see `gland_features`.
    """
    placed = {
        name: (value, box)
        for value, (name, box) in enumerate(zip(contract.labels[1:], boxes, strict=True), start=1)
        if name in found and box is not None
    }
    if not placed:
        return RangeFeatures({}, {}, {}, {})
    images, masks = _on_grid(labels, cropped, placed)
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    low, high = map(float, cropped.windows[0])
    scan, structures, straight = _of_image(images, low, high), {}, {}
    if masks:
        scan |= _bone_behind(images, masks)
    for name, mask in masks.items():
        structures[name] = {"intensity": low + (high - low) * float(images[mask].mean())}
        if name in glands:
            structures[name]["slice_overlap"] = glands[name]["slice_overlap"]
        if side := side_of(name):
            columns = _skin_beside(*_to_the_left(images, mask, side))[2]
            if columns.size >= LEAST_SKIN:
                straight[name] = float(np.bincount(columns).max() / columns.size)
    joined = {
        side: np.logical_or.reduce([mask for name, mask in masks.items() if side_of(name) == side])
        for side in ("left", "right")
        if any(side_of(name) == side for name in masks)
    }
    if len(joined) == 2:
        left, right = (_side(images, joined[side], side) for side in ("left", "right"))
        scan |= _between(left, right, contract.grid.spacing_mm, high - low)
    in_air = {name: float((images[mask] < AIR).mean()) for name, mask in masks.items()}
    return RangeFeatures(scan, structures, in_air, straight)


def _on_grid(
    labels: Mask, cropped: CroppedScan, placed: Mapping[str, tuple[int, Box]]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.bool_]]]:
    """Some slices (S, G, G) as shares of the window, and the masks of the structures on them."""
    first = min(box[0].start for _, box in placed.values())
    last = max(box[0].stop for _, box in placed.values()) - 1
    at = np.unique(np.linspace(first, last, min(MOST_SLICES, last - first + 1)).round().astype(np.intp))
    rows, columns = cropped.in_plane["rows"], cropped.in_plane["columns"].T
    low, high = (np.float32(each) for each in cropped.windows[0])
    shares = np.clip((cropped.voxels[0, at].astype(np.float32) - low) / (high - low), 0, 1)
    slices = labels[at]
    return rows @ shares @ columns, {
        name: rows @ (slices == value).astype(np.float32) @ columns > 0.5 for name, (value, _) in placed.items()
    }


def _of_image(images: NDArray[np.float32], low: float, high: float) -> dict[str, float]:
    """Features of the slices alone; `low` and `high` are the window."""
    tissue = images > TISSUE
    inner = _everywhere_near(_everywhere_near(tissue))
    detail = np.abs(
        4 * images[:, 1:-1, 1:-1]
        - images[:, 2:, 1:-1]
        - images[:, :-2, 1:-1]
        - images[:, 1:-1, 2:]
        - images[:, 1:-1, :-2]
    )[:, 1:-1, 1:-1][inner]
    values = images[:, 2:-2, 2:-2][inner]
    soft = values[(values > SOFT[0]) & (values < SOFT[1])]
    features = {"sharpness": (high - low) * float(detail.mean())} if detail.size else {}
    if soft.size:
        features["soft_tissue"] = low + (high - low) * float(np.median(soft))
    return features


def _bone_behind(images: NDArray[np.float32], masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """What bone behind the structures tells: the back of the head lies above, the neck below."""
    third = len(images) // 3
    last_row = max(int(np.nonzero(mask.any(axis=(0, 2)))[0][-1]) for mask in masks.values())
    bone = images[:, last_row + 1 :] > BONE
    upper, lower = np.count_nonzero(bone[len(bone) - third :]), np.count_nonzero(bone[:third])
    return {"bone_behind": float((upper - lower) / (upper + lower))} if upper + lower else {}


def _everywhere_near(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels but the outermost that are so, with their four neighbours."""
    inner: NDArray[np.bool_] = (
        where[:, 1:-1, 1:-1] & where[:, 2:, 1:-1] & where[:, :-2, 1:-1] & where[:, 1:-1, 2:] & where[:, 1:-1, :-2]
    )
    return inner


def _side(images: NDArray[np.float32], mask: NDArray[np.bool_], side: str) -> _Side:
    """The structures of a side, and what lies below the skin beside them; columns run to the patient's left."""
    size = images.shape[2]
    images, mask = _to_the_left(images, mask, side)
    at = np.nonzero(mask)
    slices, rows, skin = _skin_beside(images, mask)
    known = skin >= max(BELOW_SKIN)
    slices, rows, skin = slices[known], rows[known], skin[known]
    below = np.mean([images[slices, rows, skin - pixels] for pixels in BELOW_SKIN]) if known.any() else None
    column = float(at[2].mean())
    return _Side(
        (float(at[1].mean()), size - 1 - column if side == "right" else column),
        float(np.median(images[at])),
        None if below is None else float(below),
    )


def _to_the_left(
    images: NDArray[np.float32], mask: NDArray[np.bool_], side: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Both so that columns run outwards on a structure's side."""
    return (images[:, :, ::-1], mask[:, :, ::-1]) if side == "right" else (images, mask)


def _skin_beside(images: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """Slice, row and column of the first air outwards from each row of a structure; rows without air are left out."""
    size = images.shape[2]
    air = np.where(images < AIR, np.arange(size), size)
    nearest = np.minimum.accumulate(air[:, :, ::-1], axis=2)[:, :, ::-1]  # the first air from a pixel outwards
    slices, rows = np.nonzero(mask.any(axis=2))
    skin = nearest[slices, rows, size - 1 - mask[slices, rows, ::-1].argmax(axis=1)]
    known = skin < size
    return slices[known], rows[known], skin[known]


def _between(left: _Side, right: _Side, step_mm: float, width: float) -> dict[str, float]:
    """Features of both sides; `width` is that of the window."""
    features = {
        "distance_of_sides_mm": (left.middle[1] - right.middle[1]) * step_mm,
        "turn_mm": abs(left.middle[0] - right.middle[0]) * step_mm,
        "difference_of_sides": width * abs(left.intensity - right.intensity),
    }
    if left.below_skin is not None and right.below_skin is not None:
        features["difference_below_skin"] = width * abs(left.below_skin - right.below_skin)
    return features
