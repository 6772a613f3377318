"""Resamples the series of a study to the voxels of the first one, through the frame of reference that they share.

There is no registration: movement of the patient between two sequences stays in the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from parotid_seg.dicom.read.pixels import read_voxels
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import read_series
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.nifti import NiftiScan, joined_channels
from parotid_seg.scan.volume import Voxels

SAME_PLACE = 0.02
"""Share of a voxel: with smaller shifts a volume is not resampled, which would only blur it."""
EDGE = 0.5 + 1e-3
"""Share of a voxel by which a volume extends beyond its outer voxels' centres."""
SLAB_VOXELS = 1 << 20
"""Voxels that are resampled at once: about 40 MB."""
COVERED = 0.95
"""Share of the first series' voxels; a series that covers less is flagged."""


def read_on_one_grid(first: Series, further: Sequence[Series]) -> NiftiScan:
    """Read series of one frame of reference as the channels of one scan.

    The scan has the voxels, geometry and header of the first series, so that a mask of it refers to its slices. The
    others are interpolated linearly; outside their volume they take their lowest value, which is air. They stay int16
    if they and the first are.

    Raises:
        ScanError: as `read_series`; if a series has another frame of reference, or does not overlap the first.
    """
    scan = read_series(first)
    shape = (len(first.slices), first.rows, first.columns)
    volumes = [scan.volume]
    for each in further:
        if not first.frame_of_reference_uid or each.frame_of_reference_uid != first.frame_of_reference_uid:
            raise ScanError(f"{each.title} has not the frame of reference of {first.title}", path=each.folder)
        voxels, flags, decoders = read_voxels(each)
        integer = voxels.dtype == scan.volume.voxels.dtype == np.int16
        voxels, covered = resampled(voxels, each.affine, first.affine, shape, whole=integer)
        if not covered:
            raise ScanError(f"{each.title} has no place in common with {first.title}", path=each.folder)
        if covered < COVERED:
            partly = Flag(FlagCode.CHANNEL_PARTLY_COVERED, value=covered, detail=f"{each.title} / {first.title}")
            flags = (*flags, partly)
        canonical = cast(Voxels, scan.volume.orientation.to_canonical(voxels.T)[None])
        volumes.append(replace(scan.volume, voxels=canonical, flags=flags, decoders=decoders))
    return replace(scan, volume=joined_channels(volumes))


def resampled(
    voxels: Voxels,
    affine: NDArray[np.float64],
    onto: NDArray[np.float64],
    shape: tuple[int, int, int],
    *,
    whole: bool = False,
) -> tuple[Voxels, float]:
    """A volume interpolated at the voxels of another; unchanged if both have the same voxels.

    Args:
        voxels: intensities (slices, rows, columns).
        affine, onto: (4, 4), from (slice, row, column, 1) to x, y, z in mm, of the volume and of the other.
        shape: of the other.
        whole: round to int16.

    Returns:
        Intensities of that shape, and the share of it that the volume covers, 0 to 1.
    """
    to_volume = np.linalg.inv(affine) @ onto
    if voxels.shape == shape and _moves_voxels(to_volume, shape) < SAME_PLACE:
        return voxels, 1.0
    slices, rows, columns = np.ogrid[: shape[0], : shape[1], : shape[2]]
    lowest, covered = voxels.min(), 0
    result: Voxels = np.empty(shape, np.int16) if whole else np.empty(shape, np.float32)
    slab = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], slab):
        part = slice(start, start + slab)
        at = np.stack([a * slices[part] + b * rows + c * columns + d for a, b, c, d in to_volume[:3]])
        last = np.array(voxels.shape)[:, None, None, None] - 1
        inside = ((at >= -EDGE) & (at <= last + EDGE)).all(axis=0)
        values = map_coordinates(voxels, at, np.float32, order=1, mode="nearest")
        values[~inside] = lowest
        result[part] = np.rint(values) if whole else values
        covered += int(np.count_nonzero(inside))
    return result, covered / result.size


def _moves_voxels(to_volume: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    """Largest shift of a volume's corners by a transform of indices, in voxels."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    return float(np.abs(corners @ to_volume[:3, :3].T + to_volume[:3, 3] - corners).max())
