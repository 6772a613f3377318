"""Which engines take part, and chunks to measure with."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parotid_seg.bench import selection as module
from parotid_seg.bench.selection import IN_ROTATION, rotation, select_engines
from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import InputError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.scan.chunks import CroppedScan
from tests.export.small_model import CONTRACT, write_small_model
from tests.fakes.fake_cuda import ADA, write_engine


def field(
    *backends: str,
    model: Path = DEFAULT_MODEL,
    device: str = "auto",
    runnable: Callable[..., Any] = lambda *_: None,
    say: Callable[[str], None] = print,
) -> module.Selection:
    return select_engines(model, backends, device, runnable, say)


def names(*backends: str, **more: Any) -> list[str]:
    return [candidate.name for candidate in field(*backends, **more).candidates]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda index=0: ADA)
    monkeypatch.setattr("parotid_seg.runtime.engines.load.find_gpus", lambda: [ADA])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    small = write_small_model(tmp_path / "small.onnx")
    return write_engine(tmp_path / "small.engine", small, CONTRACT, "tensorrt", BatchProfile(1, 4, 8))


def test_all_that_are_installed() -> None:
    found = field()
    assert [candidate.name for candidate in found.candidates][:2] == ["onnxruntime FP32", "OpenVINO FP32"]
    assert found.gpu is None
    assert {candidate.file for candidate in found.candidates} == {DEFAULT_MODEL}
    for candidate in found.candidates:
        backend = candidate.make()
        assert backend.ran.precision == candidate.precision
        backend.close()


def test_engines_can_be_pickled_for_other_processes(gpu: None, engine: Path) -> None:
    for model in (DEFAULT_MODEL, engine):
        for candidate in field(model=model, say=lambda _: None).candidates:
            pickle.dumps(candidate.make)  # raises if it carries the callback


def test_those_that_are_named() -> None:
    assert names("onnxruntime") == ["onnxruntime FP32"]
    assert set(names("openvino")) <= {"OpenVINO FP32", "OpenVINO BF16"}
    with pytest.raises(
        InputError, match="found 'auto', expected one of: onnxruntime, openvino, tensorrt, tensorrt-rtx"
    ):
        field("auto")


def test_a_gpu_that_onnxruntime_cannot_use_is_told(gpu: None) -> None:
    said: list[str] = []
    assert "onnxruntime FP32" in names(say=said.append)
    assert said[0].startswith(f"{ADA} is not used for the model file: onnxruntime ")
    with pytest.raises(InputError, match="has no CUDAExecutionProvider"):
        field("onnxruntime", device="cuda")


def test_engines(gpu: None, engine: Path) -> None:
    small = engine.with_suffix(".onnx")
    assert names(model=engine) == ["TensorRT FP16"]
    assert names("tensorrt", model=engine) == ["TensorRT FP16"]
    assert names(model=small)[-1] == "TensorRT FP16"  # it lies beside the model
    made = field("tensorrt", model=small, runnable=lambda model, backend: engine)
    assert [candidate.file for candidate in made.candidates] == [engine]
    assert made.gpu == 0
    with pytest.raises(InputError, match=r"--backend openvino: found small.engine, an engine for tensorrt"):
        field("openvino", model=engine)
    with pytest.raises(InputError, match=r"--device cpu: found small.engine, an engine"):
        field(model=engine, device="cpu")


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda index=0: None)
    with pytest.raises(InputError, match="--backend tensorrt: runs on NVIDIA GPUs, found none"):
        field("tensorrt")
    with pytest.raises(InputError, match=r"--backend tensorrt: runs on NVIDIA GPUs, found --device cpu"):
        field("tensorrt", device="cpu")
    shutil.copy(__file__, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="not an ONNX model"):
        field(model=tmp_path / "model.onnx")


def test_what_auto_does_not_choose_is_not_measured(tmp_path: Path, gpu: None) -> None:
    int8 = write_small_model(tmp_path / "small.int8.onnx", replace(CONTRACT, precision="int8"))
    for backend, model in (("openvino", int8), ("onnxruntime-rtx", DEFAULT_MODEL)):
        words = f"--backend {backend}: not measured with {model.name}, as 'infer --backend auto' does not choose it"
        with pytest.raises(InputError, match=words):
            field(backend, model=model)
    with pytest.raises(InputError, match=r"--backend openvino: runs on the CPU, found --device cuda"):
        field("openvino", device="cuda")


def test_an_engine_without_a_gpu(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda index=0: None)
    with pytest.raises(InputError, match=r"small.engine: an engine, which runs on NVIDIA GPUs, found none"):
        field(model=engine)


GRID = Grid(size=56, spacing_mm=4.0, offsets_mm=(-3.0, 0.0, 3.0))


def test_chunks_in_rotation_differ_and_have_one_shape() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, (1, 60, 40, 40)).astype(np.float16)
    matrices = {name: np.eye(40, dtype=np.float32) for name in ("rows", "columns", "rows_back", "columns_back")}
    windows = np.array([[-200.0, 300.0]], np.float32)
    covered = CroppedScan(voxels, windows, 3.0, slice(0, 40), slice(0, 40), matrices)
    contract = Contract(("background", "organ"), ("CT",), ((-200.0, 300.0),), GRID)
    inputs, scans = rotation([covered], contract, 16)
    assert scans == {0}
    assert len(inputs) == IN_ROTATION
    assert len({chunk["slices"].shape for chunk in inputs}) == 1
    assert len({chunk["slices"].tobytes() for chunk in inputs}) == IN_ROTATION
    assert rotation([covered], contract, 61) == ([], set())
    narrow = replace(covered, voxels=voxels[..., :30], columns=slice(0, 30))
    assert rotation([narrow, covered, covered], contract, 16).scans == {1, 2}  # chunks of one size only
