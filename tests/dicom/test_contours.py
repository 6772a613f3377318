"""Outlines of masks and masks of outlines: every voxel comes back, and nothing else does."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from parotid_seg.dicom.contours import filled, outlines

pytestmark = pytest.mark.slow


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
CELLS = {0: 0.0, 1: 0.125, 2: 0.5, 3: 0.875, 4: 1.0}
"""Area that marching squares gives a square of four voxel centres, by how many of them are inside."""


def area(points: NDArray[np.float64]) -> float:
    """Signed, by the shoelace formula."""
    after = np.roll(points, -1, axis=0)
    return float((points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]).sum() / 2)


def expected_area(mask: NDArray[Any]) -> float:
    """Sum over the squares; two voxels that touch at a corner are cut off from one another."""
    padded = np.pad(mask, 1).astype(int)
    corners = [padded[:-1, :-1], padded[:-1, 1:], padded[1:, 1:], padded[1:, :-1]]
    counts = sum(corners)
    diagonal = (counts == 2) & (corners[0] == corners[2])
    return sum(share * np.count_nonzero((counts == count) & ~diagonal) for count, share in CELLS.items()) + (
        0.25 * np.count_nonzero(diagonal)
    )


def interpolated(mask: NDArray[Any], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mask at points between its voxels' centres, linearly."""
    padded = np.pad(mask, 1).astype(float)
    points = points + 1.0
    low = np.floor(points).astype(int)
    share = points - low
    rows, columns = low.T
    upper = padded[rows, columns] * (1 - share[:, 1]) + padded[rows, columns + 1] * share[:, 1]
    lower = padded[rows + 1, columns] * (1 - share[:, 1]) + padded[rows + 1, columns + 1] * share[:, 1]
    return upper * (1 - share[:, 0]) + lower * share[:, 0]


@settings(max_examples=300)
@given(masks)
def test_a_mask_comes_back_voxel_for_voxel(mask: NDArray[Any]) -> None:
    assert np.array_equal(filled(outlines(mask), *mask.shape), mask)


@settings(max_examples=200)
@given(masks)
def test_outlines_are_polygons_that_enclose_the_area_of_marching_squares(mask: NDArray[Any]) -> None:
    found = outlines(mask)
    assert sum(abs(area(points)) for points in found) == pytest.approx(expected_area(mask))
    for points in found:
        assert len(points) >= 3
        assert (points != np.roll(points, 1, axis=0)).any(axis=1).all()
        assert np.array_equal(filled([points[::-1]], *mask.shape), filled([points], *mask.shape))


@settings(max_examples=200)
@given(masks)
def test_outlines_and_their_channels_never_leave_their_piece(mask: NDArray[Any]) -> None:
    for points in outlines(mask):
        steps = np.linspace(0, 1, 33)[:, None, None]
        along = points + steps * (np.roll(points, -1, axis=0) - points)
        assert interpolated(mask, along.reshape(-1, 2)).min() > 0.4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_noise_comes_back(share: float) -> None:
    mask = np.random.default_rng(3).random((120, 90)) < share
    assert np.array_equal(filled(outlines(mask), 120, 90), mask)


def test_one_voxel_is_a_diamond_of_its_half_size() -> None:
    mask = np.zeros((5, 6), dtype=np.bool_)
    mask[2, 3] = True
    (points,) = outlines(mask)
    assert sorted(map(tuple, points)) == [(1.5, 3.0), (2.0, 2.5), (2.0, 3.5), (2.5, 3.0)]


def test_voxels_that_touch_at_a_corner_are_two_pieces() -> None:
    mask = np.eye(2, dtype=np.bool_)
    assert len(outlines(mask)) == 2
    assert np.array_equal(filled(outlines(mask), 2, 2), mask)


def test_a_hole_is_joined_to_its_piece_by_a_channel_of_no_width() -> None:
    mask = np.ones((7, 7), dtype=np.bool_)
    mask[3, 3] = mask[1, 1:3] = mask[5, 4:6] = False
    (points,) = outlines(mask)
    assert abs(area(points)) == pytest.approx(expected_area(mask))
    assert len(np.unique(points, axis=0)) < len(points)


def test_a_piece_in_a_hole_is_a_piece_of_its_own() -> None:
    mask = np.ones((9, 9), dtype=np.bool_)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    assert len(outlines(mask)) == 2
    assert np.array_equal(filled(outlines(mask), 9, 9), mask)


def test_points_on_straight_lines_are_left_out() -> None:
    (points,) = outlines(np.ones((50, 40), dtype=np.bool_))
    assert len(points) == 8


def test_no_voxel_no_outline() -> None:
    assert outlines(np.zeros((4, 4), dtype=np.bool_)) == []
    assert not filled([], 4, 4).any()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=8))
def test_any_polygon_is_filled_by_the_even_odd_rule(corners: list[tuple[float, float]]) -> None:
    points = np.round(np.array(corners), 6)
    found = filled([points], 9, 10)
    for row in range(9):
        for column in range(10):
            crossings = 0
            for (row_a, column_a), (row_b, column_b) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (row_a <= row) != (row_b <= row):
                    at = column_a + (row - row_a) * (column_b - column_a) / (row_b - row_a)
                    if abs(at - column) < 1e-9:
                        break  # on the outline: either will do
                    crossings += at < column
            else:
                assert found[row, column] == crossings % 2


def test_a_square_through_centres_takes_its_upper_and_left_side() -> None:
    square = np.array([[1.0, 1.0], [1.0, 4.0], [3.0, 4.0], [3.0, 1.0]])
    expected = np.zeros((6, 6), dtype=np.bool_)
    expected[1:3, 1:4] = True
    assert np.array_equal(filled([square + 1e-9], 6, 6), expected)
    assert np.array_equal(filled([square - 1e-9], 6, 6), expected)


def test_an_outline_within_another_is_a_hole_and_what_lies_beyond_is_cut() -> None:
    outer = np.array([[-5.5, -1e7], [-5.5, 1e7], [1e7, 1e7], [1e7, -1e7]])
    inner = np.array([[1.5, 1.5], [1.5, 3.5], [3.5, 3.5], [3.5, 1.5]])
    expected = np.ones((6, 7), dtype=np.bool_)
    expected[2:4, 2:4] = False
    assert np.array_equal(filled([outer, inner], 6, 7), expected)


def test_a_long_zigzag_is_filled_in_bounded_memory() -> None:
    columns = np.linspace(0, 500, 10_001)
    zigzag = np.stack([np.where(np.arange(10_001) % 2, -0.5, 511.5), columns], axis=1)
    tracemalloc.start()
    filled([zigzag], 512, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
