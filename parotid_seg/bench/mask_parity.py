"""Whether an engine gives the masks that the model file gives on the reference engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from parotid_seg.runtime.engines.base import Backend, labels_of
from parotid_seg.runtime.pipeline.sources import Scan, read_scan
from parotid_seg.runtime.tolerance import GATES, MaskDifference, difference
from parotid_seg.scan.chunks import segmented
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.volume import Mask

Masks = Mapping[Scan, tuple[Mask, tuple[float, float, float]]]
"""Of each scan the reference's mask, and its spacing in mm."""


@dataclass(frozen=True, kw_only=True)
class EngineParity(MaskDifference):
    """The scan whose masks differ most.

    Attributes:
        scans: how many were compared.
        within: whether all of them are within the tolerance of the precision.
    """

    scans: int
    within: bool


def labels_of_scan(backend: Backend, scan: Scan, batch_size: int) -> Mask:
    """The labels (D, H, W) of a scan, as they leave the engine; of equal probabilities the first label."""
    contract = backend.contract
    volume, windows = in_windows(read_scan(scan).volume, contract.channels, contract.windows)
    return segmented(volume, windows, contract.grid, batch_size, partial(labels_of, backend))


def reference_masks(backend: Backend, scans: Sequence[Scan]) -> Masks:
    """The reference engine's masks of some scans."""
    return {
        scan: (labels_of_scan(backend, scan, backend.batch_size), read_scan(scan).volume.spacing_mm) for scan in scans
    }


def compare(reference: Masks, found: Mapping[Scan, Mask], precision: str, labels: int) -> EngineParity:
    """The comparison of all scans.

    Args:
        reference, found: masks of the same scans.
        precision: type the engine computes in; it decides the tolerance.
        labels: how many there are, background included.
    """
    apart = [difference(mask, found[scan], spacing_mm, labels) for scan, (mask, spacing_mm) in reference.items()]
    worst = min(apart, key=lambda each: each.dsc)
    gate = GATES[precision]
    return EngineParity(**vars(worst), scans=len(apart), within=all(gate.admits(each) for each in apart))
