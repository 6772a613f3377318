"""Distances in a large box, computed for the surfaces alone: those of the distance transform, with little memory."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from parotid_seg.metrics import added_path_length_mm, score_case, surface_dice, surface_distances_mm, surface_voxels
from parotid_seg.metrics.surface_voxels import inside_along

SPACING = (2.5, 0.9, 1.1)


def blob(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(30, 40, 35))
    return np.asarray(ndimage.gaussian_filter(noise, 3) > 0.01)


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_give_the_same_figures(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (np.pad(blob(each), ((9, 40), (30, 5), (5, 9))) for each in (seed, seed + 10))
    first[2, 3, 4] = second[70, 60, 40] = second[75, 72, 0] = True
    percentiles, tolerances = (0.0, 50.0, 95.0, 100.0), (0.9, 1.0, 2.0, 3.0, 5.0)

    def figures() -> tuple[float, ...]:
        distances = surface_distances_mm(first, second, SPACING, percentiles=percentiles)
        return (
            *distances,
            *surface_dice(first, second, SPACING, tolerances),
            added_path_length_mm(first, second, SPACING),
        )

    expected = figures()
    monkeypatch.setattr(surface_voxels, "LARGEST_BOX", 0)
    assert figures() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_what_is_inside_is_what_erosion_leaves(axes: tuple[int, ...]) -> None:
    structure = np.zeros((3, 3, 3), np.bool_)
    for axis in axes:
        structure[tuple(slice(None) if each == axis else 1 for each in range(3))] = True
    expected = ndimage.binary_erosion(blob(0), structure=structure, border_value=0)
    np.testing.assert_array_equal(inside_along(blob(0), axes), expected)


def test_stray_voxels_at_opposite_corners_take_little_memory() -> None:
    labels = np.zeros((300, 256, 256), np.uint8)
    labels[0, 0, 0], labels[-1, -1, -1], labels[150, 100, 100:120] = 1, 1, 1
    tracemalloc.start()
    try:
        scores = score_case(labels, labels[:, ::-1], SPACING, ("background", "gland"))
        assert tracemalloc.get_traced_memory()[1] < 8 * labels.size
    finally:
        tracemalloc.stop()
    assert scores.labels["gland"].hd_mm == pytest.approx(255 * 0.9)
    assert added_path_length_mm(labels == 1, labels == 1, SPACING) == 0
