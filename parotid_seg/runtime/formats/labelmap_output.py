"""DICOM Label Map Segmentations, the newer kind."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.flags import Flag
from parotid_seg.runtime.formats.mask_formats import MaskResult
from parotid_seg.runtime.formats.seg_output import is_ours, write_kind

__all__ = ["is_ours", "write"]


def write(result: MaskResult, path: Path) -> tuple[Flag, ...]:
    """See `FormatModule.write`."""
    return write_kind(result, path, "labelmap")
