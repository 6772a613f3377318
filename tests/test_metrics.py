"""Metrics against masks small enough to work out by hand, with spacing that differs along each axis."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from parotid_seg.errors import InputError
from parotid_seg.metrics import (
    accuracy,
    added_path_length_mm,
    bootstrap_mean,
    dice,
    hausdorff_mm,
    iou,
    mean_with_interval,
    score_case,
    surface_dice,
    surface_distances_mm,
    surface_voxels,
    volume_ml,
)
from parotid_seg.metrics.surface_voxels import inside_along

SPACING = (3.0, 2.0, 1.0)


def voxels(*positions: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((6, 6, 6), bool)
    for position in positions:
        mask[position] = True
    return mask


EMPTY = voxels()
ONE = voxels((1, 1, 1))


def test_overlaps_of_half_shared_masks() -> None:
    a, b = voxels((0, 0, 0), (0, 0, 1)), voxels((0, 0, 1), (0, 0, 2))
    assert dice(a, b) == 0.5
    assert iou(a, b) == pytest.approx(1 / 3)
    assert accuracy(a, b) == 0.5


@pytest.mark.parametrize(
    ("metric", "both_empty", "one_empty"), [(dice, 1.0, 0.0), (iou, 1.0, 0.0), (accuracy, 1.0, 0.0)]
)
def test_overlaps_of_empty_masks(metric: Callable[..., float], both_empty: float, one_empty: float) -> None:
    assert metric(EMPTY, EMPTY) == both_empty
    assert metric(EMPTY, ONE) == one_empty
    assert metric(ONE, EMPTY) == one_empty


@pytest.mark.parametrize("type_", [np.uint8, np.int64, float])
@pytest.mark.parametrize("metric", [dice, iou, accuracy, hausdorff_mm, surface_dice, added_path_length_mm, volume_ml])
def test_label_maps_are_no_binary_masks(metric: Callable[..., float], type_: type[np.number]) -> None:
    """Label 2 of both is not where a bitwise "and" finds it."""
    labels = 2 * ONE.astype(type_)
    spacing = () if metric in (dice, iou, accuracy) else (SPACING,)
    for masks in [(labels,)] if metric is volume_ml else [(labels, ONE), (ONE, labels)]:
        with pytest.raises(InputError, match=rf"found an array of {np.dtype(type_)}, expected bool, as in labels == 1"):
            metric(*masks, *spacing)


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 9.0), (1, 6.0), (2, 3.0)])
def test_hausdorff_uses_the_spacing_of_each_axis(axis: int, expected_mm: float) -> None:
    moved = [1, 1, 1]
    moved[axis] += 3
    assert hausdorff_mm(ONE, voxels((moved[0], moved[1], moved[2])), SPACING) == pytest.approx(expected_mm)


def test_hausdorff_is_the_larger_direction() -> None:
    far = voxels((1, 1, 1), (4, 1, 1))
    assert hausdorff_mm(ONE, far, SPACING) == pytest.approx(9.0)
    assert hausdorff_mm(far, ONE, SPACING) == pytest.approx(9.0)


def test_hausdorff_diagonal() -> None:
    assert hausdorff_mm(ONE, voxels((2, 2, 2)), SPACING) == pytest.approx(math.sqrt(9 + 4 + 1))


def test_percentile_interpolates_between_surface_distances() -> None:
    reference = voxels((1, 1, 0))
    prediction = voxels(*[(1, 1, x) for x in range(6)])  # distances 0, 1, 2, 3, 4, 5 mm
    hd, hd95 = surface_distances_mm(prediction, reference, SPACING)
    assert hd == pytest.approx(5.0)
    assert hd95 == pytest.approx(4.75)


def test_inner_voxels_are_no_surface() -> None:
    block, shell = np.zeros((7, 7, 7), bool), np.zeros((7, 7, 7), bool)
    block[1:6, 1:6, 1:6] = True
    shell[1:6, 1:6, 1:6] = True
    shell[3, 3, 3] = False  # its six neighbours become surface; the farthest lie 2 voxels of 1 mm inside
    assert hausdorff_mm(block, shell, SPACING) == pytest.approx(2.0)


def test_hausdorff_of_empty_masks() -> None:
    assert surface_distances_mm(EMPTY, EMPTY, SPACING) == (0.0, 0.0)
    assert surface_distances_mm(EMPTY, ONE, SPACING) == (math.inf, math.inf)
    assert surface_distances_mm(ONE, EMPTY, SPACING) == (math.inf, math.inf)


def blocks(shift: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A block, and the same block further along an axis."""
    block = np.zeros((12, 12, 12), bool)
    block[2:8, 2:8, 2:8] = True
    return block, np.roll(block, shift, axis)


@pytest.mark.parametrize(("axis", "at"), [(0, 3.0), (1, 2.0), (2, 1.0)])
def test_surface_dsc_of_a_shifted_block_by_hand(axis: int, at: float) -> None:
    """Two of six faces lie a voxel apart; the corners of the others are rounded off, which takes a little area."""
    block, moved = blocks(1, axis)
    below, above = surface_dice(block, moved, SPACING, (at - 0.01, at + 0.01))
    sides = [36 * np.prod(SPACING) / each for each in SPACING]
    assert below == pytest.approx(1 - sides[axis] / sum(sides), abs=0.08)
    assert above == 1.0


def test_surface_dsc_of_one_voxel_by_hand() -> None:
    """Each voxel's surface is an octahedron of 8 corners; two in a row are one longer body, and 6 mm apart nothing."""
    assert surface_dice(ONE, ONE, SPACING) == (1.0, 1.0, 1.0)
    assert surface_dice(ONE, voxels((4, 1, 1)), SPACING, (5.9, 6.0)) == (0.0, 0.5)


@pytest.mark.parametrize("spacing", [float(np.float32(0.4)), float(np.float32(0.2)), 1.0000001])
def test_surface_dsc_includes_the_tolerance_itself_whatever_the_rounding(spacing: float) -> None:
    """Headers state 0.4 mm as a float32, which is 0.400000006 mm; an oblique affine makes 1.0000001 mm of 1 mm."""
    block = np.zeros((24, 24, 24), bool)
    block[2:8, 2:8, 2:8] = True
    moved = np.roll(block, round(2 / spacing), 0)
    assert surface_dice(block, moved, (spacing,) * 3, (2.0,)) == (1.0,)


def test_surface_dsc_of_empty_masks() -> None:
    assert surface_dice(EMPTY, EMPTY, SPACING) == (1.0, 1.0, 1.0)
    assert surface_dice(EMPTY, ONE, SPACING) == surface_dice(ONE, EMPTY, SPACING) == (0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("smooth", [0.0, 1.2])
def test_surface_dsc_is_that_of_deepmind(smooth: float) -> None:
    """On noise, which has every surface element, and on smooth bodies, with voxels of any shape."""
    theirs = pytest.importorskip("surface_distance", reason="the package surface-distance-based-measures is missing")
    random = np.random.default_rng(0)
    for _ in range(40):
        (z, y, x), shape = random.uniform(0.5, 4, 3), random.integers(3, 14, 3)
        a, b = (ndimage.gaussian_filter(random.random(shape), smooth) > 0.5 for _ in range(2))
        distances = theirs.compute_surface_distances(a, b, (z, y, x))
        expected = [theirs.compute_surface_dice_at_tolerance(distances, tolerance) for tolerance in (1, 2, 3)]
        assert surface_dice(a, b, (z, y, x)) == pytest.approx(expected, abs=1e-12)


def test_added_path_length_by_hand() -> None:
    """A square of 4 x 4 voxels of 2 x 1 mm in one slice: two sides of 4 voxels along each axis."""
    square = np.zeros((3, 8, 8), bool)
    square[1, 2:6, 2:6] = True
    corners, along_rows, along_columns = 4 * 1.5, 4 * 1.0, 4 * 2.0
    assert added_path_length_mm(EMPTY[:3], EMPTY[:3], SPACING) == 0.0
    assert added_path_length_mm(square, square, SPACING) == 0.0
    whole = corners + along_rows + along_columns
    assert added_path_length_mm(np.zeros_like(square), square, SPACING) == whole
    longer = square.copy()
    longer[1, 2:6, 6] = True  # the right side, without its ends, is no outline any more
    assert added_path_length_mm(longer, square, SPACING) == pytest.approx(2 * 2.0)
    assert added_path_length_mm(np.roll(square, 1, 0), square, SPACING) == whole, "each slice is drawn by itself"
    assert added_path_length_mm(square, EMPTY[:3, :1, :1] | np.zeros_like(square), SPACING) == 0.0


def test_added_path_length_is_that_of_its_authors() -> None:
    """The number of outline voxels of the reference that the prediction has not, times the size of a square voxel."""
    random = np.random.default_rng(0)
    for _ in range(20):
        prediction, reference = (ndimage.gaussian_filter(random.random((5, 12, 14)), 1.2) > 0.5 for _ in range(2))
        cross = ndimage.generate_binary_structure(2, 1)
        count = 0
        for ours, theirs in zip(prediction, reference, strict=True):
            outlines = [mask & ~ndimage.binary_erosion(mask, cross) for mask in (ours, theirs)]
            count += int((outlines[1] & ~outlines[0]).sum())
        assert added_path_length_mm(prediction, reference, (3.0, 0.9, 0.9)) == pytest.approx(0.9 * count)


def test_volume() -> None:
    assert volume_ml(voxels((0, 0, 0), (5, 5, 5)), SPACING) == pytest.approx(0.012)


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (math.nan, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.inf, 1.0, 1.0)])
def test_bad_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="spacing_mm"):
        hausdorff_mm(ONE, ONE, spacing)


@pytest.mark.parametrize("metric", [dice, iou, accuracy])
def test_shapes_must_agree(metric: Callable[..., float]) -> None:
    with pytest.raises(InputError, match="different shapes"):
        metric(ONE, np.zeros((2, 2, 2), bool))


@pytest.mark.parametrize("metric", [dice, iou, accuracy, lambda one, other: hausdorff_mm(one, other, SPACING)])
def test_a_label_map_is_no_mask(metric: Callable[..., float]) -> None:
    with pytest.raises(InputError, match="found an array of uint8, expected bool, as in labels == 1"):
        metric(2 * ONE.astype(np.uint8), ONE.astype(np.uint8))
    assert metric(ONE.astype(np.uint8), ONE) == metric(ONE, ONE)


def test_case_scores_by_hand() -> None:
    reference = np.zeros((1, 2, 4), np.uint8)
    reference[0, 0] = (1, 1, 2, 2)
    prediction = np.zeros_like(reference)
    prediction[0, 0] = (1, 1, 1, 2)
    prediction[0, 1, 3] = 2
    scores = score_case(prediction, reference, (1.0, 1.0, 1.0), ("background", "left", "right"))
    assert scores.mpa == pytest.approx(6 / 8)
    assert scores.macc == pytest.approx((3 / 4 + 2 / 2 + 1 / 2) / 3)
    assert scores.miou == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert scores.labels["left"].dsc == pytest.approx(4 / 5)
    assert scores.labels["right"].dsc == pytest.approx(2 / 4)
    assert scores.labels["left"].volume_error_ml == pytest.approx(0.001)
    assert scores.labels["right"].hd_mm == pytest.approx(1.0)


def test_one_value_has_no_interval() -> None:
    mean, *ends = bootstrap_mean([0.8])
    assert (mean, *map(math.isnan, ends)) == (0.8, True, True)


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    few, many = [0.6, 0.7, 0.8, 0.9], [0.6, 0.7, 0.8, 0.9] * 25
    mean, low, high = bootstrap_mean(few)
    assert mean == pytest.approx(0.75)
    assert low < mean < high
    _, low_many, high_many = bootstrap_mean(many)
    assert high_many - low_many < high - low
    assert all(math.isnan(value) for value in bootstrap_mean([]))


@pytest.mark.parametrize("cases", [2, 3, 6, 10, 40])
def test_intervals_hold_the_mean_as_often_as_they_say(cases: int) -> None:
    """Two cases have no wider interval than from one to the other, which holds the mean in half of all samples."""
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        _, low, high = mean_with_interval(list(random.normal(0, 1, cases)))
        held += low <= 0 <= high
    assert {2: 0.4, 3: 0.7}.get(cases, 0.9) <= held / 200 <= 0.98


def test_two_cases_have_the_widest_interval_there_is() -> None:
    assert mean_with_interval([0.7, 0.9]) == pytest.approx((0.8, 0.7, 0.9))


OTHER = (2.5, 0.9, 1.1)
"""Spacing of larger masks."""


def blob(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(30, 40, 35))
    return np.asarray(ndimage.gaussian_filter(noise, 3) > 0.01)


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_give_the_same_figures(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (np.pad(blob(each), ((9, 40), (30, 5), (5, 9))) for each in (seed, seed + 10))
    first[2, 3, 4] = second[70, 60, 40] = second[75, 72, 0] = True
    percentiles, tolerances = (0.0, 50.0, 95.0, 100.0), (0.9, 1.0, 2.0, 3.0, 5.0)

    def figures() -> tuple[float, ...]:
        distances = surface_distances_mm(first, second, OTHER, percentiles=percentiles)
        return (
            *distances,
            *surface_dice(first, second, OTHER, tolerances),
            added_path_length_mm(first, second, OTHER),
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
        scores = score_case(labels, labels[:, ::-1], OTHER, ("background", "gland"))
        assert tracemalloc.get_traced_memory()[1] < 8 * labels.size
    finally:
        tracemalloc.stop()
    assert scores.labels["gland"].hd_mm == pytest.approx(255 * 0.9)
    assert added_path_length_mm(labels == 1, labels == 1, OTHER) == 0
