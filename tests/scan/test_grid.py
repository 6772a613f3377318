"""Resampling matrices against what they must do: keep constants and ramps, not alias, undo themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parotid_seg.contract import Grid
from parotid_seg.scan.grid import (
    as_float16,
    axis_mm,
    body_centre_mm,
    chunks,
    grid_mm,
    resampling_matrix,
    segmented,
    used,
)
from parotid_seg.scan.volume import Orientation, Volume

UPRIGHT = Orientation((0, 1, 2), (False, False, False))
HU = np.array([[-200.0, 300.0]], np.float32)


def test_linear_interpolation_by_hand():
    matrix = resampling_matrix(axis_mm(4, 2.0), np.array([0.0, 1.0, 2.5, 6.0]), kernel_mm=2.0)
    np.testing.assert_allclose(matrix, [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1]], atol=1e-6)


def test_outside_is_air_or_the_last_sample():
    source, beyond = axis_mm(3, 1.0), np.array([-5.0, 10.0])
    np.testing.assert_array_equal(resampling_matrix(source, beyond, 1.0), np.zeros((2, 3)))
    np.testing.assert_allclose(resampling_matrix(source, beyond, 1.0, clamp=True), [[1, 0, 0], [0, 0, 1]])


@given(
    size=st.integers(3, 60),
    spacing=st.floats(0.3, 6.0),
    kernel=st.floats(0.1, 8.0),
    at=st.floats(0.3, 0.7),
)
def test_constants_stay_inside(size, spacing, kernel, at):
    source = axis_mm(size, spacing)
    target = np.array([source[-1] * at])
    row = resampling_matrix(source, target, kernel)[0]
    reach = max(kernel, spacing)
    if source[-1] * min(at, 1 - at) > reach:
        assert row.sum() == pytest.approx(1.0, abs=1e-5)
    assert (row >= 0).all()


def test_a_fine_scan_is_smoothed_to_the_kernel():
    """A checkerboard finer than the kernel must come out flat, not as an alias."""
    source = axis_mm(200, 0.5)
    stripes = (np.arange(200) % 2).astype(np.float32)
    coarse = resampling_matrix(source, np.arange(20.0, 80.0, 2.5), kernel_mm=4.0) @ stripes
    np.testing.assert_allclose(coarse, 0.5, atol=0.01)


def test_used_columns():
    assert used(np.array([[0, 0, 0.5, 0, 0], [0, 0, 0, 1, 0]], np.float32)) == slice(2, 4)
    assert used(np.zeros((3, 4), np.float32)) == slice(0, 1)


def test_there_and_back_keeps_a_smooth_profile():
    grid = Grid()
    native = axis_mm(128, 3.9)
    model = native[-1] / 2 + grid_mm(grid)
    profile = np.exp(-(((native - native[-1] / 2) / 30.0) ** 2)).astype(np.float32)
    back = resampling_matrix(model, native, 3.9) @ (resampling_matrix(native, model, grid.kernel_mm) @ profile)
    np.testing.assert_allclose(back, profile, atol=0.02)


def volume_of(voxels: np.ndarray, spacing_mm: tuple[float, float, float]) -> Volume:
    """A volume of one channel."""
    return Volume(voxels[None], spacing_mm, UPRIGHT)


def test_body_centre_ignores_a_couch():
    voxels = np.full((4, 100, 120), -1000, np.int16)
    voxels[:, 20:60, 40:80] = 30
    free = body_centre_mm(volume_of(voxels, (3.0, 2.0, 1.0)), HU)
    assert free == pytest.approx((79.0, 59.5), abs=4.0)  # found on every second voxel
    voxels[:, 90:92, 10:110] = 0
    assert body_centre_mm(volume_of(voxels, (3.0, 2.0, 1.0)), HU) == pytest.approx(free, abs=10.0)
    air = np.full((2, 11, 21), -1000, np.int16)
    assert body_centre_mm(volume_of(air, (1.0, 1.0, 1.0)), HU) == (5.0, 10.0)


def ramp(depth: int, spacing_mm: float) -> Volume:
    """A volume whose intensity is its slice number."""
    heights = np.arange(depth, dtype=np.int16)
    return volume_of(np.broadcast_to(heights[:, None, None], (depth, 8, 9)).copy(), (spacing_mm, 3.0, 3.0))


@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
@pytest.mark.parametrize(
    ("depth", "spacing", "every"), [(23, 2.0, 1), (30, 3.0, 1), (12, 5.0, 1), (80, 0.9, 3), (41, 1.5, 2), (7, 3.0, 1)]
)
def test_chunks_cover_every_slice_once_and_everything_is_where_it_should_be(batch_size, depth, spacing, every):
    grid = Grid()
    middle = grid.offsets_mm.index(0.0)
    end_mm = (depth - 1) * spacing
    seen = []
    for chunk in chunks(ramp(depth, spacing), HU, grid, batch_size):
        out = np.arange(chunk.place[0].start, chunk.place[0].stop)
        seen += out.tolist()
        profile_mm = chunk.inputs["slices"][0, :, 0, 0].astype(np.float32) * spacing
        channels_mm = chunk.inputs["neighbours"] @ profile_mm
        first = round(float(channels_mm[0, middle]) / (every * spacing))
        at_mm = (first + np.arange(len(channels_mm))) * every * spacing
        expected_mm = at_mm[:, None] + np.asarray(grid.offsets_mm)
        inside = (expected_mm > 3) & (expected_mm < end_mm - 3)
        # exact where the filter is a whole number of slices wide or at least as fine as them
        np.testing.assert_allclose(channels_mm[inside], expected_mm[inside], atol=0.03 if spacing == 0.9 else 1e-3)
        back_mm = chunk.inputs["slices_back"] @ at_mm
        np.testing.assert_allclose(back_mm, out * spacing, atol=1e-3)
        np.testing.assert_allclose(chunk.inputs["slices_back"].sum(axis=1), 1.0, atol=1e-5)
        assert len(at_mm) <= batch_size + (every > 1)
    assert seen == list(range(depth))


@pytest.mark.parametrize(("spacing", "looks"), [(0.9, 27), (1.0, 27), (1.5, 40), (2.0, 80), (3.0, 80), (5.0, 80)])
def test_the_network_looks_at_thin_slices_every_few_millimetres_only(spacing, looks):
    chunk = next(chunks(ramp(80, spacing), HU, Grid(), 100))
    assert abs(len(chunk.inputs["neighbours"]) - looks) <= 1
    assert chunk.inputs["slices_back"].shape == (80, len(chunk.inputs["neighbours"]))


def test_float16_is_exact_for_hounsfield_units_and_never_infinite():
    exact = np.arange(-2048, 2049, dtype=np.int16)
    np.testing.assert_array_equal(as_float16(exact), exact)
    assert np.isfinite(as_float16(np.array([-32768, 32767], np.int16))).all()
    assert np.isfinite(as_float16(np.array([-1e9, 1e9], np.float32))).all()


def test_only_what_the_grid_covers_goes_to_the_model_and_comes_back_in_its_place():
    """A body of 150 mm off the centre of a field of 600 mm, segmented by a threshold on what the model would see."""
    voxels = np.full((6, 300, 300), -1000, np.int16)
    voxels[:, 40:115, 150:225] = 40
    volume, grid = volume_of(voxels, (3.0, 2.0, 2.0)), Grid()
    seen = []

    def run(inputs):
        seen.append(inputs["slices"].shape)
        in_plane = inputs["rows"] @ (inputs["slices"][0].astype(np.float32) > 0) @ inputs["columns"].T
        native = inputs["rows_back"] @ in_plane[: len(inputs["slices_back"])] @ inputs["columns_back"].T
        return (native > 0.5).astype(np.uint8)

    labels = segmented(volume, HU, grid, 16, run)
    assert all(depth == 6 and max(rows, columns) < 120 for _, depth, rows, columns in seen)
    assert np.count_nonzero(labels != (voxels > 0)) < 0.02 * np.count_nonzero(labels)
    far = np.full((6, 40, 40), 40, np.int16)  # a scan smaller than the grid is taken whole
    assert next(chunks(volume_of(far, (3.0, 2.0, 2.0)), HU, grid, 8)).inputs["slices"].shape == (1, 6, 40, 40)
