"""Chunks to measure with."""

import numpy as np

from parotid_seg.bench.inputs import IN_ROTATION, rotation
from parotid_seg.contract import Contract, Grid
from parotid_seg.scan.chunks import CroppedScan

GRID = Grid(size=56, spacing_mm=4.0, offsets_mm=(-3.0, 0.0, 3.0))


def test_chunks_in_rotation_differ_and_have_one_shape() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, (1, 60, 40, 40)).astype(np.float16)
    matrices = {name: np.eye(40, dtype=np.float32) for name in ("rows", "columns", "rows_back", "columns_back")}
    windows = np.array([[-200.0, 300.0]], np.float32)
    covered = CroppedScan(voxels, windows, 3.0, slice(0, 40), slice(0, 40), matrices)
    contract = Contract(("background", "organ"), ("CT",), ((-200.0, 300.0),), GRID)
    inputs = rotation([covered], contract, 16)
    assert len(inputs) == IN_ROTATION
    assert len({chunk["slices"].shape for chunk in inputs}) == 1
    assert len({chunk["slices"].tobytes() for chunk in inputs}) == IN_ROTATION
    assert rotation([covered], contract, 61) == []
