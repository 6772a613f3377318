"""A planned dose in the patient: its values at points between its voxels, and the mean dose of structures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from parotid_seg.errors import ScanError
from parotid_seg.flags import DOUBTFUL_PLACE, Flag
from parotid_seg.scan.intensity import intensities_of
from parotid_seg.scan.nifti import geometry_in, is_own_mask
from parotid_seg.scan.nifti_file import read_stored, shape_in
from parotid_seg.scan.volume import Mask, Voxels

MOST_LABELS = 10
"""Most values of a NIfTI file of whole numbers that is taken for a label map."""
EDGE = 1e-3
"""Share of a voxel by which a point may lie beyond the outer points of a dose: rounding."""
SLAB_VOXELS = 1 << 20
"""Voxels of a mask that are sampled at once: about 100 MB."""
LARGEST_GY = 1e5
"""Highest dose that is read; next to a source of brachytherapy it may be thousands."""
LARGEST_NIFTI_GY = 500.0
"""Highest dose of a NIfTI file, which states no unit: in cGy a plan would be above it."""
MOST_BELOW_0 = 0.01
"""Most negative dose, as a share of the highest: what smoothing leaves. A difference of doses has more."""


@dataclass(frozen=True, eq=False)
class DoseGrid:
    """A dose at points in the patient; between them it is interpolated linearly.

    Attributes:
        stored: (K, J, I), the dose in units of `scaling`.
        scaling: Gy per stored unit.
        offsets: (K,), rising: positions of the planes along the first axis.
        affine: (4, 4), from (offset, j, i, 1) to the patient's right, front and head in mm (RAS).
        flags: remarks on it.
    """

    stored: NDArray[np.number]
    scaling: float
    offsets: NDArray[np.float64]
    affine: NDArray[np.float64]
    flags: tuple[Flag, ...] = ()

    def at(self, points_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The dose in Gy at points (N, 3) in RAS, and which of them (N,) lie within the grid."""
        inverse = np.linalg.inv(self.affine)
        offset, row, column = inverse[:3, :3] @ points_mm.T + inverse[:3, 3:]
        planes = np.arange(len(self.offsets), dtype=np.float64)
        first, last = self.offsets[[0, -1]] + EDGE * np.array([-1, 1]) * np.diff(self.offsets)[[0, -1]]
        inside = (offset >= first) & (offset <= last)
        for place, size in zip((row, column), self.stored.shape[1:], strict=True):
            inside &= (place >= -EDGE) & (place <= size - 1 + EDGE)
        at = np.stack([np.interp(offset, self.offsets, planes), row, column])
        return map_coordinates(self.stored, at, np.float64, order=1, mode="nearest") * self.scaling, inside


class StructureDose(NamedTuple):
    """The dose of a structure.

    Attributes:
        mean_gy: mean over its voxels within the dose grid; None if there are none.
        outside: share of its voxels outside the dose grid.
    """

    mean_gy: float | None
    outside: float


def structure_doses(labels: Mask, affine: NDArray[np.float64], dose: DoseGrid) -> dict[int, StructureDose]:
    """The mean dose of every structure of a label map, by its value: the dose at the centres of its voxels.

    Args:
        labels: uint8 (I, J, K) in storage order; 0 is no structure.
        affine: (4, 4), from a voxel's indices to RAS in mm.
        dose: on any grid of the same patient coordinates.
    """
    sums, inside, counts = np.zeros(256), np.zeros(256), np.zeros(256)
    step = max(1, SLAB_VOXELS // (labels.shape[1] * labels.shape[2]))
    for start in range(0, labels.shape[0], step):
        part = labels[start : start + step]
        at = np.argwhere(part)
        values = part[tuple(at.T)]
        gray, within = dose.at((at + np.array([start, 0, 0])) @ affine[:3, :3].T + affine[:3, 3])
        sums += np.bincount(values[within], gray[within], 256)
        inside += np.bincount(values[within], minlength=256)
        counts += np.bincount(values, minlength=256)
    return {
        int(value): StructureDose(
            float(sums[value] / inside[value]) if inside[value] else None, float(1 - inside[value] / counts[value])
        )
        for value in np.flatnonzero(counts)
    }


def read_nifti_dose(path: Path) -> DoseGrid:
    """Read a dose in Gy from a NIfTI file.

    Raises:
        ScanError: as `read_nifti`, but a dose may be constant; if its header leaves its position in doubt; if its
            values cannot be Gy; or if it is a mask or a label map.
    """
    if is_own_mask(path):
        raise ScanError("a mask that parotid-seg wrote, expected a dose in Gy", path=path)
    file = read_stored(path)
    geometry = geometry_in(file.header, path)
    if doubtful := [flag.code for flag in geometry.flags if flag.code in DOUBTFUL_PLACE]:
        raise ScanError(f"its header leaves in doubt where the dose lies ({', '.join(doubtful)})", path=path)
    shape = shape_in(path, file.voxels.shape, file.voxels.dtype)
    gray: Voxels = intensities_of(file.voxels.reshape(shape), file.scaling, path, constant_allowed=True)
    dose = DoseGrid(gray, 1.0, np.arange(shape[0], dtype=np.float64), geometry.affine)
    check_gray(dose, path, LARGEST_NIFTI_GY)
    _check_no_labels(gray, path)
    return dose


def _check_no_labels(gray: Voxels, path: Path) -> None:
    """Raise ScanError if the values are those of a label map: whole numbers, few, and 0 among them."""
    if gray.min() != 0 or not all((part == np.floor(part)).all() for part in gray):
        return
    count = len(np.unique(gray))
    if count <= MOST_LABELS:
        reason = f"found {count} different values, all whole numbers, as of a label map; expected a dose in Gy"
        raise ScanError(reason, path=path)


def check_gray(dose: DoseGrid, path: Path, largest_gy: float = LARGEST_GY) -> None:
    """Raise ScanError if values are too high, or negative.

    Args:
        dose: what was read.
        path: its file.
        largest_gy: the highest allowed value.
    """
    low, high = (float(end) * dose.scaling for end in (dose.stored.min(), dose.stored.max()))
    if high > largest_gy:
        raise ScanError(f"found doses up to {high:.5g}, expected Gy, at most {largest_gy:g}", path=path)
    if low < -MOST_BELOW_0 * max(high, 0.0):
        raise ScanError(f"found doses from {low:.5g} to {high:.5g} Gy, expected none below 0", path=path)
