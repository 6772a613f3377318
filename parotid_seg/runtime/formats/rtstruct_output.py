"""DICOM RT Structure Sets."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import slices_of
from parotid_seg.dicom.write.objects import is_own_object as is_ours
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.flags import Flag
from parotid_seg.runtime.formats.mask_formats import MaskResult

__all__ = ["is_ours", "write"]


def write(result: MaskResult, path: Path) -> tuple[Flag, ...]:
    """See `FormatModule.write`."""
    assert isinstance(result.source, Series)
    slices = slices_of(result.mask, result.scan)
    return write_rtstruct(
        result.source,
        slices,
        result.labels,
        path,
        model=result.model,
        append=result.append,
        rois=result.rois,
        notes=result.notes,
    )
