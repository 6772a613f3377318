"""Which engines the TensorRT backend loads on a GPU that is none (see `tests.fakes.fake_cuda`), and why no others."""

import dataclasses
import hashlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from parotid_seg.errors import DeviceError, DeviceMemoryError, InputError, ModelError
from parotid_seg.runtime.engines.engine_file import read_sidecar, sidecar_path
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from tests.export.small_model import write_small_model
from tests.fakes.fake_gpu import CudaError, CudaMemoryError, FakeGpu
from tests.runtime.engines.tensorrt.on_fake_gpu import engine_of, inputs_of, run, scan


def test_an_engine_that_does_not_fit(gpu: FakeGpu, small: Path) -> None:
    gpu.limit = 100
    with pytest.raises(DeviceMemoryError, match=r"small\.engine not loaded: .*OutOfMemory"):
        TensorRtBackend(engine_of(small))
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_a_gpu_without_room_for_a_context(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(flags: object) -> None:
        raise CudaMemoryError("cuStreamCreate failed: out of memory")

    monkeypatch.setattr(importlib.import_module("pycuda.driver"), "Stream", full)
    with pytest.raises(
        DeviceMemoryError, match=r"TensorRT 10\.13\.0: out of GPU memory for .*small\.engine \(cuStream"
    ):
        TensorRtBackend(engine_of(small))
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_probabilities(gpu: FakeGpu, tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.onnx", extra=helper.make_node("Softmax", ["native"], ["more"], axis=1))
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "probabilities"
    del model.graph.output[-1]
    sizes = ("out", 2, "height", "width")
    model.graph.output.append(helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, sizes))
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path)
    for output in ("probabilities", "labels"):
        backend = TensorRtBackend(engine_of(path), output=output)
        for inputs, got in zip(inputs_of(scan()), run(backend, inputs_of(scan())), strict=True):
            expected = session.run([output], inputs)[0]
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        backend.close()


def test_an_output_the_engine_lacks(gpu: FakeGpu, small: Path) -> None:
    with pytest.raises(ModelError, match="found outputs labels, expected probabilities"):
        TensorRtBackend(engine_of(small), output="probabilities")
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_an_engine_of_other_inputs(gpu: FakeGpu, small: Path) -> None:
    model = onnx.load(small)
    model.graph.input[1].name = "level"
    for node in model.graph.node:
        node.input[:] = ["level" if name == "window" else name for name in node.input]
    onnx.save(model, small)
    with pytest.raises(ModelError, match=r"found inputs columns, .*level.*, expected columns, .*window"):
        TensorRtBackend(engine_of(small))


def test_only_an_engine_that_fits_is_loaded(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(small)
    old = dataclasses.replace(read_sidecar(engine), library_version="10.12.1")
    good = sidecar_path(engine).read_text()
    sidecar_path(engine).write_text(old.to_json())
    with pytest.raises(ModelError, match=r"cannot be used here: found TensorRT 10\.13\.0, expected 10\.12\.1"):
        TensorRtBackend(engine)
    sidecar_path(engine).write_text(good)
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(ModelError, match="its hash is not the one in its sidecar"):
        TensorRtBackend(engine)
    assert gpu.runtimes == []


def test_an_engine_that_the_library_does_not_take(gpu: FakeGpu, small: Path) -> None:
    engine = engine_of(small)
    engine.write_bytes(b"no plan")
    sidecar = read_sidecar(engine)
    sha256 = hashlib.sha256(b"no plan").hexdigest()
    sidecar_path(engine).write_text(dataclasses.replace(sidecar, engine_sha256=sha256).to_json())
    with pytest.raises(
        ModelError, match=r"TensorRT 10\.13\.0: .*small\.engine not loaded: The engine plan file is no plan$"
    ):
        TensorRtBackend(engine)
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_an_engine_that_the_library_says_is_invalid(gpu: FakeGpu, small: Path) -> None:
    gpu.validity = "INVALID"
    with pytest.raises(ModelError) as caught:
        TensorRtBackend(engine_of(small, "tensorrt-rtx"))
    assert str(caught.value).endswith(
        "small.engine: cannot be used here: TensorRT-RTX 1.7.1 names as the reason: unsupported cc, malformed engine"
    )
    assert (gpu.stack, gpu.retained, gpu.contexts) == ([], 0, [])
    gpu.validity = "SUBOPTIMAL"
    TensorRtBackend(engine_of(small, "tensorrt-rtx")).close()


def test_a_gpu_that_the_library_has_no_code_for(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = Gpu("NVIDIA H100", (9, 0), "13.0")
    monkeypatch.setattr("parotid_seg.runtime.engines.tensorrt.tensorrt_engine.find_gpu", lambda index=0: hopper)
    with pytest.raises(
        ModelError, match=r"cannot be used here: found NVIDIA H100 \(compute capability 9\.0\), expected "
    ):
        TensorRtBackend(engine_of(small, "tensorrt-rtx"))
    assert gpu.runtimes == []


def test_a_driver_that_does_not_start(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise CudaError("cuInit failed: system has unsupported display driver / cuda driver combination")

    monkeypatch.setattr(importlib.import_module("pycuda.driver"), "init", fail)
    with pytest.raises(DeviceError, match=r"TensorRT 10\.13\.0: the GPU cannot be used for .*small\.engine \(cuInit"):
        TensorRtBackend(engine_of(small))
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_a_runtime_that_does_not_start(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(log: Any) -> None:
        log.log(log.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(importlib.import_module("tensorrt"), "Runtime", fail)
    with pytest.raises(DeviceError, match=r"^TensorRT 10\.13\.0 does not start: CUDA initialization failure .*35$"):
        TensorRtBackend(engine_of(small))
    assert (gpu.stack, gpu.retained) == ([], 0)


def test_without_a_gpu(gpu: FakeGpu, library: str, small: Path) -> None:
    with pytest.raises(InputError, match="no NVIDIA GPU 1 found, and engines run on one only"):
        TensorRtBackend(engine_of(small, library), device=1)


@pytest.mark.parametrize(("library", "extra"), [("tensorrt", "tensorrt-run"), ("tensorrt-rtx", "rtx-run")])
def test_without_pycuda(gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(InputError) as caught:
        TensorRtBackend(engine_of(small, library))
    assert "the package pycuda is missing or does not load" in str(caught.value)
    assert str(caught.value).endswith(f"pip install 'parotid-seg[{extra}]'")


def test_it_loads_neither_torch_nor_onnx_nor_pycuda_until_it_is_used() -> None:
    code = (
        "import sys, parotid_seg.runtime.engines.tensorrt.tensorrt_engine; "
        "print({'torch', 'onnx', 'pycuda', 'tensorrt', 'tensorrt_rtx'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
