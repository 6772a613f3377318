"""Engines of a small model on a GPU that is none (see `tests.fakes.fake_cuda`), and engines that load anything."""

import importlib.util
import os
import sys
from pathlib import Path

import nibabel
import pytest

from parotid_seg.runtime.engines import load, openvino
from parotid_seg.runtime.engines.onnxruntime import cuda as ort_cuda
from tests.export.small_model import write_small_model
from tests.fakes import fake_cuda
from tests.fakes.fake_gpu import FakeGpu
from tests.runtime.engines.stand_ins import Loaded, first_of


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_cuda.install(monkeypatch)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "small.onnx")


@pytest.fixture
def short_example(head: nibabel.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example scan cut to the slices around the glands, to be quick."""
    (tmp_path / "imagesTr").mkdir()
    nibabel.save(head, tmp_path / "imagesTr" / "head.nii.gz")
    monkeypatch.setattr("parotid_seg.runtime.engines.engine_benchmark.example_folder", lambda: tmp_path)


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user, whom no list has, without a cache folder."""
    if sys.platform != "linux":
        pytest.skip("the folders of Linux")
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime with CUDA."""
    monkeypatch.setattr(ort_cuda, "check_provider", lambda: None)
    monkeypatch.setattr(ort_cuda, "OnnxRuntimeCudaBackend", lambda file, **how: Loaded("cuda", file, **how))
    monkeypatch.setattr(load, "choose", first_of)


@pytest.fixture
def openvino_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenVINO that loads anything."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(openvino, "computes_bf16", lambda: True)
    monkeypatch.setattr(openvino, "OpenVinoBackend", lambda file, **how: Loaded("openvino", file, **how))


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
