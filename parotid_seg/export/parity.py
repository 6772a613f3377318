"""The proof that an exported file is still the trained model: both segment the same scans, masks are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.metrics import dice
from parotid_seg.runtime.backend import Backend
from parotid_seg.runtime.cases import find_scans
from parotid_seg.scan.grid import chunks
from parotid_seg.scan.intensity import Windows, in_windows
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.train.network import ParotidNet

LEAST_DSC = 0.998
"""Of each gland, exported against trained. Two runs of one reader differ by far more (a DSC of 0.9 is good)."""
MOST_CHANGED_SHARE = 0.002
"""Of the voxels that either mask calls gland; 0.2 % of a 25 ml gland is 0.05 ml, a few voxels of its surface."""


@dataclass(frozen=True)
class ScanParity:
    """Exported against trained model on one scan.

    Attributes:
        scan: file name, of several channels the first.
        batch_size: slices at once.
        voxels, changed: all voxels, and those whose label differs.
        changed_share: changed voxels over those that either mask calls gland.
        dsc: the lowest DSC over the labels.
        passed: whether it is within `LEAST_DSC` and `MOST_CHANGED_SHARE`.
    """

    scan: str
    batch_size: int
    voxels: int
    changed: int
    changed_share: float
    dsc: float
    passed: bool


def check_parity(
    net: ParotidNet, backend: Backend, place: Path, batch_sizes: Sequence[int] = (1, 16)
) -> list[ScanParity]:
    """Compare labels before any clean-up on every scan under a folder, at several batch sizes, the last batch ragged.

    Raises:
        InputError: if there is no scan to compare on.
        ScanError: if a scan cannot be read.
    """
    contract = backend.contract
    scans, errors = find_scans([place], contract.channels, ignore=place.glob("**/labelsT[rs]"))
    if errors or not scans:
        raise InputError(f"--verify: {errors[0] if errors else f'{place}: no scan in this folder'}")
    found = []
    for scan in scans:
        volume, windows = in_windows(read_nifti(*scan).volume, contract.channels, contract.windows)
        expected = _torch_labels(net, volume, windows, contract.grid)
        for batch_size in batch_sizes:
            labels = [backend.run(each.inputs) for each in chunks(volume, windows, contract.grid, batch_size)]
            found.append(_compare(scan[0].name, batch_size, expected, np.concatenate(labels), len(contract.labels)))
    return found


@torch.no_grad()
def _torch_labels(net: ParotidNet, volume: Volume, windows: Windows, grid: Grid) -> Mask:
    """The trained model's labels in FP32."""
    labels = []
    for chunk in chunks(volume, windows, grid, 16):
        labels.append(net(**{name: torch.from_numpy(array) for name, array in chunk.inputs.items()}).numpy())
    return np.concatenate(labels)


def _compare(scan: str, batch_size: int, expected: Mask, labels: Mask, count: int) -> ScanParity:
    changed = int(np.count_nonzero(expected != labels))
    gland = int(np.count_nonzero((expected > 0) | (labels > 0)))
    share = changed / gland if gland else 0.0
    lowest = min(dice(expected == value, labels == value) for value in range(1, count))
    return ScanParity(
        scan=scan,
        batch_size=batch_size,
        voxels=int(labels.size),
        changed=changed,
        changed_share=share,
        dsc=lowest,
        passed=lowest >= LEAST_DSC and share <= MOST_CHANGED_SHARE,
    )
