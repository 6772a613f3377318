"""Notices slices of a CT that do not fit their neighbours: damaged, repeated, of another intensity, or out of place.

A slice is compared with the two beside it, and these with each other. In an intact scan the two differ more from each
other than from the slice between them. Blocks of such slices are noticed by the steps at their ends: across one, tissue
changes more than across any of the three steps before it and after it. If slices are stored in another order, such as
every second one first, each resembles one far away more than its neighbours. A repeated slice equals the one before it.

The limits of the first two were set from the 243 scans of OpenKBP (benchmarks/quality/slice_order.py): unchanged one is
flagged, which has a blank slice; with noise of 40 HU none, with every third slice only 3, and in coronal slices 3. Of
slices that are replaced by air, by one 20 slices below, or turned upside down, 93 % or more are noticed; of a slice
that is mirrored 40 %, of one with 100 HU more 58 %; of blocks with 100 HU more 95 %, and of blocks that are exchanged
88 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.intensity import is_ct
from parotid_seg.scan.volume import Volume
from parotid_seg.wording import some_of

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
SAGITTAL = 2
"""The canonical axis of sagittal slices. Those of the two sides resemble each other, so their order is not judged."""
NEAR = 2
"""Farthest slice, in slices, of which it is no surprise that it is the most similar one."""
FEWEST_SHOWN = 8
"""Fewest slices that show tissue for their order to be judged."""
FARTHER = 1.2
"""Squared difference from the most similar near slice over that from the most similar far one. In noise without any
structure it is 1."""
FAR_SHARE = 0.5
"""Share of the slices beyond `FARTHER` from which they are not in their order. Of 10 unchanged training scans
at most 0.02, of every third slice 0.07, in coronal slices 0.03; with every second or fourth slice first, or in random
order, 0.82 or more."""


def misfits(volume: Volume, channels: Sequence[str]) -> tuple[Flag, ...]:
    """Flags on slices of a CT that do not fit their neighbours.

    Args:
        volume: in HU.
        channels: names of its channels; only a single one, named CT, is examined.
    """
    if len(channels) != 1 or not is_ct(channels[0]):
        return ()
    axis = volume.orientation.axes.index(STORED_AXIS)
    slices = _examined(volume, axis)
    if axis != SAGITTAL and (far := _in_another_order(slices)):
        return (Flag(FlagCode.SLICES_OUT_OF_ORDER, value=far, detail=str(len(slices))),)
    unlike, steps, repeated = _unlike_neighbours(slices), _steps(slices), _repeated(slices)
    where = f"of {len(slices)}, counted from the patient's {BEGINNINGS[axis]}"
    flags = (
        Flag(FlagCode.SLICES_UNLIKE_NEIGHBOURS, value=len(unlike), detail=f"{some_of(map(str, unlike))} {where}"),
        Flag(FlagCode.STEPS_BETWEEN_SLICES, value=len(steps), detail=f"{some_of(map(str, steps))} {where}"),
        Flag(FlagCode.SLICES_REPEATED, value=len(repeated), detail=f"{some_of(map(str, repeated))} {where}"),
    )
    return tuple(flag for flag in flags if flag.value)


def _examined(volume: Volume, axis: int) -> NDArray[np.float32]:
    """Some voxels of each slice (slices, voxels) in HU, clipped to `RANGE_HU`."""
    slices = np.moveaxis(volume.voxels[0], axis, 0)
    stride = max(1, math.ceil(math.sqrt(slices[0].size / EXAMINED)))
    lattice: NDArray[np.float32] = slices[:, ::stride, ::stride].astype(np.float32)
    np.clip(lattice, *RANGE_HU, out=lattice)
    return lattice.reshape(len(slices), -1)


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


def _repeated(slices: NDArray[np.float32]) -> list[int]:
    """Numbers, from 1, of the slices that show tissue and are equal to the one before."""
    tissue = (slices[1:] > TISSUE_HU).sum(axis=1) >= LEAST_TISSUE
    equal = (slices[1:] == slices[:-1]).all(axis=1)
    return (np.flatnonzero(tissue & equal) + 2).tolist()


def _in_another_order(slices: NDArray[np.float32]) -> int:
    """The number of slices that resemble one far away more than any near one; 0 if it is at most `FAR_SHARE` of all
    that show tissue."""
    shown = np.flatnonzero((slices > TISSUE_HU).sum(axis=1) >= LEAST_TISSUE)
    if len(shown) < FEWEST_SHOWN:
        return 0
    examined = slices[shown] - slices[shown].mean()
    squares = (examined**2).sum(axis=1)
    differences = squares[:, None] + squares - 2 * examined @ examined.T  # squared distances of all pairs
    np.fill_diagonal(differences, np.inf)
    near = np.abs(shown[:, None] - shown) <= NEAR
    nearest, farther = (np.where(mask, differences, np.inf).min(axis=1) for mask in (near, ~near))
    far = int(np.count_nonzero(nearest > FARTHER * farther))
    return far if far > FAR_SHARE * len(shown) else 0
