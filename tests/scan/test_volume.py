"""Orientation: every storage order leads to the same canonical array and back, and left is the patient's left."""

import itertools

import numpy as np
import pytest

from parotid_seg.scan.volume import Orientation

ORDERS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def stored_as(ras: np.ndarray, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An array whose axes run to R, A, S, and its affine, stored with permuted and flipped axes."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    array = ras
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (ras.shape[axis] - 1)
            affine[:3, axis] *= -1
    return np.transpose(array, axes), affine[:, [*axes, 3]]


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_all_48_storage_orders(axes: tuple[int, int, int], signs: tuple[int, int, int]) -> None:
    ras = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    expected = ras[::-1, ::-1, :].transpose(2, 1, 0)  # slices to S, rows to P, columns to L
    stored, affine = stored_as(ras, axes, signs)
    orientation = Orientation.from_affine(affine)
    canonical = orientation.to_canonical(stored)
    np.testing.assert_array_equal(canonical, expected)
    np.testing.assert_array_equal(orientation.to_storage(canonical), stored)


def test_golden_left() -> None:
    """In a volume stored as RAS, index 0 of the first axis is the patient's left, so it is the last column here."""
    ras = np.zeros((3, 2, 2))
    ras[0] = 1
    canonical = Orientation.from_affine(np.eye(4)).to_canonical(ras)
    assert (canonical[:, :, -1] == 1).all()
    assert (canonical[:, :, :-1] == 0).all()


@pytest.mark.parametrize("degrees", [5, 20, 40])
def test_oblique_goes_to_the_nearest_axes(degrees: int) -> None:
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert Orientation.from_affine(affine) == Orientation.from_affine(np.eye(4))
