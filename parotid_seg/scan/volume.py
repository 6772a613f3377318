"""A scan in memory: voxels in one fixed patient orientation, and the conversion back to storage order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import nibabel
import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from parotid_seg.flags import Flag

Voxels = NDArray[np.int16] | NDArray[np.float32]
Mask = NDArray[np.uint8]
T = TypeVar("T", bound=np.generic)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts coordinates, in both directions."""


@dataclass(frozen=True)
class Orientation:
    """The axis permutation and flips between storage order and canonical order (S, P, L).

    All arrays of the package are in canonical order: slices to superior, rows to posterior, columns to the patient's
    left.

    Attributes:
        axes: for each canonical axis, the storage axis it comes from.
        flips: for each canonical axis, whether storage runs in the opposite direction.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def from_affine(cls, affine: NDArray[np.float64]) -> Orientation:
        """The closest orientation of a (4, 4) voxel-to-RAS affine; oblique axes are assigned to the nearest patient
        axis."""
        ornt = nibabel.orientations.io_orientation(affine)
        towards_ras = {int(ras_axis): (axis, sign) for axis, (ras_axis, sign) in enumerate(ornt)}
        superior, anterior, right = towards_ras[2], towards_ras[1], towards_ras[0]
        return cls(
            axes=(superior[0], anterior[0], right[0]),
            flips=(bool(superior[1] < 0), bool(anterior[1] > 0), bool(right[1] > 0)),
        )

    def to_canonical(self, stored: NDArray[T]) -> NDArray[T]:
        """A view of a stored array (I, J, K) in canonical order (D, H, W)."""
        return np.transpose(stored, self.axes)[self._flip_slices()]

    def to_storage(self, canonical: NDArray[T]) -> NDArray[T]:
        """A view of a canonical array (D, H, W) in storage order (I, J, K)."""
        return np.transpose(canonical[self._flip_slices()], np.argsort(self.axes))

    def _flip_slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)


@dataclass(frozen=True)
class Volume:
    """A scan in canonical orientation.

    Attributes:
        voxels: intensities (C, D, H, W): channels, then canonical order (S, P, L); HU for CT. They may be a view of
            the stored voxels, with any strides.
        spacing_mm: distance between voxels along the same axes.
        orientation: converts back to storage order.
        flags: remarks on the file and its geometry.
        decoders: packages, with their versions, that decoded the file's pixels; none if they were not compressed.
        shear: volume of a voxel over the product of its spacings; below 1 where the axes are not at right angles.
    """

    voxels: Voxels
    spacing_mm: tuple[float, float, float]
    orientation: Orientation
    flags: tuple[Flag, ...] = ()
    decoders: tuple[str, ...] = ()
    shear: float = 1.0

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) * self.shear / 1000.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns (D, H, W)."""
        depth, height, width = self.voxels.shape[1:]
        return depth, height, width

    def without_voxels(self) -> Volume:
        """The same volume with intensities of 0 that take no memory."""
        return replace(self, voxels=np.broadcast_to(np.zeros((), self.voxels.dtype), self.voxels.shape))


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances between voxels along the storage axes (3,), in the unit of a (4, 4) affine."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Directions of the storage axes as text, such as "LPI"."""
    return "".join(str(code) for code in aff2axcodes(affine))
