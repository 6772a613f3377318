"""One scan through a loaded model: voxels in, cleaned labels and what is worth knowing about them out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from parotid_seg.errors import ScanError
from parotid_seg.runtime.backend import Backend, labels_of
from parotid_seg.scan.chunks import segmented
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.intensity import in_windows, is_ct
from parotid_seg.scan.labels import is_parotid
from parotid_seg.scan.volume import Mask, Volume, Voxels

SMALLEST_GLAND_ML = 1.0
"""Less than this counts as no gland; the smallest of the 382 contoured training and validation glands has 5 ml."""
USUAL_VOLUME_ML = (8.0, 60.0)
"""Range without a flag; 99 % of the contoured training and validation glands lie in it."""
LARGEST_AIR_HU = -500.0
"""A CT shows air somewhere. If nothing is below this, the intensities are not in HU."""
TISSUE_HU = -200.0
"""A CT shows tissue somewhere: fat is near -100. If nothing is above this, there is no patient."""


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
        clean_up: see `keep_largest_components`.

    Raises:
        ScanError: if the scan has not the model's channels, a CT channel is not in HU or shows no patient, or the model
            looks for parotid glands and found none.
    """
    contract = backend.contract
    volume, windows = in_windows(volume, contract.channels, contract.windows)
    for channel, voxels in zip(contract.channels, volume.voxels, strict=True):
        if is_ct(channel):
            check_ct(voxels)
    mask = segmented(volume, windows, contract.grid, batch_size, partial(labels_of, backend))
    if clean_up:
        mask = keep_largest_components(mask, contract.labels)
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000.0
    counts = np.bincount(mask.ravel(), minlength=len(contract.labels))
    volumes = {name: int(counts[value]) * voxel_ml for value, name in enumerate(contract.labels) if value}
    parotids = {name: size for name, size in volumes.items() if is_parotid(name)}
    if parotids and all(size < SMALLEST_GLAND_ML for size in parotids.values()):
        found = ", ".join(f"{name} {size:.1f} ml" for name, size in parotids.items())
        wanted = "a CT in HU" if all(map(is_ct, contract.channels)) else ", ".join(contract.channels)
        raise ScanError(f"no parotid gland found ({found}); does the scan show the head, and is it {wanted}?")
    return Segmentation(mask, volumes, (*volume.notes, *_flags(mask, contract.labels, volumes)))


def check_ct(voxels: Voxels) -> None:
    """Raise ScanError unless the intensities can be HU and show a patient."""
    low, high = float(voxels.min()), float(voxels.max())
    if low > LARGEST_AIR_HU:
        raise ScanError(
            f"intensities from {low:g} to {high:g} are not HU: expected air near -1000; "
            "is the rescale intercept missing?"
        )
    if high < TISSUE_HU:
        raise ScanError(f"intensities from {low:g} to {high:g} HU show no patient: expected tissue above {TISSUE_HU:g}")


def _flags(mask: Mask, labels: tuple[str, ...], volumes_ml: dict[str, float]) -> list[str]:
    """Only of parotid glands is the usual size known, and that there should be one."""
    if not any(volumes_ml.values()):
        return [f"no {' or '.join(volumes_ml)} found"]
    flags = []
    for value, name in enumerate(labels[1:], start=1):
        size = volumes_ml[name]
        if is_parotid(name) and size < SMALLEST_GLAND_ML:
            flags.append(f"{name} missing ({size:.1f} ml)")
            continue
        if is_parotid(name) and not USUAL_VOLUME_ML[0] <= size <= USUAL_VOLUME_ML[1]:
            flags.append(f"{name} of unusual volume ({size:.1f} ml)")
        if (mask[0] == value).any() or (mask[-1] == value).any():
            flags.append(f"{name} cut by the end of the scan")
    return flags
