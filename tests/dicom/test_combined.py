"""Contours of one slice together: repeats, holes, islands, and what overlaps in part."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parotid_seg.dicom.combined import Combined, Relation, combined, relation_of
from parotid_seg.dicom.contours import filled, outlines
from parotid_seg.errors import ScanError

pytestmark = pytest.mark.slow


ROWS, COLUMNS = 60, 64
MIDDLE = (29.3, 31.6)


def circle(radius: float, middle: tuple[float, float] = MIDDLE, count: int = 90, first: float = 0.0) -> NDArray[Any]:
    angles = first + np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    return np.column_stack([middle[0] + radius * np.cos(angles), middle[1] + radius * np.sin(angles)])


def box(top: float, bottom: float, left: float, right: float) -> NDArray[Any]:
    return np.array([[top, left], [top, right], [bottom, right], [bottom, left]], dtype=float)


def disc(radius: float, middle: tuple[float, float] = MIDDLE) -> NDArray[Any]:
    """Voxels whose centres lie within a circle."""
    rows, columns = np.indices((ROWS, COLUMNS))
    return np.hypot(rows - middle[0], columns - middle[1]) < radius


def keyhole(outer: NDArray[Any], inner: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([outer, outer[:1], inner, inner[:1]])


def drawn(*contours: NDArray[Any], exclusive: bool = False) -> Combined:
    return combined(contours, ROWS, COLUMNS, exclusive=exclusive)


GLAND = circle(15.0)
AGAIN = {
    "same": GLAND,
    "other first point": np.roll(GLAND, 7, axis=0),
    "other direction": GLAND[::-1],
    "both": np.roll(GLAND[::-1], 11, axis=0),
    "closed by its first point": np.concatenate([GLAND, GLAND[:1]]),
    "every third point": GLAND[::3],
    "more points": circle(15.0, count=360, first=0.01),
    "a little smaller": circle(14.8),
    "half a voxel smaller": circle(14.5),
    "rounded": np.round(GLAND),
}


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("exclusive", [False, True])
def test_a_repeated_contour_counts_once(name: str, exclusive: bool) -> None:
    for contours in ((GLAND, AGAIN[name]), (AGAIN[name], GLAND), (GLAND, AGAIN[name], GLAND[::-1])):
        found = drawn(*contours, exclusive=exclusive)
        assert found.repeated
        assert not found.overlapping
        assert not found.hollow
        expected = disc(15.0) if name != "rounded" else drawn(GLAND).mask | drawn(AGAIN[name]).mask
        assert np.count_nonzero(found.mask ^ expected) <= 8


@pytest.mark.parametrize("count", [2, 3])
def test_a_contour_that_runs_round_more_than_once_counts_once(count: int) -> None:
    for points in (np.tile(GLAND, (count, 1)), np.concatenate([*(count - 1) * [GLAND, GLAND[:1]], GLAND])):
        found = drawn(points)
        assert np.array_equal(found.mask, drawn(GLAND).mask)
        assert found.repeated


@pytest.mark.parametrize("share", [0.2, 0.25, 0.45, 0.8])
@pytest.mark.parametrize("off", [0.0, 0.6])
def test_a_contour_that_runs_past_its_first_point_loses_nothing(share: float, off: float) -> None:
    """Through the same points again, or beside them, as a hand draws."""
    again = circle(15.0 + off)[: int(90 * share)]
    for points in (np.concatenate([GLAND, again]), np.concatenate([GLAND, again])[::-1]):
        found = drawn(points)
        assert np.count_nonzero(drawn(GLAND).mask & ~found.mask) <= 1
        assert np.count_nonzero(found.mask & ~disc(15.0 + off)) <= 8
        assert found.repeated


@pytest.mark.parametrize("turned", [False, True])
def test_a_keyhole_that_runs_round_twice_keeps_its_hole(turned: bool) -> None:
    inner = circle(7.0)[::-1] if turned else circle(7.0)
    found = drawn(np.tile(keyhole(GLAND, inner), (2, 1)))
    assert np.count_nonzero(found.mask ^ (disc(15.0) & ~disc(7.0))) <= 8
    assert found.repeated


def test_coarse_copies_within_a_contour_take_nothing_away() -> None:
    """With few points they lie inside, and touch the contour at each of them."""
    for count in range(5, 20):
        found = drawn(GLAND, circle(15.0, count=count))
        assert np.array_equal(found.mask, drawn(GLAND).mask)
        assert found.repeated or found.overlapping


@pytest.mark.parametrize("turned", [False, True])
def test_holes_stay_holes_whether_as_keyhole_or_as_contour_of_their_own(turned: bool) -> None:
    inner = circle(7.0)[::-1] if turned else circle(7.0)
    ring = disc(15.0) & ~disc(7.0)
    for contours in ((GLAND, inner), (inner, GLAND), (keyhole(GLAND, inner),)):
        assert drawn(*contours) == approximately(ring)


def approximately(mask: NDArray[Any], **flags: Any) -> Any:
    """A combination that differs by single voxels on the edges of polygons."""

    class Near:
        def __eq__(self, other: Any) -> bool:
            near = np.count_nonzero(other.mask ^ mask) <= 8
            return bool(near) and other[1:] == Combined(mask, **flags)[1:]

        def __hash__(self) -> int:
            raise TypeError

    return Near()


def test_rings_islands_and_repeats_of_their_parts() -> None:
    ring = disc(15.0) & ~disc(10.0)
    assert drawn(GLAND, circle(10.0), circle(5.0)) == approximately(ring | disc(5.0))
    assert drawn(circle(5.0), GLAND, circle(10.0)) == approximately(ring | disc(5.0))
    parts = [GLAND, circle(10.0), circle(5.0)]
    repeats = [each[::-1] for each in parts] + [np.roll(each, 5, axis=0) for each in parts]
    assert drawn(*parts, *repeats) == approximately(ring | disc(5.0), repeated=True)
    both = disc(20.0) & ~disc(15.0) | (disc(10.0) & ~disc(5.0))
    assert drawn(circle(20.0), *parts) == approximately(both, hollow=True)


def test_a_contour_that_is_mostly_hole_is_noted() -> None:
    assert drawn(GLAND, circle(13.0)) == approximately(disc(15.0) & ~disc(13.0), hollow=True)
    assert not drawn(GLAND, circle(9.0)).hollow


def test_two_holes_in_one_contour() -> None:
    holes = [circle(4.0, (29.3, 24.0)), circle(4.0, (29.3, 39.0))]
    expected = disc(15.0) & ~disc(4.0, (29.3, 24.0)) & ~disc(4.0, (29.3, 39.0))
    assert drawn(holes[0], GLAND, holes[1]) == approximately(expected)


def test_contours_that_overlap_in_part_are_joined() -> None:
    other = (34.0, 37.0)
    both = disc(15.0) | disc(15.0, other)
    assert drawn(GLAND, circle(15.0, other)) == approximately(both, overlapping=True)
    hole = circle(3.0, (31.0, 34.0))
    assert drawn(hole, GLAND, circle(15.0, other)) == approximately(both & ~disc(3.0, (31.0, 34.0)), overlapping=True)
    touching = box(20.2, 40.2, 20.2, 40.2), box(20.2, 30.2, 25.2, 30.2)
    assert np.array_equal(drawn(*touching).mask, drawn(touching[0]).mask)
    assert drawn(*touching).overlapping


@pytest.mark.parametrize("edge", [20.0, 20.004, 19.996, 20.5])
@pytest.mark.parametrize("off", [0.0, -0.004, -0.02])
def test_two_halves_that_share_an_edge_are_whole_and_nothing_is_noted(edge: float, off: float) -> None:
    left, right = box(10.2, 30.2, 10.2, edge), box(10.2, 30.2, edge + off, 30.2)
    found = drawn(left, right)
    assert np.array_equal(found.mask, drawn(box(10.2, 30.2, 10.2, 30.2)).mask)
    assert found[1:] == (False, False, False)


def test_pieces_apart_and_contours_without_a_voxel() -> None:
    tiny = box(5.2, 5.4, 5.2, 5.4)
    found = drawn(tiny, tiny, box(50.2, 55.2, 50.2, 55.2), circle(4.0, (10.0, 50.0)))
    assert found[1:] == (False, False, False)
    assert np.count_nonzero(found.mask) == 25 + np.count_nonzero(disc(4.0, (10.0, 50.0)))
    assert not drawn(box(-20.0, -10.0, 3.0, 9.0), box(-20.0, -10.0, 3.0, 9.0)).mask.any()


@pytest.mark.parametrize("exclusive", [False, True])
def test_small_contours_that_are_shifted_by_less_than_a_voxel_overlap_in_part(exclusive: bool) -> None:
    """In coarse voxels a few millimetres are that; they are no copy."""
    one, other = box(10.2, 14.2, 10.2, 14.2), box(10.2, 14.2, 10.9, 14.9)
    found = drawn(one, other, exclusive=exclusive)
    expected = np.zeros((ROWS, COLUMNS), dtype=np.bool_)
    expected[11:15, 11:15] = True
    assert np.array_equal(found.mask, np.zeros_like(expected) if exclusive else expected)
    assert (found.repeated, found.overlapping) == (False, True)


def test_a_wall_too_thin_for_the_voxels_does_not_make_a_small_structure_a_hole() -> None:
    found = drawn(box(10.2, 15.2, 10.2, 15.2), box(10.7, 14.7, 10.7, 14.7))
    assert np.count_nonzero(found.mask) == 25
    assert found.overlapping


def test_exclusive_contours_share_nothing() -> None:
    other = (34.0, 37.0)
    assert drawn(GLAND, circle(15.0, other), exclusive=True) == approximately(
        disc(15.0) ^ disc(15.0, other), overlapping=True
    )


def test_too_many_contours_that_overlap() -> None:
    with pytest.raises(ScanError, match="101 contours overlap in one slice, expected at most 100"):
        drawn(*(circle(15.0, (30.0, 30.0 + shift / 50)) for shift in range(101)))


def test_how_two_contours_lie_to_one_another() -> None:
    assert relation_of(GLAND, circle(8.0)) is Relation.AROUND
    assert relation_of(circle(8.0), GLAND) is Relation.INSIDE
    assert relation_of(GLAND, circle(15.0, (33.0, 33.0))) is Relation.OVERLAPS
    assert relation_of(GLAND, GLAND[::-1]) is Relation.SAME
    assert relation_of(GLAND, circle(3.0, (5.0, 5.0))) is Relation.APART
    assert relation_of(box(10, 20, 10, 20), box(10, 20, 20, 30)) is Relation.APART
    assert relation_of(box(1.1, 1.2, 1.1, 1.2), box(3.1, 3.2, 3.1, 3.2)) is Relation.APART


boxes = st.builds(
    lambda top, left, height, width: box(top + 0.2, top + height + 0.2, left + 0.2, left + width + 0.2),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(2, 18),
    st.integers(2, 18),
)


@settings(max_examples=150)
@given(st.lists(boxes, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_first_points_directions_and_repeats_change_nothing(contours: list[NDArray[Any]], random: Random) -> None:
    found = drawn(*contours)
    others = [np.roll(each[:: random.choice([1, -1])], random.randrange(4), axis=0) for each in contours]
    others += [each for each in others if random.random() < 0.4]
    random.shuffle(others)
    again = drawn(*others)
    assert np.array_equal(again.mask, found.mask)
    assert again[2:] == found[2:]
    union = np.logical_or.reduce([filled([each], ROWS, COLUMNS) for each in contours])
    assert not (found.mask & ~union).any()
    relations = {relation_of(one, other) for one in contours for other in contours}
    if not relations & {Relation.INSIDE, Relation.AROUND}:
        assert np.array_equal(found.mask, union)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.8))
def test_own_outlines_come_back_and_nothing_is_noted(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((14, 15)) < share
    found = combined(outlines(mask), 14, 15)
    assert np.array_equal(found.mask, mask)
    assert found[1:] == (False, False, False)
