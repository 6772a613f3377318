"""Engines of a small model on a GPU that is none (see `tests.fake_cuda`)."""

from pathlib import Path

import pytest

from tests import fake_cuda
from tests.export.small_model import write_small_model
from tests.fake_gpu import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_cuda.install(monkeypatch)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "small.onnx")
