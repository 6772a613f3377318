"""Which contours `benchmarks/quality/contours.py` doubts."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks" / "quality")]
import contours

NAMES = ("background", "parotid_left", "parotid_right")


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    labels = np.zeros((20, 12, 24), np.uint8)
    labels[4:16, 3:9, 16:21] = 1
    labels[4:16, 3:9, 3:8] = 2
    return labels


def test_contours_that_agree_with_one_mask_are_not_doubted(mask: NDArray[np.uint8]) -> None:
    assert contours.doubts(mask, [np.zeros_like(mask), mask], NAMES, 0.65) == {}


def test_a_contour_that_stops_short_in_all_masks(mask: NDArray[np.uint8]) -> None:
    short = mask.copy()
    short[8:][short[8:] == 1] = 0
    found = contours.doubts(short, [mask, mask], NAMES, 0.65)
    words = "the contour stops short: upper part of the left parotid, 67%"
    assert found == {"parotid_left": {"dsc": [0.5, 0.5], "signs": [words]}}
    assert contours.doubts(short, [mask, short], NAMES, 0.65) == {}


def test_a_contour_that_goes_on_beyond_the_masks(mask: NDArray[np.uint8]) -> None:
    short = mask.copy()
    short[:12][short[:12] == 2] = 0
    found = contours.doubts(mask, [short], NAMES, 0.65)
    words = "the contour goes on beyond the masks: lower part of the right parotid, 67%"
    assert found == {"parotid_right": {"dsc": [0.5], "signs": [words]}}


def test_exchanged_sides(mask: NDArray[np.uint8]) -> None:
    found = contours.doubts(np.array([0, 2, 1], np.uint8)[mask], [mask], NAMES, 0.65)
    each = {"dsc": [0.0], "signs": ["sides exchanged"]}
    assert found == {"parotid_left": each, "parotid_right": each}


def test_a_structure_without_a_contour_is_not_doubted(mask: NDArray[np.uint8]) -> None:
    assert contours.doubts(np.where(mask == 1, mask, 0), [mask], NAMES, 0.65) == {}
