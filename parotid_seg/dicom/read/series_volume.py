"""Reads a series as a scan, and converts a mask of the scan to the series' slices.

found = find_series(files)             # find: CT and MR series, and skipped files with reasons
scan = read_series(found.series[0])    # like the same scan from a NIfTI file
slices_of(mask, scan)                  # for what is written in DICOM
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from parotid_seg.dicom.read.find import Found, Takes, find_series
from parotid_seg.dicom.read.pixels import read_voxels
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.nifti import NiftiScan, scan_of_image
from parotid_seg.scan.search import Skipped
from parotid_seg.scan.volume import LPS_TO_RAS, Mask, Voxels

__all__ = ["Found", "Skipped", "Takes", "find_series", "read_series", "slices_of"]

RIGHT_ANGLE = 1e-4
"""Largest cosine between axes that count as orthogonal: 0.03 mm over 300 mm."""


def read_series(series: Series) -> NiftiScan:
    """Read a series as the NIfTI scan a converter would make of it: voxels (column, row, slice), affine in RAS.

    A mask written for the scan has the same voxels. With a tilted gantry the slices stay as they are and the affine is
    sheared, as in a NIfTI file; a qform, which cannot express shear, is set only if the affine has none. Axes that
    rounding has moved off their right angles are corrected, as in NIfTI files.

    Raises:
        ScanError: if a file cannot be read or has changed; as `read_nifti` for a volume that cannot be a head scan.
    """
    voxels, flags, decoders = read_voxels(series)
    try:
        scan = scan_of_image(_image(voxels, series.affine), series.folder)
    except ScanError as error:
        raise ScanError(f"{series.title}: {error.reason}", path=series.folder) from error
    flags = (*series.flags, *flags)
    if series.part:
        flags = (Flag(FlagCode.PART_OF_SERIES, detail=series.part), *flags)
    return replace(scan, volume=replace(scan.volume, flags=(*scan.volume.flags, *flags), decoders=decoders))


def _image(voxels: Voxels, affine: NDArray[np.float64]) -> Nifti1Image:
    """A volume (slices, rows, columns) with its affine in LPS as NIfTI."""
    stored = LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    image = Nifti1Image(voxels.T, stored)
    axes = stored[:3, :3] / np.linalg.norm(stored[:3, :3], axis=0)
    turned = np.abs(axes.T @ axes - np.eye(3)).max() < RIGHT_ANGLE
    image.set_sform(stored, 1)
    image.set_qform(stored if turned else None, int(turned))
    image.header.set_xyzt_units("mm")
    return image


def slices_of(mask: Mask, scan: NiftiScan) -> Mask:
    """A mask (D, H, W) in canonical order as slices (slices, rows, columns), in the order of the series' slices.

    Args:
        mask: labels uint8.
        scan: the result of `read_series` for the series.
    """
    return np.ascontiguousarray(scan.volume.orientation.to_storage(mask).T)
