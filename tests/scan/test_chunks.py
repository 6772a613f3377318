"""Scans cut into chunks: everything is where it should be, once."""

import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.contract import Grid
from parotid_seg.scan.chunks import (
    SliceChunker,
    as_float16,
    can_share,
    chunks,
    crop_to_grid,
    cut,
    joined,
    mirrored,
    segmented,
)
from parotid_seg.scan.volume import Volume
from tests.scan.test_grid import HU, volume_of


def ramp(depth: int, spacing_mm: float) -> Volume:
    """A volume whose intensity is its slice number."""
    heights = np.arange(depth, dtype=np.int16)
    return volume_of(np.broadcast_to(heights[:, None, None], (depth, 8, 9)).copy(), (spacing_mm, 3.0, 3.0))


@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
@pytest.mark.parametrize(
    ("depth", "spacing", "every"), [(23, 2.0, 1), (30, 3.0, 1), (12, 5.0, 1), (80, 0.9, 3), (41, 1.5, 2), (7, 3.0, 1)]
)
def test_chunks_cover_every_slice_once_and_everything_is_where_it_should_be(
    batch_size: int, depth: int, spacing: float, every: int
) -> None:
    grid = Grid()
    middle = grid.offsets_mm.index(0.0)
    end_mm = (depth - 1) * spacing
    seen = []
    for chunk in chunks(ramp(depth, spacing), HU, grid, batch_size):
        out = np.arange(chunk.slices.start, chunk.slices.stop)
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
def test_the_network_looks_at_thin_slices_every_few_millimetres_only(spacing: float, looks: int) -> None:
    chunk = next(chunks(ramp(80, spacing), HU, Grid(), 100))
    assert abs(len(chunk.inputs["neighbours"]) - looks) <= 1
    assert chunk.inputs["slices_back"].shape == (80, len(chunk.inputs["neighbours"]))


def test_float16_is_exact_for_hounsfield_units_and_never_infinite() -> None:
    exact = np.arange(-2048, 2049, dtype=np.int16)
    np.testing.assert_array_equal(as_float16(exact), exact)
    assert np.isfinite(as_float16(np.array([-32768, 32767], np.int16))).all()
    assert np.isfinite(as_float16(np.array([-1e9, 1e9], np.float32))).all()


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_no_second_copy_of_a_large_scan_is_made_on_the_way_to_float16(kind: type[np.generic]) -> None:
    voxels = np.zeros((1, 20, 300, 300), kind)[:, ::-1, 20:280, 20:280]
    tracemalloc.start()
    try:
        converted = as_float16(voxels)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * converted.nbytes
    finally:
        tracemalloc.stop()


def test_only_what_the_grid_covers_goes_to_the_model_and_comes_back_in_its_place() -> None:
    """A body of 150 mm off the centre of a field of 600 mm, segmented by a threshold on what the model would see."""
    voxels = np.full((6, 300, 300), -1000, np.int16)
    voxels[:, 40:115, 150:225] = 40
    volume, grid = volume_of(voxels, (3.0, 2.0, 2.0)), Grid()
    seen = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        seen.append(inputs["slices"].shape)
        in_plane = inputs["rows"] @ (inputs["slices"][0].astype(np.float32) > 0) @ inputs["columns"].T
        native = inputs["rows_back"] @ in_plane[: len(inputs["slices_back"])] @ inputs["columns_back"].T
        return (native > 0.5).astype(np.uint8)

    labels = segmented(volume, HU, grid, 16, run)
    assert all(depth == 6 and max(rows, columns) < 120 for _, depth, rows, columns in seen)
    assert np.count_nonzero(labels != (voxels > 0)) < 0.02 * np.count_nonzero(labels)
    far = np.full((6, 40, 40), 40, np.int16)  # a scan smaller than the grid is taken whole
    assert next(chunks(volume_of(far, (3.0, 2.0, 2.0)), HU, grid, 8)).inputs["slices"].shape == (1, 6, 40, 40)


def scan_at(row: int, column: int, shape: tuple[int, int, int] = (7, 160, 150)) -> Volume:
    """A body of noise in air with its middle there."""
    voxels = np.full(shape, -1000, np.int16)
    inside = np.random.default_rng(row).integers(0, 200, size=(shape[0], 41, 41))
    voxels[:, row - 20 : row + 21, column - 20 : column + 21] = inside
    return volume_of(voxels, (3.0, 2.4, 2.4))


def test_scans_of_one_spacing_share_matrices_wherever_the_patient_lies() -> None:
    one, other = (crop_to_grid(scan_at(*at), HU, Grid()) for at in ((80, 70), (75, 80)))
    assert one.voxels.shape == other.voxels.shape
    assert can_share(one, other)
    assert (one.rows, one.columns) != (other.rows, other.columns)
    coarse = volume_of(scan_at(80, 70).voxels[0], (3.0, 2.5, 2.4))
    assert not can_share(one, crop_to_grid(coarse, HU, Grid()))
    assert not can_share(one, crop_to_grid(scan_at(80, 70), HU + 1, Grid()))
    assert not can_share(one, crop_to_grid(scan_at(30, 70), HU, Grid())), "the grid is cut by the end of the scan"


def threshold(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Labels by what a model would see: the images' middle channel above 0, taken back."""
    in_plane = inputs["rows"] @ inputs["slices"][0].astype(np.float32) @ inputs["columns"].T
    seen = np.tensordot(inputs["neighbours"][:, Grid().offsets_mm.index(0.0)], in_plane, axes=1) / 1000
    native = np.tensordot(inputs["slices_back"], inputs["rows_back"] @ seen @ inputs["columns_back"].T, axes=1)
    return (native > 0.05).astype(np.uint8)


def test_joined_chunks_give_the_labels_of_each() -> None:
    covered = [crop_to_grid(scan_at(*at), HU, Grid()) for at in ((80, 70), (75, 80), (82, 71))]
    parts = [next(cut(each, Grid(), size)) for each, size in zip(covered, (3, 7, 2), strict=True)]
    labels = threshold(joined([part.inputs for part in parts]))
    assert labels.any()
    np.testing.assert_array_equal(labels, np.concatenate([threshold(part.inputs) for part in parts]))


def test_chunks_of_any_size_from_anywhere() -> None:
    cutter = SliceChunker(crop_to_grid(scan_at(80, 70), HU, Grid()), Grid())
    assert [(chunk.slices, chunk.size) for chunk in (cutter.chunk(0, 1), cutter.chunk(3, 2), cutter.chunk(5, 9))] == [
        (slice(0, 1), 1),
        (slice(3, 5), 2),
        (slice(5, 7), 2),
    ]


def test_a_mirrored_look_sees_the_mirror_image_and_its_labels_come_back_in_place() -> None:
    chunk = next(chunks(scan_at(80, 70), HU, Grid(), 7))
    images = [
        each["rows"] @ each["slices"][0, 3].astype(np.float32) @ each["columns"].T
        for each in (chunk.inputs, mirrored(chunk.inputs))
    ]
    np.testing.assert_array_equal(images[0][:, ::-1], images[1])
    np.testing.assert_array_equal(threshold(mirrored(chunk.inputs)), threshold(chunk.inputs))
