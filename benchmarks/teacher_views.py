"""What the network of `teacher.py` sees: the region around one gland, all of them as if on the patient's right.

A left gland is seen in the mirror, so the network learns one gland from both sides of every patient. Nothing is
resampled twice: rotation, scale, warp and shift are part of the positions at which the scan's voxels are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parotid_seg.runtime.segmentation.locate import Prepared
from parotid_seg.scan.volume import Mask

SPACING_MM = 3.0
"""Of the region's voxels. The scans have 2.7 to 5.4 mm in plane and 1.5 to 3.3 mm between slices."""
SHAPE = (32, 40, 32)
"""Slices, rows and columns: 96 x 120 x 96 mm. Of 160 contoured glands of the training patients 95 % have no more than
69 x 59 x 48 mm."""
ROTATION_DEG = (15.0, 10.0, 10.0)
"""Largest rotation about the axes of slices, rows and columns."""
SCALE, STRETCH = 0.15, 0.05
"""Largest logarithm of the scale of all axes, and of each."""
SHIFT_MM, WARP_MM = 12.0, 3.0
"""Largest shift along each axis, and standard deviation of the warp at its points, 24 to 30 mm apart."""
CONTRAST, OFFSET, GAMMA, NOISE = 0.15, 0.05, 0.2, 0.05
"""Largest change of contrast, offset, logarithm of gamma, and noise; the window is 1 wide."""
COARSEST, BLUR = 2.0, 1.0
"""Largest voxel of a low resolution, and largest standard deviation of the blur, in voxels."""


@dataclass(frozen=True)
class Region:
    """The voxels of a scan around one gland.

    Attributes:
        name: of the patient.
        voxels: (1 or 2, D, H, W): intensities, 0 and 1 at the window's ends, and 1 where the gland is contoured.
        part: where in the scan they lie.
        origin_mm: position of the first voxel from the region's centre.
        spacing_mm: of the voxels.
        mirrored: whether the network sees it in the mirror.
    """

    name: str
    voxels: Tensor
    part: tuple[slice, slice, slice]
    origin_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    mirrored: bool


def region_of(
    name: str,
    prepared: Prepared,
    centre: tuple[float, float, float],
    *,
    mirrored: bool,
    contoured: Mask | None = None,
) -> Region:
    """Cut a region out of a scan; beyond the scan's ends the network sees air.

    Args:
        name: of the patient.
        prepared: its scan, of one channel.
        centre: slice, row and column.
        mirrored: whether the network sees it in the mirror.
        contoured: (D, H, W), not 0 where the gland is contoured; None for inference, which needs no margin.
    """
    volume, windows = prepared.volume, prepared.windows
    margin_mm = 0.0 if contoured is None else SHIFT_MM + 3 * WARP_MM
    largest = 1.0 if contoured is None else math.exp(SCALE + STRETCH) * 1.15  # 1.15: corners of a rotated region
    part = []
    for middle, size, step, voxels in zip(centre, SHAPE, volume.spacing_mm, volume.shape, strict=True):
        reach = (size * SPACING_MM / 2 * largest + margin_mm) / step
        part.append(slice(max(0, math.floor(middle - reach)), min(voxels, math.ceil(middle + reach) + 1)))
    rows = (part[0], part[1], part[2])
    low, high = (float(end) for end in windows[0])
    seen = [((volume.voxels[(0, *rows)].astype(np.float32) - low) / (high - low)).clip(0, 1)]
    if contoured is not None:
        seen.append((contoured[rows] > 0).astype(np.float32))
    origin = [(side.start - at) * step for side, at, step in zip(part, centre, volume.spacing_mm, strict=True)]
    return Region(
        name, torch.from_numpy(np.stack(seen)), rows, (origin[0], origin[1], origin[2]), volume.spacing_mm, mirrored
    )


def grid_mm() -> Tensor:
    """Positions (*SHAPE, 3) of the region's voxels from its centre: slices, rows, columns."""
    axes = [(torch.arange(size) - (size - 1) / 2) * SPACING_MM for size in SHAPE]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def seen(region: Region, positions_mm: Tensor) -> Tensor:
    """What the network sees at positions (..., 3) of the region: (1, channels, ...), linear between the voxels."""
    if region.mirrored:
        positions_mm = positions_mm * torch.tensor([1.0, 1.0, -1.0])
    index = (positions_mm - torch.tensor(region.origin_mm)) / torch.tensor(region.spacing_mm)
    return _read(region.voxels, index)


def scores_back(scores: Tensor, region: Region) -> Tensor:
    """Scores (D, H, W) of the network at the voxels of a region's scan; 0 outside what the network saw."""
    axes = [
        torch.arange(size) * step + first
        for size, step, first in zip(region.voxels.shape[1:], region.spacing_mm, region.origin_mm, strict=True)
    ]
    if region.mirrored:
        axes[2] = -axes[2]
    positions_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    index = positions_mm / SPACING_MM + (torch.tensor(SHAPE) - 1) / 2
    return _read(scores[None], index)[0, 0]


def _read(voxels: Tensor, index: Tensor) -> Tensor:
    """Voxels (C, D, H, W) at indices (..., 3), 0 beyond the ends: (1, C, ...)."""
    last = torch.tensor(voxels.shape[1:]) - 1
    places = (2 * index / last.clamp(min=1) - 1).flip(-1)
    return F.grid_sample(voxels[None], places[None], align_corners=True)


def augmented(region: Region, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One example for training.

    Args:
        region: with its contours.
        generator: of all random numbers.

    Returns:
        The image (1, 1, *SHAPE) and shares of background and gland (1, 2, *SHAPE).
    """
    voxels = seen(region, _moved(grid_mm(), generator))
    image, gland = voxels[:, :1], voxels[:, 1:]
    image = _blurred(_coarse(image, generator), generator)
    return _changed(image, generator), torch.cat([1 - gland, gland], dim=1)


def _draw(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _moved(positions_mm: Tensor, generator: torch.Generator) -> Tensor:
    """Positions rotated, scaled, warped and shifted."""
    matrix = torch.eye(3)
    for axis, most in enumerate(ROTATION_DEG):
        angle = math.radians(_draw(generator, -most, most))
        first, second = (other for other in range(3) if other != axis)
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    scale = _draw(generator, -SCALE, SCALE) + STRETCH * (2 * torch.rand(3, generator=generator) - 1)
    shift = SHIFT_MM * (2 * torch.rand(3, generator=generator) - 1)
    moved = positions_mm @ (matrix * scale.exp()) + shift
    if _draw(generator, 0, 1) < 0.5:
        points = torch.randn(1, 3, 5, 5, 5, generator=generator) * _draw(generator, 0, WARP_MM)
        warp = F.interpolate(points, size=SHAPE, mode="trilinear", align_corners=True)
        moved = moved + warp[0].permute(1, 2, 3, 0)
    return moved


def _coarse(image: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the images as if from larger voxels."""
    if _draw(generator, 0, 1) >= 0.25:
        return image
    factor = _draw(generator, 1, COARSEST)
    small = F.interpolate(image, size=[round(size / factor) for size in SHAPE], mode="trilinear")
    return F.interpolate(small, size=SHAPE, mode="trilinear")


def _blurred(image: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the images with Gaussian blur."""
    if _draw(generator, 0, 1) >= 0.25:
        return image
    taps = torch.exp(-(torch.arange(-2, 3) ** 2) / (2 * _draw(generator, 0.4, BLUR) ** 2))
    taps = taps / taps.sum()
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = 5, 2
        image = F.conv3d(image, taps.view(shape), padding=padding)
    return image


def _changed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast, offset and gamma of tissue, and noise in half of the images; air stays air."""
    contrast, offset = 1 + _draw(generator, -CONTRAST, CONTRAST), _draw(generator, -OFFSET, OFFSET)
    gamma = math.exp(_draw(generator, -GAMMA, GAMMA))
    changed = ((image - 0.5) * contrast + 0.5 + offset).clamp(0, 1) ** gamma
    if _draw(generator, 0, 1) < 0.5:
        changed = changed + _draw(generator, 0, NOISE) * torch.randn(image.shape, generator=generator)
    return (changed * (image > 0.02)).clamp(0, 1)
