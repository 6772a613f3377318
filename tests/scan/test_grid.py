"""Resampling matrices against what they must do: keep constants and ramps, not alias, undo themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parotid_seg.contract import Grid
from parotid_seg.scan.grid import axis_mm, body_centre, grid_mm, resampling_matrix, used
from parotid_seg.scan.volume import Orientation, Volume

UPRIGHT = Orientation((0, 1, 2), (False, False, False))
HU = np.array([[-200.0, 300.0]], np.float32)


def test_linear_interpolation_by_hand() -> None:
    matrix = resampling_matrix(axis_mm(4, 2.0), np.array([0.0, 1.0, 2.5, 6.0]), kernel_mm=2.0)
    expected = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


def test_outside_is_air_or_the_last_sample() -> None:
    source, beyond = axis_mm(3, 1.0), np.array([-5.0, 10.0])
    np.testing.assert_array_equal(resampling_matrix(source, beyond, 1.0), np.zeros((2, 3)))
    np.testing.assert_allclose(resampling_matrix(source, beyond, 1.0, clamp=True), [[1, 0, 0], [0, 0, 1]])


@given(size=st.integers(3, 60), spacing=st.floats(0.3, 6.0), kernel=st.floats(0.1, 8.0), at=st.floats(0.3, 0.7))
def test_constants_stay_inside(size: int, spacing: float, kernel: float, at: float) -> None:
    source = axis_mm(size, spacing)
    target = np.array([source[-1] * at])
    row = resampling_matrix(source, target, kernel)[0]
    reach = max(kernel, spacing)
    if source[-1] * min(at, 1 - at) > reach:
        assert row.sum() == pytest.approx(1.0, abs=1e-5)
    assert (row >= 0).all()


def test_a_fine_scan_is_smoothed_to_the_kernel() -> None:
    """A checkerboard finer than the kernel must come out flat, not as an alias."""
    source = axis_mm(200, 0.5)
    stripes = (np.arange(200) % 2).astype(np.float32)
    coarse = resampling_matrix(source, np.arange(20.0, 80.0, 2.5), kernel_mm=4.0) @ stripes
    np.testing.assert_allclose(coarse, 0.5, atol=0.01)


def test_used_columns() -> None:
    assert used(np.array([[0, 0, 0.5, 0, 0], [0, 0, 0, 1, 0]], np.float32)) == slice(2, 4)
    assert used(np.zeros((3, 4), np.float32)) == slice(0, 1)


def test_there_and_back_keeps_a_smooth_profile() -> None:
    grid = Grid()
    native = axis_mm(128, 3.9)
    model = native[-1] / 2 + grid_mm(grid)
    profile = np.exp(-(((native - native[-1] / 2) / 30.0) ** 2)).astype(np.float32)
    back = resampling_matrix(model, native, 3.9) @ (resampling_matrix(native, model, grid.kernel_mm) @ profile)
    np.testing.assert_allclose(back, profile, atol=0.02)


def volume_of(voxels: np.ndarray, spacing_mm: tuple[float, float, float]) -> Volume:
    """A volume of one channel."""
    return Volume(voxels[None], spacing_mm, UPRIGHT)


def test_body_centre_ignores_a_couch() -> None:
    voxels = np.full((4, 100, 120), -1000, np.int16)
    voxels[:, 20:60, 40:80] = 30
    free = body_centre(volume_of(voxels, (3.0, 2.0, 1.0)), HU)
    assert free == pytest.approx((39.5, 59.5), abs=2)  # found on every second voxel
    voxels[:, 90:92, 10:110] = 0
    assert body_centre(volume_of(voxels, (3.0, 2.0, 1.0)), HU) == pytest.approx(free, abs=5)
    air = np.full((2, 11, 21), -1000, np.int16)
    assert body_centre(volume_of(air, (1.0, 1.0, 1.0)), HU) == (5, 10)
