"""One case: contours become labels on the scan's voxels, both become NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from parotid_seg.dataset.contoured import Contoured
from parotid_seg.dicom.rt_read import read_rtstruct
from parotid_seg.dicom.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.files import whole_file
from parotid_seg.scan.grid import body_centre
from parotid_seg.scan.labels import mirrored_labels, side_of
from parotid_seg.scan.nifti import PACKING, NiftiScan
from parotid_seg.scan.volume import Mask, Voxels

TISSUE_HU = np.array([[-200.0, 300.0]], np.float32)
CONTOURED_SHARE = 0.75
"""Of the slices between a structure's ends: with fewer it was contoured here and there only."""
TEXTS = ("descrip", "aux_file", "intent_name", "db_name")
"""Fields of a NIfTI header that hold text."""


def draw(contoured: Contoured, series: Series, labels: Sequence[str]) -> tuple[Mask, tuple[str, ...]]:
    """Labels of a structure set on a series' voxels, and notes.

    Where ROIs overlap, the later label has the voxel, which a note tells.

    Args:
        contoured: which ROI is which label, each at most one.
        series: the scan.
        labels: names, in the order of their values from 1.

    Returns:
        uint8 (slices, rows, columns), in the order of the series' slices.

    Raises:
        ScanError: if contours cannot be drawn, show nothing on the scan, or leave out many slices between.
    """
    path = contoured.structures.path
    drawable = {roi.number: roi for roi in read_rtstruct(path, series)}
    mask = np.zeros((len(series.slices), series.rows, series.columns), np.uint8)
    notes = []
    for value, label in enumerate(labels, start=1):
        for roi in contoured.rois.get(label, ()):
            inside, told = drawable[roi.number].drawn()
            _check_slices(inside, f"{path}: {roi.shown}")
            notes += [f"{label}: {note}" for note in told]
            for other in np.unique(mask[inside & (mask > 0)]):
                count = np.count_nonzero(inside & (mask == other))
                notes.append(f"{count} voxels of {labels[other - 1]} are in {label}, too, which has them")
            mask[inside] = value
    lost = [
        label for value, label in enumerate(labels, start=1) if label in contoured.rois and not (mask == value).any()
    ]
    if lost:
        raise ScanError(f"{', '.join(lost)}: all its voxels are in another label, too", path=path)
    return mask, tuple(notes)


def canonical(mask: Mask, scan: NiftiScan) -> Mask:
    """A mask of a series' slices in canonical order (D, H, W): the inverse of `dicom.read.slices_of`."""
    return np.ascontiguousarray(scan.volume.orientation.to_canonical(mask.T))


def check_sides(mask: Mask, labels: Sequence[str], scan: NiftiScan, path: Path) -> None:
    """Raise ScanError if what is named left lies to the right of its counterpart, or of the patient's middle.

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
    """Write voxels in the scan's geometry; the header tells nothing but that.

    Args:
        voxels: (D, H, W) in canonical order.
        scan: whose shape, affine, sform and qform the file gets.
        path: the file to make (.nii.gz).

    Raises:
        OutputError: if it cannot be written.
    """
    header = scan.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["cal_max"], header["cal_min"] = 0.0, 0.0
    for name in TEXTS:
        if name in header:
            header[name] = b""
    stored = scan.volume.orientation.to_storage(np.asarray(voxels)).reshape(scan.header.get_data_shape())
    content = igzip.compress(scan.image_class(stored, None, header).to_bytes(), PACKING, mtime=0)
    with whole_file(path) as partial:
        partial.write_bytes(content)


def _check_slices(inside: NDArray[np.bool_], where: str) -> None:
    """Raise ScanError if a structure shows nothing, or on few of the slices between its ends."""
    shown = np.flatnonzero(inside.any(axis=(1, 2)))
    if not len(shown):
        raise ScanError(f"{where}: its contours enclose no voxel of the scan")
    span = int(shown[-1] - shown[0]) + 1
    if len(shown) < CONTOURED_SHARE * span:
        raise ScanError(
            f"{where}: contoured on {len(shown)} of the {span} slices between its ends, expected all of them"
        )


def _middle_column(inside: NDArray[np.bool_]) -> float:
    profile = inside.sum(axis=(0, 1))
    return float(profile @ np.arange(len(profile)) / profile.sum())
