"""One case: contours become labels on the scan's voxels, both become NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parotid_seg.dataset.contoured import Contoured
from parotid_seg.dataset.gaps import without_gaps
from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.files import write_bytes
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.geometry import header_in_place
from parotid_seg.scan.grid import body_centre
from parotid_seg.scan.labels import is_usual_volume, mirrored_labels, plain_name, side_of
from parotid_seg.scan.nifti import NiftiScan, packed
from parotid_seg.scan.volume import Mask, Voxels

TISSUE_HU = np.array([[-200.0, 300.0]], np.float32)


def draw(contoured: Contoured, series: Series, labels: Sequence[str]) -> tuple[Mask, tuple[Flag, ...]]:
    """Labels of a structure set on a series' voxels, and flags on them.

    Slices without contours between a structure's ends are filled, see `gaps`. Where ROIs overlap, the later label gets
    the voxel, and a flag reports it.

    Args:
        contoured: the ROI of each label, at most one each.
        series: the scan.
        labels: names, in the order of their values from 1.

    Returns:
        uint8 (slices, rows, columns), in the order of the series' slices.

    Raises:
        ScanError: if contours cannot be drawn, enclose no voxel of the scan, or lack slices that cannot be filled.
    """
    path = contoured.structures.path
    drawable = read_rtstruct(path, series)
    spacing_mm = np.linalg.norm(series.affine[:3, :3], axis=0)
    mask = np.zeros((len(series.slices), series.rows, series.columns), np.uint8)
    flags: list[Flag] = []
    for value, label in enumerate(labels, start=1):
        for roi in contoured.rois.get(label, ()):
            drawn = drawable[roi.place].drawn()
            try:
                inside, gaps = without_gaps(drawn.mask, spacing_mm)
            except ScanError as error:
                raise ScanError(f"{roi.shown}: {error.reason}", path=path) from None
            flags += [replace(flag, structure=label) for flag in (*drawn.flags, *gaps)]
            for other in np.unique(mask[inside & (mask > 0)]):
                count = int(np.count_nonzero(inside & (mask == other)))
                flags.append(Flag(FlagCode.LABELS_OVERLAP, label, count, plain_name(labels[other - 1])))
            mask[inside] = value
    lost = [
        label for value, label in enumerate(labels, start=1) if label in contoured.rois and not (mask == value).any()
    ]
    if lost:
        raise ScanError(f"{', '.join(lost)}: all its voxels are in another label, too", path=path)
    return mask, tuple(flags)


def unusual_volumes(mask: Mask, labels: Sequence[str], scan: NiftiScan) -> tuple[Flag, ...]:
    """Flags for structures whose volume is implausible for the organ.

    Args:
        mask: labels (D, H, W) in canonical order.
        labels: names, in the order of their values from 1.
        scan: the scan they are drawn on.
    """
    volumes = {
        label: np.count_nonzero(mask == value) * scan.volume.voxel_ml for value, label in enumerate(labels, start=1)
    }
    return tuple(
        Flag(FlagCode.UNUSUAL_VOLUME, label, volume)
        for label, volume in volumes.items()
        if volume and not is_usual_volume(label, volume)
    )


def canonical(mask: Mask, scan: NiftiScan) -> Mask:
    """A mask of a series' slices in canonical order (D, H, W): the inverse of `dicom.read.series_volume.slices_of`."""
    return np.ascontiguousarray(scan.volume.orientation.to_canonical(mask.T))


def check_sides(mask: Mask, labels: Sequence[str], scan: NiftiScan, path: Path) -> None:
    """Raise ScanError if a left structure lies to the right of its counterpart, or of the patient's middle.

    Args:
        mask: labels (D, H, W) in canonical order, so columns run to the patient's left.
        labels: names, in the order of their values from 1.
        scan: the scan they are drawn on.
        path: of the RTSTRUCT, for the error.
    """
    names = ("background", *labels)
    partners = mirrored_labels(names)
    columns = {value: _middle_column(mask == value) for value in np.unique(mask) if value}
    for value, column in columns.items():
        if not (side := side_of(names[value])):
            continue
        partner = partners[value]
        if partner != value and partner in columns:
            middle, what = columns[partner], names[partner]
        else:
            middle, what = float(body_centre(scan.volume, TISSUE_HU)[1]), "the patient's middle"
        if (column > middle) != (side == "left"):
            raise ScanError(f"{names[value]} lies on the wrong side of {what}: left and right are swapped", path=path)


def write_volume(voxels: Voxels | Mask, scan: NiftiScan, path: Path) -> None:
    """Write voxels with the scan's geometry; nothing else of the scan's header is in the file.

    Args:
        voxels: (D, H, W) in canonical order.
        scan: gives the file's shape and affine.
        path: the file to make (.nii.gz).

    Raises:
        OutputError: if it cannot be written.
    """
    header = header_in_place(scan.header, scan.geometry, voxels.dtype)
    stored = scan.volume.orientation.to_storage(np.asarray(voxels)).reshape(scan.header.get_data_shape())
    write_bytes(packed(scan.image_class(stored, None, header)), path)


def _middle_column(inside: NDArray[np.bool_]) -> float:
    profile = inside.sum(axis=(0, 1))
    return float(profile @ np.arange(len(profile)) / profile.sum())
