"""The TensorRT backend on the GPU, against onnxruntime. Run with: pytest -m gpu tests/gpu."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import DeviceMemoryError, ScanError
from parotid_seg.export.build_engine import build_engine
from parotid_seg.export.find_engine import runnable
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.tensorrt.cuda_context import PrimaryContext
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import SLOTS, TensorRtBackend
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.nifti import read_nifti
from tests.export.small_model import write_small_model
from tests.runtime.engines.tensorrt.on_fake_gpu import inputs_of, run, scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU found"),
    pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is missing: pip install pycuda"),
]
BATCH = BatchProfile(1, 4, 8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="module")
def engine(library: str, small: Path) -> Path:
    return built(small, library, BATCH)


@pytest.fixture
def backend(engine: Path) -> Iterator[TensorRtBackend]:
    backend = TensorRtBackend(engine)
    yield backend
    backend.close()


def built(onnx_path: Path, library: str, batch: BatchProfile) -> Path:
    out = onnx_path.with_name(f"{library}-{batch.min}.engine")
    build_engine(onnx_path, out, library=library, profile=batch, options=EngineOptions())
    return out


def check(found: Sequence[NDArray[Any]], reference: OnnxRuntimeBackend, inputs: Sequence[Inputs]) -> None:
    """Labels are onnxruntime's but for sums that are rounded in another order, at the edge of a structure."""
    for got, each in zip(found, inputs, strict=True):
        expected = labels_of(reference, each)
        assert got.shape == expected.shape
        assert np.mean(got != expected) <= 0.002 * max(float(np.mean(expected > 0)), 0.05)


def test_small_model_in_half_precision_at_several_sizes(backend: TensorRtBackend, small: Path) -> None:
    reference = OnnxRuntimeBackend(small)
    for seed, (size, batch_size) in enumerate([((19, 40, 48), 4), ((9, 96, 64), 8), ((5, 33, 17), 1)]):
        inputs = inputs_of(scan(*size, seed), batch_size)
        check(run(backend, inputs), reference, inputs)
    assert f"cuda:0 {find_gpu().name}" == backend.ran.device
    assert backend.ran.precision == "fp16"


def test_the_packaged_model_on_the_example(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = runnable(DEFAULT_MODEL, library)
    assert runnable(DEFAULT_MODEL, library) == engine
    backend, reference = TensorRtBackend(engine), OnnxRuntimeBackend(DEFAULT_MODEL)
    path = next((example_folder() / "imagesTr").glob("*.nii.gz"))
    volume, windows = in_windows(read_nifti(path).volume, backend.contract.channels, backend.contract.windows)
    inputs = [chunk.inputs for chunk in chunks(volume, windows, backend.contract.grid, 16)]
    found = run(backend, inputs)
    assert any(labels.any() for labels in found)
    check(found, reference, inputs)
    backend.close()


def test_the_steady_state_makes_nothing_new(backend: TensorRtBackend) -> None:
    inputs = inputs_of(scan())
    for _ in range(2 * SLOTS):
        run(backend, inputs)
    made = backend.allocations
    for _ in range(3):
        run(backend, inputs)
    assert backend.allocations == made


def test_graphs_give_the_labels_that_were_there_without(backend: TensorRtBackend, library: str, small: Path) -> None:
    first, second = inputs_of(scan(seed=1)), inputs_of(scan(seed=2))
    expected = [run(backend, first), run(backend, second)]
    for _ in range(2 * SLOTS):
        for inputs, wanted in zip((first, second), expected, strict=True):
            found = run(backend, inputs)
            if library == "tensorrt":  # TensorRT-RTX exchanges its kernels for better ones as it goes
                for got, each in zip(found, wanted, strict=True):
                    np.testing.assert_array_equal(got, each)
            check(found, OnnxRuntimeBackend(small), inputs)
    assert not backend.graphs.startswith("none: capturing failed"), backend.graphs
    assert (backend.replays > 0) == (library == "tensorrt")
    larger = inputs_of(scan(11, 96, 96, 3), 8)
    check(run(backend, larger), OnnxRuntimeBackend(small), larger)
    check(run(backend, first), OnnxRuntimeBackend(small), first)


def test_small_chunks_are_filled_up_to_the_engines_least_batch(library: str, small: Path) -> None:
    backend = TensorRtBackend(built(small, library, BatchProfile(3, 4, 8)))
    inputs = inputs_of(scan(9))  # 4, 4 and 1 looks
    check(run(backend, inputs), OnnxRuntimeBackend(small), inputs)
    backend.close()


def test_too_little_gpu_memory_is_told_and_the_next_chunk_goes_on(backend: TensorRtBackend, small: Path) -> None:
    import pycuda.driver as cuda

    inputs, context = inputs_of(scan()), PrimaryContext(cuda, 0)
    taken, step = [], 1 << 30
    with context.current():
        while step >= 1 << 20:
            try:
                taken.append(cuda.mem_alloc(step))
            except cuda.MemoryError:
                step //= 2
    try:
        with pytest.raises(DeviceMemoryError):
            run(backend, inputs_of(scan(30, 512, 512), 8))
    finally:
        with context.current():
            while taken:
                taken.pop().free()
        context.release()
    check(run(backend, inputs), OnnxRuntimeBackend(small), inputs)


def test_a_chunk_that_the_engine_was_not_built_for(backend: TensorRtBackend, small: Path) -> None:
    with pytest.raises(ScanError, match="neighbours of a chunk: found 20 x 3 x 21, expected 1 x 3 x 1 to 9 x 3 x 73"):
        backend.start(inputs_of(scan(30), 20)[0])
    inputs = inputs_of(scan())
    check(run(backend, inputs), OnnxRuntimeBackend(small), inputs)


def test_two_backends_in_one_process_and_one_closed_before_the_other(engine: Path, small: Path) -> None:
    first, second = TensorRtBackend(engine), TensorRtBackend(engine)
    inputs, reference = inputs_of(scan()), OnnxRuntimeBackend(small)
    for each in inputs:
        one, other = first.start(each), second.start(each)
        check([other.result(), one.result()], reference, [each, each])
    first.close()
    first.close()
    check(run(second, inputs), reference, inputs)
    second.close()
    third = TensorRtBackend(engine)
    check(run(third, inputs), reference, inputs)
    third.close()


def test_the_host_programs_context_stays_current(engine: Path) -> None:
    import pycuda.driver as cuda

    cuda.init()
    host = cuda.Device(0).make_context()
    try:
        backend = TensorRtBackend(engine)
        run(backend, inputs_of(scan()))
        backend.close()
        cuda.mem_alloc(1024).free()
        assert cuda.Context.get_current() == host
    finally:
        host.pop()


def test_no_torch_is_loaded(engine: Path) -> None:
    code = (
        "import pathlib, sys; from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend; "
        f"TensorRtBackend(pathlib.Path({str(engine)!r})).close(); print({{'torch', 'onnx'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
