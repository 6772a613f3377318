"""DICOM in: a series is read as its NIfTI twin is, whatever way its slices lie and are stored."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import find_series, read_series, slices_of
from parotid_seg.errors import ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.scan.nifti import read_mask, read_nifti, write_mask
from tests.dicom_series import TILTED, ct_voxels, lay, write_enhanced, write_series, write_twin

pytestmark = pytest.mark.slow


SHAPE = (8, 26, 30)
LAID = {
    "axial": lay(),
    "head to feet": lay(step=(0, 0, -3)),
    "feet first, prone": lay(row=(-1, 0, 0), column=(0, 1, 0), origin=(100, -120, 40)),
    "turned over": lay(row=(-1, 0, 0), column=(0, -1, 0), origin=(100, 120, 0)),
    "coronal": lay(row=(1, 0, 0), column=(0, 0, -1)),
    "sagittal": lay(row=(0, 1, 0), column=(0, 0, -1)),
    "oblique": lay(row=TILTED[0], column=TILTED[1]),
    "oblique, backwards": lay((2.5, 0.9, 1.3), row=TILTED[0], column=TILTED[1], step=np.cross(*TILTED) * -2.5),
    "anisotropic": lay((2.9, 0.7, 1.3)),
    "sheared": lay(step=(0, -0.8, 3)),
    "tilted gantry": lay(column=(0, np.cos(0.3), -np.sin(0.3)), step=(0, 0, 3)),
}


def only(files: Iterable[Path]) -> Series:
    """The one series in files of which nothing is left out."""
    found = find_series(files)
    assert found.left_out == ()
    (series,) = found.series
    return series


@pytest.mark.parametrize("laid", LAID)
def test_volume_is_the_nifti_twins(tmp_path: Path, laid: str) -> None:
    voxels, affine = ct_voxels(SHAPE), LAID[laid]
    series = only(write_series(tmp_path / "ct", voxels, affine))
    scan, twin = read_series(series), read_nifti(write_twin(tmp_path / "twin.nii.gz", voxels, affine))
    np.testing.assert_array_equal(scan.volume.voxels, twin.volume.voxels)
    assert scan.volume.voxels.dtype == np.int16
    assert scan.volume.spacing_mm == pytest.approx(twin.volume.spacing_mm, abs=1e-6)
    assert scan.volume.flags == twin.volume.flags
    assert scan.path == tmp_path / "ct"


@pytest.mark.parametrize("laid", LAID)
def test_mask_lies_on_the_nifti_twins_voxels(tmp_path: Path, laid: str) -> None:
    voxels, affine = ct_voxels(SHAPE), LAID[laid]
    scan = read_series(only(write_series(tmp_path / "ct", voxels, affine)))
    twin = read_nifti(write_twin(tmp_path / "twin.nii.gz", voxels, affine))
    write_mask((scan.volume.voxels[0] > 0).astype(np.uint8), scan, tmp_path / "mask.nii.gz")
    mask, _ = read_mask(tmp_path / "mask.nii.gz", like=twin)  # raises if it lies elsewhere
    np.testing.assert_array_equal(mask, twin.volume.voxels[0] > 0)


@settings(max_examples=10)
@given(turn=st.tuples(*[st.floats(-3, 3)] * 3), shear=st.tuples(*[st.floats(-1, 1)] * 2), backwards=st.booleans())
def test_any_way_of_lying(
    tmp_path_factory: pytest.TempPathFactory, turn: tuple[float, ...], shear: tuple[float, ...], backwards: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rotation = np.eye(3)
    for axis, angle in enumerate(turn):
        a, b = [other for other in range(3) if other != axis]
        once = np.eye(3)
        once[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = once @ rotation
    row, column, normal = rotation.T
    step = (normal * 5 + row * shear[0] + column * shear[1]) * (-1 if backwards else 1)
    voxels, affine = ct_voxels((7, 36, 38)), lay((5, 1.1, 0.9), row=row, column=column, step=step)
    scan = read_series(only(write_series(folder / "ct", voxels, affine)))
    twin = read_nifti(write_twin(folder / "twin.nii.gz", voxels, affine))
    np.testing.assert_array_equal(scan.volume.voxels, twin.volume.voxels)
    assert scan.volume.spacing_mm == pytest.approx(
        twin.volume.spacing_mm, abs=1e-4
    )  # a shear of a tenth of a mm in all is taken for rounding


@pytest.mark.parametrize("laid", LAID)
def test_slices_of_a_mask_are_the_files(tmp_path: Path, laid: str) -> None:
    voxels = ct_voxels(SHAPE)
    paths = write_series(tmp_path / "ct", voxels, LAID[laid])
    series = only(paths)
    scan = read_series(series)
    slices = slices_of((scan.volume.voxels[0] > 0).astype(np.uint8), scan)
    assert slices.dtype == np.uint8
    assert slices.shape == (len(series.slices), series.rows, series.columns)
    for index, each in enumerate(series.slices):
        written = paths.index(each.path)
        np.testing.assert_array_equal(slices[index], voxels[written] > 0)
        np.testing.assert_allclose(
            series.affine @ (index, 3, 5, 1), LAID[laid] @ (written, 3, 5, 1), atol=1e-6, err_msg=f"slice {index}"
        )


def test_tilted_gantry_is_told(tmp_path: Path) -> None:
    scan = read_series(only(write_series(tmp_path / "ct", ct_voxels(), LAID["tilted gantry"])))
    assert FlagCode.SHEARED in {flag.code for flag in scan.volume.flags}
    assert int(scan.header["qform_code"]) == 0
    assert int(scan.header["sform_code"]) == 1


def test_sform_and_qform_are_set_where_nothing_is_sheared(tmp_path: Path) -> None:
    scan = read_series(only(write_series(tmp_path / "ct", ct_voxels(SHAPE), LAID["oblique"])))
    np.testing.assert_allclose(scan.header.get_qform(), scan.header.get_sform(), atol=1e-3)
    assert int(scan.header["qform_code"]) == int(scan.header["sform_code"]) == 1
    assert scan.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("kind", ["enhanced", "legacy"])
@pytest.mark.parametrize("laid", ["axial", "oblique", "tilted gantry"])
def test_multi_frame_is_the_nifti_twin(tmp_path: Path, modality: str, kind: str, laid: str) -> None:
    voxels = ct_voxels(SHAPE) + (1000 if modality == "MR" else 0)
    order = np.random.default_rng(1).permutation(len(voxels))
    path = write_enhanced(tmp_path / "all.dcm", voxels, LAID[laid], modality=modality, kind=kind, order=order)
    series = only([path])
    scan, twin = read_series(series), read_nifti(write_twin(tmp_path / "twin.nii", voxels, LAID[laid]))
    np.testing.assert_array_equal(scan.volume.voxels, twin.volume.voxels)
    assert series.modality == modality
    assert [order[each.frame] for each in series.slices] == list(range(len(voxels)))


def test_what_a_series_tells(tmp_path: Path) -> None:
    series = only(write_series(tmp_path / "case" / "ct", ct_voxels(), number=7))
    again = pickle.loads(pickle.dumps(series))
    assert (series.number, series.modality, series.facts.description) == (7, "CT", "Neck 3.0")
    assert (series.rows, series.columns, len(series.slices)) == (16, 20, 12)
    assert series.folder == tmp_path / "case" / "ct"
    assert again.key == series.key
    assert len(series.key) == 8
    assert set(series.key) <= set("0123456789abcdef")
    assert again.slices == series.slices
    assert series.voxels == 12 * 16 * 20


def test_folder_is_the_deepest_that_holds_all_files(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct" / "ct", ct_voxels())
    for path in paths[::2]:
        (tmp_path / "ct" / "more").mkdir(exist_ok=True)
        path.rename(tmp_path / "ct" / "more" / path.name)
    assert only(path for path in tmp_path.rglob("*") if path.is_file()).folder == tmp_path / "ct"


def test_a_constant_series_is_refused(tmp_path: Path) -> None:
    series = only(write_series(tmp_path / "ct", np.full((12, 16, 20), 40, np.int16)))
    with pytest.raises(ScanError, match=r"ct: CT series 3 \(\w{8}\): every voxel has the value 40"):
        read_series(series)


@pytest.mark.parametrize("change", ["gone", "other image", "other size"])
def test_a_file_that_changed_since_it_was_found_is_refused(tmp_path: Path, change: str) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels())
    series = only(paths)
    if change == "gone":
        paths[4].unlink()
    elif change == "other image":
        paths[5].rename(paths[4])
    else:
        write_series(tmp_path / "ct", ct_voxels((12, 18, 20)))
    wrong = Path(paths[0] if change == "other size" else paths[4]).name
    with pytest.raises(ScanError, match=rf"{wrong}: (cannot be read|another)"):
        read_series(series)
