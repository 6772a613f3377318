"""onnxruntime's CUDA provider on a real GPU. Run with: pytest -m gpu tests/gpu (in the environment of `make gpu`)."""

import dataclasses
from functools import partial

import numpy as np
import onnxruntime
import pytest

from parotid_seg.errors import DeviceMemoryError
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_benchmark import usual_chunk
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.cuda import PROVIDER, OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph
from parotid_seg.runtime.tolerance import SAME, difference
from parotid_seg.scan.chunks import chunks, segmented
from parotid_seg.scan.intensity import Windows, in_windows
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Volume

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU found"),
    pytest.mark.skipif(
        PROVIDER not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is missing: make gpu"
    ),
]


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeCudaBackend:
    return OnnxRuntimeCudaBackend(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def scan(backend: OnnxRuntimeCudaBackend) -> tuple[Volume, Windows]:
    path = next((example_folder() / "imagesTr").glob("*.nii.gz"))
    return in_windows(read_nifti(path).volume, backend.contract.channels, backend.contract.windows)


def test_it_runs_on_the_gpu_and_says_so(backend: OnnxRuntimeCudaBackend) -> None:
    assert backend.ran.device == "cuda:0"
    assert backend.ran.precision == "fp32"
    assert backend.ran.backend.endswith("with CUDA graphs")


def test_the_masks_are_those_of_the_cpu(backend: OnnxRuntimeCudaBackend, scan: tuple[Volume, Windows]) -> None:
    volume, windows = scan
    cpu = OnnxRuntimeBackend(DEFAULT_MODEL)
    expected, found = (
        segmented(volume, windows, backend.contract.grid, 16, partial(labels_of, run)) for run in (cpu, backend)
    )
    apart = difference(expected, found, volume.spacing_mm, 3)
    assert SAME.admits(apart), apart


@pytest.mark.parametrize(
    "graph",
    [GpuGraph(DEFAULT_MODEL, "fp16"), *(GpuGraph(DEFAULT_MODEL, kind, fused=True) for kind in ("fp32", "fp16"))],
)
def test_masks_of_graphs_that_are_made_are_those_of_the_cpu(graph: GpuGraph, scan: tuple[Volume, Windows]) -> None:
    made, cpu = OnnxRuntimeCudaBackend(graph.made()), OnnxRuntimeBackend(DEFAULT_MODEL)
    volume, windows = scan
    expected, found = (
        segmented(volume, windows, cpu.contract.grid, 16, partial(labels_of, run)) for run in (cpu, made)
    )
    made.close()
    apart = difference(expected, found, volume.spacing_mm, 3)
    assert SAME.admits(apart), apart


def test_a_replayed_graph_gives_what_its_own_chunk_asks_for(
    backend: OnnxRuntimeCudaBackend, scan: tuple[Volume, Windows]
) -> None:
    """Other voxels and other matrices in the same shapes, many times over: a replay must not remember the capture."""
    volume, windows = scan
    plain = OnnxRuntimeCudaBackend(DEFAULT_MODEL)
    plain._bound.graphs = False
    made = [chunk.inputs for chunk in chunks(volume, windows, backend.contract.grid, 8)]
    mirrored = dataclasses.replace(volume, voxels=volume.voxels[..., ::-1].copy())
    made += [chunk.inputs for chunk in chunks(mirrored, windows, backend.contract.grid, 8)]
    for _ in range(3):
        for inputs in made:
            np.testing.assert_array_equal(labels_of(backend, inputs), labels_of(plain, inputs))
    plain.close()


def test_many_shapes_come_and_go(backend: OnnxRuntimeCudaBackend) -> None:
    for looks in (*range(1, 20), *range(1, 20)):
        inputs = usual_chunk(backend.contract, looks)
        first, second = (labels_of(backend, inputs) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_too_little_memory_is_its_own_error_and_a_smaller_chunk_still_runs() -> None:
    small = OnnxRuntimeCudaBackend(DEFAULT_MODEL, provider={"gpu_mem_limit": str(300 << 20)})
    with pytest.raises(DeviceMemoryError, match=r"256 samples .* cuda:0"):
        labels_of(small, usual_chunk(small.contract, 256))
    small.batch_size = 1
    assert labels_of(small, usual_chunk(small.contract, 1)).shape[0] == 1


def test_auto_takes_the_gpu() -> None:
    said: list[str] = []
    assert load_backend(DEFAULT_MODEL, say=said.append).ran.device == "cuda:0"
    assert said
