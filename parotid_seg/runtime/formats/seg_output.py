"""Binary DICOM segmentations (one bit per voxel and segment), which most systems read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import slices_of
from parotid_seg.dicom.write.objects import is_own_object as is_ours
from parotid_seg.dicom.write.seg import write_seg
from parotid_seg.flags import Flag
from parotid_seg.runtime.formats.mask_formats import MaskResult

__all__ = ["is_ours", "write", "write_kind"]


def write(result: MaskResult, path: Path) -> tuple[Flag, ...]:
    """See `FormatModule.write`."""
    return write_kind(result, path, "binary")


def write_kind(result: MaskResult, path: Path, kind: Literal["binary", "labelmap"]) -> tuple[Flag, ...]:
    """Write either kind of DICOM segmentation, see `write_seg`."""
    assert isinstance(result.source, Series)
    slices = slices_of(result.mask, result.scan)
    write_seg(
        result.source,
        slices,
        result.labels,
        path,
        model=result.model,
        kind=kind,
        rois=result.rois,
        notes=result.notes,
    )
    return ()
