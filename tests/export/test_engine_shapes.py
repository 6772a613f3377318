"""An engine's shapes against the chunks that scans are really cut into."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import InputError
from parotid_seg.export.engine_shapes import SIDE, input_shapes
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.scan.chunks import THINNEST_MM, chunks
from parotid_seg.scan.volume import Orientation, Volume

HU = np.array([[-200.0, 300.0]], np.float32)
GRIDS = (Grid(), Grid(offsets_mm=(0,), slice_step_mm=1.0), Grid(offsets_mm=(-10, 2, 5), slice_kernel_mm=4.5))


def contract_of(grid: Grid) -> Contract:
    return Contract(("background", "gland"), ("CT",), ((-200.0, 300.0),), grid)


def shapes_of_chunks(grid: Grid, depth: int, distance_mm: float, batch_size: int) -> list[dict[str, tuple[int, ...]]]:
    voxels = np.zeros((1, depth, SIDE[0], SIDE[0] + 3), np.int16)
    volume = Volume(voxels, (distance_mm, 1.0, 1.0), Orientation((0, 1, 2), (False, False, False)))
    return [
        {name: array.shape for name, array in chunk.inputs.items()} for chunk in chunks(volume, HU, grid, batch_size)
    ]


@settings(max_examples=60)
@given(
    grid=st.sampled_from(GRIDS),
    depth=st.integers(1, 260),
    distance_mm=st.floats(THINNEST_MM, 9.0),
    most=st.integers(1, 24),
    share=st.floats(0, 1),
)
def test_no_chunk_of_any_scan_lies_outside(grid: Grid, depth: int, distance_mm: float, most: Any, share: Any) -> None:
    allowed = input_shapes(contract_of(grid), BatchProfile(1, most, most))
    for shapes in shapes_of_chunks(grid, depth, distance_mm, max(1, round(share * most))):
        assert shapes.keys() == allowed.keys()
        for name, shape in shapes.items():
            low, _, high = allowed[name]
            assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), (name, shape, low, high)


def test_the_largest_shapes_are_no_larger_than_the_thinnest_scan_needs() -> None:
    """A few slices too many are allowed: at the ends of the filter the weights are 0, and such slices are cut off."""
    grid, most = Grid(), 8
    largest = {name: three[2] for name, three in input_shapes(contract_of(grid), BatchProfile(1, 4, most)).items()}
    found = shapes_of_chunks(grid, 400, THINNEST_MM, most)
    assert max(shapes["slices_back"] for shapes in found) == largest["slices_back"]
    assert largest["slices"][1] - max(shapes["slices"][1] for shapes in found) <= 3


def test_the_usual_shape_is_a_chunk_of_a_usual_scan() -> None:
    usual = {name: three[1] for name, three in input_shapes(contract_of(Grid()), BatchProfile(1, 16, 32)).items()}
    middle = shapes_of_chunks(Grid(), 90, 3.0, 16)[2]
    assert usual["neighbours"][:2] == middle["neighbours"][:2]
    assert usual["slices_back"] == middle["slices_back"]
    assert 0 <= usual["slices"][1] - middle["slices"][1] <= 3


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 4), (1, 5, 4), (-3, -2, -1)])
def test_batches_must_rise_from_one(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=f"--batch: found {sizes[0]} {sizes[1]} {sizes[2]}, expected MIN OPT MAX"):
        BatchProfile(*sizes)
