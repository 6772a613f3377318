"""Segmentations of 3D Slicer (.seg.nrrd)."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.flags import Flag
from parotid_seg.runtime.formats.mask_formats import MaskResult
from parotid_seg.runtime.formats.slicer import is_own_segmentation as is_ours
from parotid_seg.runtime.formats.slicer import write_seg_nrrd

__all__ = ["is_ours", "write"]


def write(result: MaskResult, path: Path) -> tuple[Flag, ...]:
    """See `FormatModule.write`."""
    write_seg_nrrd(result.mask, result.scan, result.labels, path, result.rois)
    return ()
