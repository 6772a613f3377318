"""What is written, read by ITK: every format has the voxels where our own reader has them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from parotid_seg.dicom.read.planes import plane_of_frame, read_planes
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.flags import FlagCode
from parotid_seg.runtime.formats.mask_formats import FORMATS, NIFTI, RTSTRUCT
from parotid_seg.runtime.pipeline.writers import Outputs
from parotid_seg.scan.nifti import NiftiScan
from tests.dicom.for_writers import LABELS, glands
from tests.dicom_series import ct_voxels, lay, write_series
from tests.scan import itk

pytestmark = pytest.mark.slow


SHAPE = (12, 60, 64)
SPACING = (3.0, 2.5, 2.2)
TWICE = (0.98389614, 0.08608096, 0.15643447), (-0.11762236, 0.97165056, 0.20512110)
"""Directions of rows and columns turned about all three axes."""


def rounded(decimals: int) -> Callable[..., None]:
    def change(_: object, dataset: pydicom.dataset.Dataset) -> None:
        dataset.ImageOrientationPatient = [f"{value:.{decimals}f}" for value in dataset.ImageOrientationPatient]
        dataset.ImagePositionPatient = [f"{value:.3f}" for value in dataset.ImagePositionPatient]

    return change


def across(row: Sequence[float], column: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as unit vectors at a right angle, to machine precision."""
    first = np.array(row) / np.linalg.norm(row)
    second = np.array(column) - first * (first @ column)
    return first, second / np.linalg.norm(second)


ONCE = across((1, 0, 0), (0, np.cos(0.2), np.sin(0.2)))
LAID = {
    "axial": (lay(SPACING), None),
    "head to feet": (lay(SPACING, step=(0, 0, -3)), None),
    "oblique": (lay(SPACING, row=ONCE[0], column=ONCE[1]), None),
    "doubly oblique": (lay(SPACING, row=across(*TWICE)[0], column=across(*TWICE)[1]), None),
    "axial, rounded": (lay(SPACING), 3),
    "doubly oblique, 6 decimals": (lay(SPACING, row=across(*TWICE)[0], column=across(*TWICE)[1]), 6),
    "doubly oblique, 4 decimals": (lay(SPACING, row=across(*TWICE)[0], column=across(*TWICE)[1]), 4),
    "doubly oblique, 3 decimals": (lay(SPACING, row=across(*TWICE)[0], column=across(*TWICE)[1]), 3),
    "doubly oblique, 2 decimals": (lay(SPACING, row=across(*TWICE)[0], column=across(*TWICE)[1]), 2),
}
OFF_MM = {2: 1.5, 3: 0.15}
"""How far rounded directions may put a corner voxel from where it was."""


def written(
    tmp_path: Path, affine: NDArray[np.float64], decimals: int | None = None, formats: tuple[str, ...] = tuple(FORMATS)
) -> tuple[Series, NiftiScan, NDArray[np.uint8], dict[str, Path]]:
    """A series with a mask in some formats: the series, its scan, the mask and the files."""
    options: dict[str, Any] = {} if decimals is None else {"change": rounded(decimals)}
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), affine, **options)
    (series,) = find_series(paths).series
    scan = read_series(series)
    mask = np.ascontiguousarray(scan.volume.orientation.to_canonical(glands(SHAPE).T))
    Outputs(formats).write(mask, scan, series, LABELS, "model", tmp_path / "out")
    return series, scan, mask, {name: tmp_path / f"out{FORMATS[name].ending}" for name in formats}


@pytest.mark.parametrize("laid", LAID)
def test_itk_has_every_format_where_we_have_it(tmp_path: Path, laid: str) -> None:
    affine, decimals = LAID[laid]
    series, scan, mask, files = written(tmp_path, affine, decimals)
    stored = scan.volume.orientation.to_storage(mask)
    for name in (NIFTI, "nrrd"):
        voxels, found = itk.read(files[name])
        np.testing.assert_array_equal(voxels, stored)
        assert itk.apart_mm(found, scan.geometry.affine, voxels.shape) < 1e-3, name
    true = itk.LPS @ affine[:, [2, 1, 0, 3]]
    if affine[2, 0] < 0:  # slices are ordered along their normal
        true[:3, 3] += true[:3, 2] * (SHAPE[0] - 1)
        true[:3, 2] *= -1
    off_mm = OFF_MM.get(decimals or 6, 0.02)
    assert itk.apart_mm(scan.geometry.affine, true, stored.shape) < off_mm
    if decimals != 2:  # ITK takes a series of those for one along the patient's axes
        assert itk.apart_mm(scan.geometry.affine, itk.read_series(tmp_path / "ct"), stored.shape) < off_mm
    check_segments(files["seg"], series)
    for name in (RTSTRUCT, "seg-labelmap"):
        with pytest.raises(RuntimeError, match="Unable to determine ImageIO reader"):
            itk.read(files[name])


def check_segments(path: Path, series: Series) -> None:
    """ITK takes the frames of all segments for one stack of 1 mm: only the first one's place and directions count."""
    first = plane_of_frame(pydicom.dcmread(path), 0)
    assert min(np.linalg.norm(first.position - each.position) for each in read_planes(series)) < 1e-6
    voxels, found = itk.read(path)
    assert voxels.shape[:2] == (series.columns, series.rows)
    np.testing.assert_allclose(itk.LPS[:3] @ found[:, 3], first.position, atol=1e-3)
    np.testing.assert_allclose((itk.LPS @ found)[:3, :2].T, [first.row, first.column], atol=1e-5)


@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_directions_are_brought_to_right_angles(tmp_path: Path, decimals: int) -> None:
    series, scan, _, files = written(tmp_path, LAID["doubly oblique"][0], decimals)
    header = pydicom.dcmread(series.slices[0].path)
    assert abs(np.dot(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])) > 1e-4
    for plane in read_planes(series):
        assert abs(plane.row @ plane.column) < 1e-9
    axes = scan.geometry.affine[:3, :3] / np.linalg.norm(scan.geometry.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    mask = nibabel.load(files[NIFTI])
    np.testing.assert_allclose(mask.get_sform(), mask.get_qform(), atol=1e-3)
    moved = {flag.code: flag.value for flag in scan.volume.flags}.get(FlagCode.SQUARED, 0.0)
    assert moved is not None
    assert moved < OFF_MM[decimals]
    assert (FlagCode.SQUARED in {flag.code for flag in scan.volume.flags}) == (decimals == 2)
    segment = pydicom.dcmread(files["seg"]).SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    directions = np.reshape(segment.ImageOrientationPatient, (2, 3)).astype(float)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-6)


def test_of_a_tilted_gantry_itk_opens_the_nrrd_and_not_the_nifti(tmp_path: Path) -> None:
    tilted = lay(SPACING, column=(0, np.cos(0.3), -np.sin(0.3)), step=(0, 0, 3))
    _, scan, _, files = written(tmp_path, tilted, formats=(NIFTI, "nrrd", RTSTRUCT))
    assert FlagCode.SHEARED in {flag.code for flag in scan.volume.flags}
    with pytest.raises(RuntimeError, match="orthonormal"):
        itk.read(files[NIFTI])
    _, found = itk.read(files["nrrd"])
    assert itk.apart_mm(found, scan.geometry.affine, SHAPE[::-1]) < 1e-3
    np.testing.assert_allclose(nibabel.load(files[NIFTI]).affine, scan.geometry.affine, atol=1e-4)
