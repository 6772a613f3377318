"""Slices without contours between the ends of a structure."""

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.dataset.convert import without_gaps
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.metrics import dice

SPACING_MM = np.array([2.5, 1.0, 1.0])


def ellipsoid(slices: int = 24) -> NDArray[np.bool_]:
    z, y, x = np.meshgrid(np.linspace(-1, 1, slices), np.arange(50), np.arange(60), indexing="ij")
    return ((y - 24 - 4 * z) / 16) ** 2 + ((x - 30 + 3 * z) / 11) ** 2 + (z / 1.05) ** 2 < 1


def interpolated(count: int, span: int) -> Flag:
    return Flag(FlagCode.SLICES_INTERPOLATED, value=count, detail=str(span))


@pytest.mark.parametrize(
    ("gone", "least"),
    [
        ([], 1.0),
        ([11], 0.998),
        ([22], 0.99),
        ([1], 0.99),
        (range(1, 23, 2), 0.97),
        ([2, 3, 7, 12, 13, 14, 20], 0.97),
        ([n for n in range(1, 23) if n % 4], 0.93),
    ],
    ids=["none", "one", "before the last", "after the first", "every second", "irregular", "three of four"],
)
def test_small_gaps_are_filled_and_counted(gone: range | list[int], least: float) -> None:
    whole = ellipsoid()
    part = whole.copy()
    part[list(gone)] = False
    found, flags = without_gaps(part, SPACING_MM)
    assert flags == ((interpolated(len(gone), 24),) if len(gone) else ())
    assert dice(found, whole) >= least
    kept = [n for n in range(24) if n not in gone]
    assert np.array_equal(found[kept], part[kept])
    assert found.any(axis=(1, 2)).all()


def test_what_is_between_equal_slices_is_equal_holes_included() -> None:
    part = np.zeros((5, 20, 20), dtype=np.bool_)
    part[[0, 4], 4:16, 4:16] = True
    part[[0, 4], 8:12, 8:12] = False
    found, flags = without_gaps(part, SPACING_MM)
    assert np.array_equal(found, np.broadcast_to(part[0], part.shape))
    assert flags == (interpolated(3, 5),)


def test_the_ends_of_a_structure_stay_where_they_are() -> None:
    part = ellipsoid()
    part[20:] = False
    found, flags = without_gaps(part, SPACING_MM)
    assert np.array_equal(found, part)
    assert flags == ()


@pytest.mark.parametrize(("slice_mm", "most"), [(1.0, 9), (2.5, 3), (3.0, 2), (5.0, 1), (10.0, 0)])
def test_large_gaps_are_refused(slice_mm: float, most: int) -> None:
    spacing_mm = np.array([slice_mm, 1.0, 1.0])
    for missing in (most, most + 1):
        part = ellipsoid()
        part[6 : 6 + missing] = False
        if missing > most:
            with pytest.raises(ScanError, match=f"no contour on {missing} slices in a row .*expected at most 10"):
                without_gaps(part, spacing_mm)
        else:
            assert without_gaps(part, spacing_mm)[0].any(axis=(1, 2)).all()


def test_pieces_that_do_not_lie_above_each_other_are_left_apart() -> None:
    part = np.zeros((12, 20, 20), dtype=np.bool_)
    part[0:3, 2:6, 2:6] = part[5:12, 12:18, 12:18] = True
    found, flags = without_gaps(part, SPACING_MM)
    assert np.array_equal(found, part)
    assert flags == (Flag(FlagCode.SLICES_BETWEEN_PIECES, value=2),)


def test_a_structure_at_the_edge_of_the_scan_and_one_without_voxels() -> None:
    part = np.zeros((3, 6, 7), dtype=np.bool_)
    part[[0, 2]] = True
    assert without_gaps(part, SPACING_MM)[0].all()
    with pytest.raises(ScanError, match="enclose no voxel"):
        without_gaps(np.zeros_like(part), SPACING_MM)
