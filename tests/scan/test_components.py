"""Clean-up: the largest piece of each gland stays, the other gland is not touched."""

import numpy as np

from parotid_seg.scan.components import keep_largest_components


def test_each_gland_keeps_its_own_largest_piece():
    mask = np.zeros((6, 10, 10), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[5, 9, 9] = 1
    mask[0, 9, 0:2] = 2
    mask[5, 0, 0] = 2
    cleaned = keep_largest_components(mask, 3)
    assert (cleaned == 1).sum() == 27
    assert (cleaned == 2).sum() == 2
    assert cleaned[5, 9, 9] == 0
    assert cleaned[5, 0, 0] == 0
    assert mask[5, 9, 9] == 1, "the input is not changed"


def test_corner_neighbours_are_one_piece_and_touching_glands_are_two():
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    mask[2, 2, 2] = 2
    np.testing.assert_array_equal(keep_largest_components(mask, 3), mask)


def test_empty_mask_stays_empty():
    assert not keep_largest_components(np.zeros((2, 2, 2), np.uint8), 3).any()
