"""Boxes around labels: the same as a look at every voxel finds."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.scan.components import label_boxes

MASKS = arrays(
    np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7), elements=st.integers(0, 4), fill=st.just(0)
)


@given(MASKS, st.permutations([0, 1, 2]), st.integers(1, 5))
def test_as_a_look_at_every_voxel(mask: NDArray[Any], axes: list[int], count: int) -> None:
    for stored in (mask, mask.transpose(axes)[::-1, :, ::-1]):
        assert list(label_boxes(stored, count)) == ndimage.find_objects(stored, max_label=count)


def test_nothing_and_the_corners() -> None:
    mask = np.zeros((4, 5, 6), np.uint8)
    assert list(label_boxes(mask, 2)) == [None, None]
    mask[0, 0, 0] = mask[3, 4, 5] = 2
    assert list(label_boxes(mask, 2)) == [None, (slice(0, 4), slice(0, 5), slice(0, 6))]
