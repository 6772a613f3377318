"""Engines of a small model, inputs for them, and a run as it should go."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.base import Pending, labels_of
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.volume import Orientation, Volume
from tests.export.small_model import CONTRACT
from tests.fakes.fake_cuda import write_engine

WINDOWS = np.array([(-200, 300)], np.float32)
BATCH = BatchProfile(1, 4, 8)


def engine_of(
    onnx_path: Path, library: str = "tensorrt", batch: BatchProfile = BATCH, contract: Contract = CONTRACT
) -> Path:
    return write_engine(onnx_path.with_suffix(".engine"), onnx_path, contract, library, batch)


def scan(depth: int = 19, height: int = 40, width: int = 48, seed: int = 0) -> Volume:
    """Tissue with holes, so that every slice has other labels."""
    voxels = np.random.default_rng(seed).integers(-900, 500, (1, depth, height, width)).astype(np.int16)
    smooth = np.repeat(np.repeat(voxels[..., ::8, ::8], 8, axis=-1), 8, axis=-2)[..., :height, :width]
    return Volume(smooth, (3.0, 4.0, 4.0), Orientation((0, 1, 2), (False, False, False)))


def inputs_of(volume: Volume, batch_size: int = 4, contract: Contract = CONTRACT) -> list[Inputs]:
    return [chunk.inputs for chunk in chunks(volume, WINDOWS, contract.grid, batch_size)]


def run(backend: TensorRtBackend, inputs: Sequence[Inputs]) -> list[NDArray[Any]]:
    """Chunks through a backend as they should go: so many ahead, results in order."""
    under_way: deque[Pending] = deque()
    found = []
    for each in inputs:
        under_way.append(backend.start(each))
        if len(under_way) == backend.queue_depth:
            found.append(under_way.popleft().result())
    return [*found, *(pending.result() for pending in under_way)]


def check(backend: TensorRtBackend, reference: OnnxRuntimeBackend, inputs: Sequence[Inputs]) -> None:
    expected = [labels_of(reference, each) for each in inputs]
    assert 0.05 < np.mean([each.mean() for each in expected]) < 0.95
    for got, wanted in zip(run(backend, inputs), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == np.uint8
        assert got.flags.owndata
