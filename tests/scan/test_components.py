"""Clean-up: the largest piece of each sided structure stays, others are not touched."""

import numpy as np
import pytest

from parotid_seg.scan import components
from parotid_seg.scan.components import clean_labels, keep_largest_components

GLANDS = ("background", "parotid_left", "parotid_right")


def test_each_gland_keeps_its_own_largest_piece() -> None:
    mask = np.zeros((6, 10, 10), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[5, 9, 9] = 1
    mask[0, 9, 0:2] = 2
    mask[5, 0, 0] = 2
    cleaned = keep_largest_components(mask, GLANDS)
    assert (cleaned == 1).sum() == 27
    assert (cleaned == 2).sum() == 2
    assert cleaned[5, 9, 9] == 0
    assert cleaned[5, 0, 0] == 0
    assert mask[5, 9, 9] == 1, "the input is not changed"


def test_corner_neighbours_are_one_piece_and_touching_glands_are_two() -> None:
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    mask[2, 2, 2] = 2
    np.testing.assert_array_equal(keep_largest_components(mask, GLANDS), mask)


def test_empty_mask_stays_empty() -> None:
    assert not keep_largest_components(np.zeros((2, 2, 2), np.uint8), GLANDS).any()


def test_structures_without_a_side_may_have_several_pieces() -> None:
    mask = np.zeros((3, 9, 9), np.uint8)
    mask[1, 1, 1:4] = mask[1, 7, 7] = 1
    mask[1, 4, 1:4] = mask[2, 0, 8] = 2
    cleaned = keep_largest_components(mask, ("background", "gland", "LeftEye"))
    assert (cleaned == 1).sum() == 4
    assert (cleaned == 2).sum() == 3


def test_rules_are_applied_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((6, 10, 10), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[5, 9, 9] = 1
    np.testing.assert_array_equal(clean_labels(mask, GLANDS), keep_largest_components(mask, GLANDS))
    rules = (keep_largest_components, lambda labels, names: labels * (labels.sum() == 27) * len(names))
    monkeypatch.setattr(components, "CLEAN_UP_RULES", rules)
    assert clean_labels(mask, GLANDS).max() == 3, "the second gets what the first leaves"
