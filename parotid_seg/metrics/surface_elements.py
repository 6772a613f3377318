"""The surface of a mask by marching cubes, in elements of one cube of 2 x 2 x 2 voxel centres each."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from numpy.typing import NDArray

CORNERS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], np.uint8)
"""Bit of each corner of a cube of 2 x 2 x 2 voxel centres in its code."""
TRIANGLES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0),) * 2,
    0b00000110: ((1, 1, 1),) * 2,
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0),) * 2,
    0b00010110: ((1, 1, 1),) * 3,
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1),) * 2,
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0),) * 4,
    0b01101001: ((1, 1, 1),) * 4,
}
"""Triangles of the marching cubes surface in a cube with these corners inside: sizes of the components of each one's
normal in eighths of the area of a voxel's face. All other codes are rotations, mirror images or complements of these.
From the table of the package surface-distance (DeepMind, Apache-2.0)."""


def corner_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Code of every cube of 2 x 2 x 2 voxel centres by the bits of `CORNERS`, also of those over the edge."""
    padded = np.pad(mask, 1)
    codes = np.zeros(np.array(padded.shape) - 1, np.uint8)
    for corner, bit in np.ndenumerate(CORNERS):
        part = tuple(slice(at, at + size) for at, size in zip(corner, codes.shape, strict=True))
        codes |= padded[part] * bit
    return codes


def areas_mm2(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Area in mm^2 of the surface within a cube, by its code (256,).

    Args:
        spacing_mm: voxel size along each axis.
    """
    depth, height, width = spacing_mm
    faces = np.array([height * width, depth * width, depth * height]) / 8.0
    return np.asarray(np.linalg.norm(_normals() * faces, axis=2).sum(axis=1))


@cache
def _normals() -> NDArray[np.float64]:
    """Normals of `TRIANGLES` for every code (256, 4, 3), filled up with zeros."""
    normals = np.zeros((256, 4, 3))
    for code, triangles in TRIANGLES.items():
        inside = CORNERS & code > 0
        for axes in itertools.permutations(range(3)):
            for flips in itertools.product((1, -1), repeat=3):
                turned = inside.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
                same = int(CORNERS[turned].sum())
                normals[[same, 255 - same], : len(triangles)] = np.array(triangles)[:, axes]
    return normals
