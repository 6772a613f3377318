"""Sequences on different grids become channels that agree at every voxel of the first one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from parotid_seg.dicom.mr import resample as one_grid
from parotid_seg.dicom.mr.resample import read_on_one_grid, resampled
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import find_series, read_series, slices_of
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from tests.dicom_series import TILTED, lay
from tests.mr_studies import GRID, SHAPE, STIR, T1, T2, points_of, waves, write_mr

pytestmark = pytest.mark.slow


LARGE = (32, 48, 48)


def around(affine: NDArray[Any]) -> NDArray[Any]:
    """A grid of LARGE laid so that its middle is GRID's; it holds all of it."""
    middle = points_of(GRID, SHAPE).reshape(-1, 3).mean(axis=0)
    affine[:3, 3] += middle - points_of(affine, LARGE).reshape(-1, 3).mean(axis=0)
    return affine


OBLIQUE = around(lay((5.0, 2.5, 2.5), row=TILTED[0], column=TILTED[1]))
CORONAL = around(lay((4.0, 3.0, 3.0), row=(1, 0, 0), column=(0, 0, -1)))


def series_in(folder: Path) -> Series:
    (series,) = find_series(sorted(folder.iterdir())).series
    return series


def noise(points: NDArray[np.float64]) -> NDArray[Any]:
    return np.random.default_rng(1).integers(0, 2000, points.shape[:-1]).astype(float)


def bound(affine: NDArray[Any]) -> float:
    """How far linear interpolation may be off the phantom: second derivatives times spacing squared, over 8."""
    sharpest = 200 / 25**2 + 200 / 30**2 + 2 * 200 / (25 * 30) + 150 / 20**2
    return sharpest * (affine[:3, :3] ** 2).sum() / 8


def test_channels_agree_with_the_phantom_wherever_their_slices_lay(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1)
    write_mr(tmp_path / "t2", T2, OBLIQUE, shape=LARGE, phantom=lambda at: 2 * waves(at))
    write_mr(tmp_path / "stir", STIR, CORONAL, shape=LARGE, phantom=lambda at: 1000 - waves(at))
    t1, t2, stir = (series_in(tmp_path / name) for name in ("t1", "t2", "stir"))
    scan = read_on_one_grid(t1, [t2, stir])
    assert scan.volume.voxels.shape == (3, *SHAPE)
    assert scan.volume.voxels.dtype == np.int16
    assert scan.volume.flags == ()
    expected = waves(points_of(GRID, SHAPE))
    for channel, wanted, affine in zip(
        scan.volume.voxels, (expected, 2 * expected, 1000 - expected), (GRID, OBLIQUE, CORONAL), strict=True
    ):
        off = np.abs(slices_of(channel, scan) - wanted)
        assert off.max() < 1 + 2 * bound(affine) * (affine is not GRID)
        assert off.mean() < 1, "the bound is for the worst voxel; half a voxel's shift would be 5"


def test_the_mask_belongs_to_the_first_series(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1, OBLIQUE, shape=LARGE)
    write_mr(tmp_path / "t2", T2)
    t1, t2 = series_in(tmp_path / "t1"), series_in(tmp_path / "t2")
    scan, alone = read_on_one_grid(t1, [t2]), read_series(t1)
    assert np.array_equal(scan.geometry.affine, alone.geometry.affine)
    assert scan.volume.spacing_mm == alone.volume.spacing_mm
    assert np.array_equal(scan.volume.voxels[0], alone.volume.voxels[0])
    assert slices_of(np.zeros(scan.volume.shape, np.uint8), scan).shape == LARGE
    assert scan.volume.flags[: len(alone.volume.flags)] == alone.volume.flags
    assert FlagCode.OBLIQUE in {flag.code for flag in scan.volume.flags}


def test_the_first_ones_orientation_is_the_only_one_that_is_told(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1)
    write_mr(tmp_path / "t2", T2, OBLIQUE, shape=LARGE)
    assert read_on_one_grid(series_in(tmp_path / "t1"), [series_in(tmp_path / "t2")]).volume.flags == ()


def test_the_same_voxels_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_grid, "map_coordinates", None)
    nearly = GRID.copy()
    nearly[:3, 3] += 0.02
    write_mr(tmp_path / "t1", T1, phantom=noise)
    write_mr(tmp_path / "t2", T2, nearly, phantom=lambda at: noise(at)[::-1])
    first, second = series_in(tmp_path / "t1"), series_in(tmp_path / "t2")
    voxels = read_on_one_grid(first, [second]).volume.voxels
    for channel, series in zip(voxels, (first, second), strict=True):
        assert np.array_equal(channel, read_series(series).volume.voxels[0])


def test_the_same_voxels_stored_the_other_way_round_or_fewer_of_them_are_exact(tmp_path: Path) -> None:
    """A lattice in common needs no interpolation, whatever order it is stored in."""
    turned = lay((4.0, 3.0, 3.0), row=(-1, 0, 0), column=(0, -1, 0), origin=(41.0, 34.0, -12.0))
    assert np.allclose(points_of(turned, SHAPE)[0, 0, 0], points_of(GRID, SHAPE)[2, -1, -1])
    write_mr(tmp_path / "t1", T1, phantom=noise)
    write_mr(tmp_path / "t2", T2, turned, phantom=lambda at: noise(at)[:, ::-1, ::-1])
    first, second = series_in(tmp_path / "t1"), series_in(tmp_path / "t2")
    scan = read_on_one_grid(first, [second])
    got = slices_of(scan.volume.voxels[1], scan)
    assert np.array_equal(got[2:], noise(points_of(GRID, SHAPE))[:-2])
    assert (got[:2] == noise(points_of(GRID, SHAPE)).min()).all(), "beyond what it covers it counts as air"
    (flag,) = scan.volume.flags
    assert flag == Flag(FlagCode.CHANNEL_PARTLY_COVERED, value=flag.value, detail=f"{second.title} / {first.title}")
    assert flag.value == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("frame", "origin", "words"),
    [
        ("another", (-40.0, -35.0, -20.0), "has not the frame of reference of"),
        ("frame", (-40.0, -35.0, 2000.0), "has no place in common with"),
    ],
)
def test_series_that_share_no_place(tmp_path: Path, frame: str, origin: tuple[float, float, float], words: str) -> None:
    write_mr(tmp_path / "t1", T1)
    write_mr(tmp_path / "t2", T2, lay((4.0, 3.0, 3.0), origin=origin), frame=frame)
    first, second = series_in(tmp_path / "t1"), series_in(tmp_path / "t2")
    with pytest.raises(ScanError) as caught:
        read_on_one_grid(first, [second])
    assert str(caught.value) == f"{second.folder}: {second.title} {words} {first.title}"


def test_without_a_frame_of_reference_none_is_shared(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1, frame="")
    write_mr(tmp_path / "t2", T2, frame="")
    with pytest.raises(ScanError, match="has not the frame of reference"):
        read_on_one_grid(series_in(tmp_path / "t1"), [series_in(tmp_path / "t2")])


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.5, 6)] * 3)
origins = st.tuples(*[st.floats(-30, 30)] * 3)
shapes = st.tuples(*[st.integers(2, 12)] * 3)


def turned(angle: Any, spacing: Any, origin: Any) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angle, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


grids = st.builds(turned, angles, spacings, origins)


@settings(max_examples=80)
@given(affine=grids, onto=grids, shape=shapes, target=shapes)
def test_what_is_linear_comes_out_as_it_is(affine: NDArray[Any], onto: Any, shape: Any, target: Any) -> None:
    """Linear interpolation is exact of a linear phantom, so any grids will do."""

    def phantom(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return points @ [3.0, -5.0, 7.0] + 11.0

    voxels = phantom(points_of(affine, shape)).astype(np.float32)
    found, covered = resampled(voxels, affine, onto, target)
    indices = (points_of(onto, target) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    last = np.array(shape) - 1
    between = ((indices >= 0) & (indices <= last)).all(axis=-1)
    beyond = ((indices < -0.51) | (indices > last + 0.51)).any(axis=-1)
    wanted = phantom(points_of(onto, target))
    slope = np.abs([3.0, -5.0, 7.0] @ affine[:3, :3]).sum()  # of the phantom, over a voxel along each axis
    assert np.abs(found - wanted)[between].max(initial=0.0) <= 0.02 + one_grid.SAME_PLACE * slope
    assert (found[beyond] == voxels.min()).all()
    assert between.mean() - 1e-9 <= covered <= 1 - beyond.mean() + 1e-9


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    at_once, covered = resampled(voxels, OBLIQUE, GRID, SHAPE)
    monkeypatch.setattr(one_grid, "SLAB_VOXELS", 2 * SHAPE[1] * SHAPE[2] + 1)
    in_slabs, again = resampled(voxels, OBLIQUE, GRID, SHAPE)
    assert np.array_equal(at_once, in_slabs)
    assert covered == again


def test_rounding_only_to_whole_numbers() -> None:
    voxels = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    halfway = np.eye(4)
    halfway[2, 3] = 0.6
    kept, _ = resampled(voxels, np.eye(4), halfway, (2, 2, 1))
    rounded, _ = resampled(voxels, np.eye(4), halfway, (2, 2, 1), whole=True)
    assert kept.dtype == np.float32
    assert rounded.dtype == np.int16
    assert np.allclose(kept[..., 0], [[0.6, 2.6], [4.6, 6.6]])
    assert rounded[..., 0].tolist() == [[1, 3], [5, 7]]
