"""NIfTI label maps in exactly the scan's geometry."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.flags import Flag
from parotid_seg.runtime.formats.mask_formats import MaskResult
from parotid_seg.scan.nifti import is_own_mask as is_ours
from parotid_seg.scan.nifti import write_mask

__all__ = ["is_ours", "write"]


def write(result: MaskResult, path: Path) -> tuple[Flag, ...]:
    """See `FormatModule.write`."""
    write_mask(result.mask, result.scan, path)
    return ()
