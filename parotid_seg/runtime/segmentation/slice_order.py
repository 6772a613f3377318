"""Notices slices of a CT that do not fit their neighbours: damaged, of another intensity, or in a wrong place.

A slice is compared with the two beside it, and these with each other. In an intact scan the two differ more from each
other than from the slice between them. Blocks of such slices are noticed by the steps at their ends: across one, tissue
changes more than across any of the three steps before it and after it.

Both limits were set from the 243 scans of OpenKBP (benchmarks/quality/slice_order.py): unchanged one is flagged, which
has a blank slice; with noise of 40 HU none, with every third slice only 3, and in coronal slices 3. Of slices that are
replaced by air, by one 20 slices below, or turned upside down, 93 % or more are noticed; of a slice that is mirrored
40 %, of one with 100 HU more 58 %; of blocks with 100 HU more 95 %, and of blocks that are exchanged 88 %.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.volume import Volume

STORED_AXIS = 2
"""The axis of slices as scans are stored, in NIfTI and NRRD by convention; the intended axis of DICOM series."""
BEGINNINGS = ("feet", "front", "right")
"""Where the canonical axes begin."""
EXAMINED = 1 << 12
"""Most voxels of a slice that are compared: those of a regular lattice."""
RANGE_HU = (-200.0, 300.0)
TISSUE_HU = -150.0
LEAST_TISSUE = 50
"""Fewest examined voxels that are tissue in two neighbouring slices for the step between them to count."""
UNLIKE = 1.45
"""Difference of a slice from the more similar one of its neighbours over that of the two. The 243 scans: at most 1.02,
but 1.50 in the one with a blank slice."""
STEP = 1.7
"""Difference in tissue between two slices over the largest one in the three steps before and after. The 243 scans: at
most 1.52."""
LEAST_HU, LEAST_STEP_HU = 2.0, 25.0
"""Smaller differences count as these: noise, and slices of air."""
STEPS = 3
MOST_NAMED = 3


def misfits(volume: Volume) -> tuple[Flag, ...]:
    """Flags on slices of a CT that do not fit their neighbours.

    Args:
        volume: one channel, in HU.
    """
    axis = volume.orientation.axes.index(STORED_AXIS)
    slices = _examined(volume, axis)
    unlike, steps = _unlike_neighbours(slices), _steps(slices)
    where = f"of {len(slices)}, counted from the patient's {BEGINNINGS[axis]}"
    flags = (
        Flag(FlagCode.SLICES_UNLIKE_NEIGHBOURS, value=len(unlike), detail=f"{_some(unlike)} {where}"),
        Flag(FlagCode.STEPS_BETWEEN_SLICES, value=len(steps), detail=f"{_some(steps)} {where}"),
    )
    return tuple(flag for flag in flags if flag.value)


def _examined(volume: Volume, axis: int) -> NDArray[np.float32]:
    """Some voxels of each slice (slices, voxels) in HU, clipped to `RANGE_HU`."""
    slices = np.moveaxis(volume.voxels[0], axis, 0)
    stride = max(1, math.ceil(math.sqrt(slices[0].size / EXAMINED)))
    lattice = slices[:, ::stride, ::stride]
    examined: NDArray[np.float32] = np.clip(lattice, *RANGE_HU).astype(np.float32)
    return examined.reshape(len(slices), -1)


def _unlike_neighbours(slices: NDArray[np.float32]) -> list[int]:
    """Numbers, from 1, of the slices that are unlike both of their neighbours."""
    if len(slices) < 3:
        return []
    beside = np.abs(np.diff(slices, axis=0)).mean(axis=1)
    across = np.abs(slices[2:] - slices[:-2]).mean(axis=1)
    share = np.minimum(beside[:-1], beside[1:]) / np.maximum(across, LEAST_HU)
    return (np.flatnonzero(share > UNLIKE) + 2).tolist()


def _steps(slices: NDArray[np.float32]) -> list[int]:
    """Numbers, from 1, of the slices after which tissue changes abruptly."""
    both = (slices[1:] > TISSUE_HU) & (slices[:-1] > TISSUE_HU)
    counts = both.sum(axis=1)
    changes = (np.abs(np.diff(slices, axis=0)) * both).sum(axis=1) / np.maximum(counts, 1)
    changes[counts < LEAST_TISSUE] = np.nan
    found = []
    for at in range(STEPS, len(changes) - STEPS):
        around = np.delete(changes[at - STEPS : at + STEPS + 1], STEPS)
        if changes[at] > STEP * max(float(around.max()), LEAST_STEP_HU):  # never true beside a slice without tissue
            found.append(at + 1)
    return found


def _some(numbers: list[int]) -> str:
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return ", ".join(map(str, numbers[:MOST_NAMED])) + more
