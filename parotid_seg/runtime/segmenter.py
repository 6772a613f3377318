"""One scan through a loaded model: voxels in, cleaned labels and what is worth knowing about them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parotid_seg.errors import ScanError
from parotid_seg.runtime.backend import Backend
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.grid import TISSUE_HU, chunks
from parotid_seg.scan.volume import Mask, Volume

SMALLEST_GLAND_ML = 1.0
"""Less than this counts as no gland; the smallest of the 382 contoured training and validation glands has 5 ml."""
USUAL_VOLUME_ML = (8.0, 60.0)
"""Range without a flag; 99 % of the contoured training and validation glands lie in it."""
LARGEST_AIR_HU = -500.0
"""A CT shows air somewhere. If nothing is below this, the intensities are not in HU."""


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        mask: labels (D, H, W) in the volume's canonical order.
        volumes_ml: volume of each structure by name.
        flags: what a reader should look at, one short sentence each; the volume's notes come first.
    """

    mask: Mask
    volumes_ml: dict[str, float]
    flags: tuple[str, ...]


def segment_volume(backend: Backend, volume: Volume, *, batch_size: int, clean_up: bool = True) -> Segmentation:
    """Segment a scan.

    Args:
        backend: the loaded model.
        volume: the scan.
        batch_size: slices the model takes at once; it bounds memory, not the result.
        clean_up: keep only each gland's largest connected piece.

    Raises:
        ScanError: if the scan is not in HU, shows no patient, or no gland was found in it.
    """
    contract = backend.contract
    if contract.channels == ("CT",):
        check_ct(volume)
    mask = np.empty(volume.voxels.shape, np.uint8)
    for chunk in chunks(volume, contract.grid, batch_size):
        mask[chunk.first : chunk.stop] = backend.run(chunk.inputs)
    if clean_up:
        mask = keep_largest_components(mask, len(contract.labels))
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000.0
    counts = np.bincount(mask.ravel(), minlength=len(contract.labels))
    volumes = {name: int(counts[value]) * voxel_ml for value, name in enumerate(contract.labels) if value}
    if all(size < SMALLEST_GLAND_ML for size in volumes.values()):
        found = ", ".join(f"{name} {size:.1f} ml" for name, size in volumes.items())
        raise ScanError(f"no parotid gland found ({found}); does the scan show the head, and is it a CT in HU?")
    return Segmentation(mask, volumes, (*volume.notes, *_gland_flags(mask, contract.labels, volumes)))


def check_ct(volume: Volume) -> None:
    """Raise ScanError unless the intensities can be HU and show a patient."""
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if low > LARGEST_AIR_HU:
        raise ScanError(
            f"intensities from {low:g} to {high:g} are not HU: expected air near -1000; "
            "is the rescale intercept missing?"
        )
    if high < TISSUE_HU:
        raise ScanError(f"intensities from {low:g} to {high:g} HU show no patient: expected tissue above {TISSUE_HU:g}")


def _gland_flags(mask: Mask, labels: tuple[str, ...], volumes_ml: dict[str, float]) -> list[str]:
    flags = []
    for value, name in enumerate(labels[1:], start=1):
        size = volumes_ml[name]
        if size < SMALLEST_GLAND_ML:
            flags.append(f"{name} missing ({size:.1f} ml)")
            continue
        if not USUAL_VOLUME_ML[0] <= size <= USUAL_VOLUME_ML[1]:
            flags.append(f"{name} of unusual volume ({size:.1f} ml)")
        if (mask[0] == value).any() or (mask[-1] == value).any():
            flags.append(f"{name} cut by the end of the scan")
    return flags
