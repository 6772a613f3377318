"""CUDA that was asked for and does not run is an error, with the line that mends it; no GPU is needed to see that."""

import ctypes
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnxruntime
import pytest

from parotid_seg.errors import InputError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.onnxruntime import cuda as ort_cuda
from parotid_seg.runtime.engines.onnxruntime.cpu import make_session, session_options
from parotid_seg.runtime.engines.onnxruntime.cuda import (
    PROVIDER,
    OnnxRuntimeCudaBackend,
    heavy_nodes,
    recorded,
    why_not,
)
from parotid_seg.runtime.engines.onnxruntime.stream import PACKAGE


@pytest.fixture(scope="module")
def on_cpu() -> onnxruntime.InferenceSession:
    content = DEFAULT_MODEL.read_bytes()
    return make_session(DEFAULT_MODEL, content, recorded(session_options()), ["CPUExecutionProvider"])


def test_the_package_without_cuda_is_named_with_the_line_that_exchanges_it() -> None:
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this environment has onnxruntime-gpu")
    with pytest.raises(InputError) as caught:
        OnnxRuntimeCudaBackend(DEFAULT_MODEL)
    text = str(caught.value)
    assert "has no CUDAExecutionProvider, found " in text
    assert "CPUExecutionProvider" in text
    assert text.endswith(f"pip install '{PACKAGE}'")
    assert "\n" not in text


def test_messages_name_the_versions_of_the_extra() -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert PACKAGE in extras["gpu"]
    assert "<" in PACKAGE


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, on_cpu: onnxruntime.InferenceSession
) -> None:
    """What onnxruntime-gpu does where CUDA's libraries are missing: a session without CUDA, and no exception."""
    monkeypatch.setattr(ort_cuda, "check_provider", lambda: None)
    monkeypatch.setattr(ort_cuda, "_new_stream", lambda *_: Mock(handle=1))
    monkeypatch.setattr(ort_cuda, "_session", lambda *_: on_cpu)
    with pytest.raises(InputError, match="CUDA does not run: "):
        OnnxRuntimeCudaBackend(DEFAULT_MODEL)


def test_heavy_nodes_on_the_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, on_cpu: onnxruntime.InferenceSession
) -> None:
    class Half:
        """A session that says it has CUDA and computes on the CPU."""

        def __getattr__(self, name: str) -> Any:
            return getattr(on_cpu, name)

        def get_providers(self) -> list[str]:
            return [PROVIDER, "CPUExecutionProvider"]

    monkeypatch.setattr(ort_cuda, "check_provider", lambda: None)
    monkeypatch.setattr(ort_cuda, "_new_stream", lambda *_: Mock(handle=1))
    monkeypatch.setattr(ort_cuda, "_session", lambda *_: Half())
    with pytest.raises(ModelError, match=r"would run 1 ArgMax, 6 Conv, 2 ConvTranspose, .* of it on the CPU"):
        OnnxRuntimeCudaBackend(DEFAULT_MODEL)


def test_where_nodes_run_is_counted(on_cpu: onnxruntime.InferenceSession) -> None:
    found = heavy_nodes(on_cpu, on="CPUExecutionProvider")
    assert found["Conv"] == 6
    assert found["LayerNormalization"] == 32
    assert "Reshape" not in found
    assert not heavy_nodes(on_cpu, on=PROVIDER)


def test_a_model_that_allows_no_graph_is_loaded_without_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def session(reason: str) -> Callable[..., None]:
        def make(model: object, content: object, provider: Any) -> None:
            asked.append(provider)
            raise ModelError(reason)

        return make

    monkeypatch.setattr(ort_cuda, "check_provider", lambda: None)
    monkeypatch.setattr(ort_cuda, "_new_stream", lambda *_: Mock(handle=1))
    monkeypatch.setattr(ort_cuda, "_session", session("This session cannot use the graph capture feature as ..."))
    with pytest.raises(ModelError):
        OnnxRuntimeCudaBackend(DEFAULT_MODEL, device=3, provider={"gpu_mem_limit": "2097152"})
    assert [provider.get("enable_cuda_graph") for provider in asked] == ["1", None]
    assert {(p["device_id"], p["use_tf32"], p["gpu_mem_limit"]) for p in asked} == {("3", "0", "2097152")}
    asked.clear()
    monkeypatch.setattr(ort_cuda, "_session", session("CUDA failure 35: driver is insufficient"))
    with pytest.raises(ModelError, match="driver is insufficient"):
        OnnxRuntimeCudaBackend(DEFAULT_MODEL)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("libcublasLt.so.13: cannot open shared object file", PACKAGE),
        ("libcuda.so.1: cannot open shared object file", "it comes with the NVIDIA driver"),
    ],
)
def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, reason: str, words: str) -> None:
    def fail(_: object) -> None:
        raise OSError(reason)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert why_not().startswith(reason)
    assert words in why_not()
