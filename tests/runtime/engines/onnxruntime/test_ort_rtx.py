"""onnxruntime's plug-in for TensorRT-RTX: a mock of it, and where the package is installed the real one."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from parotid_seg.errors import MachineError, ModelError, OptionError
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime import rtx
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.io_binding import IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.rtx import OnnxRuntimeRtxBackend
from parotid_seg.runtime.engines.registry import ENGINES, Request
from tests.export.small_model import CONTRACT, write_small_model
from tests.runtime.engines.tensorrt.on_fake_gpu import inputs_of, scan

PROVIDER = "NvTensorRTRTXExecutionProvider"
GPU = SimpleNamespace(ep_name=PROVIDER)
Session = onnxruntime.InferenceSession


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "small.onnx")


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    rtx._register.cache_clear()
    yield
    rtx._register.cache_clear()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The plug-in with one GPU, which is the CPU; what it was given."""
    given: dict[str, Any] = {"registered": [], "devices": [GPU, SimpleNamespace(ep_name="CPUExecutionProvider")]}
    package: Any = ModuleType(rtx.MODULE)
    package.get_ep_name, package.get_library_path = lambda: PROVIDER, lambda: "/plug-in.so"
    monkeypatch.setitem(sys.modules, rtx.MODULE, package)
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *given_: given["registered"].append(given_)
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: given["devices"])

    def session_options() -> Any:
        entries: dict[str, str] = {}
        given["entries"] = entries
        return SimpleNamespace(
            add_session_config_entry=entries.__setitem__,
            add_provider_for_devices=lambda devices, options: given.update(chosen=devices, options=options),
        )

    monkeypatch.setattr(rtx, "session_options", session_options)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda content, _: Session(content, providers=["CPUExecutionProvider"])
    )
    monkeypatch.setattr(
        rtx, "IoBindingSession", lambda session, output, stream, *_: IoBindingSession(session, output, stream, "cpu")
    )
    monkeypatch.setattr(rtx, "version", lambda _: "0.5.0")
    return given


@pytest.mark.parametrize("why", ["no home", "a file in its place"])
def test_kernels_are_not_kept_where_there_is_no_folder_for_them(
    model: Path, plugin: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest, why: str
) -> None:
    if why == "no home":
        request.getfixturevalue("without_home")
    else:
        (tmp_path / "parotid-seg").write_text("")
        request.getfixturevalue("monkeypatch").setenv("XDG_CACHE_HOME", str(tmp_path))
    OnnxRuntimeRtxBackend(model)
    assert "nv_runtime_cache_path" not in plugin["options"]
    assert "nv_profile_min_shapes" in plugin["options"]


def test_labels_are_those_of_the_cpu_and_nothing_may_run_there(model: Path, plugin: dict[str, Any]) -> None:
    expected = OnnxRuntimeBackend.__new__(OnnxRuntimeBackend)
    expected._session, expected._output, expected._model = Session(str(model)), "labels", model
    backend = OnnxRuntimeRtxBackend(model)
    for inputs in inputs_of(scan()):
        assert backend.fits(inputs)
        np.testing.assert_array_equal(labels_of(backend, inputs), labels_of(expected, inputs))
        assert backend.timed(inputs)[1].compute > 0
    assert plugin["registered"] == [(PROVIDER, "/plug-in.so")]
    assert plugin["chosen"] == [GPU]
    assert plugin["entries"] == {"session.disable_cpu_ep_fallback": "1"}
    assert backend.ran.device == "cuda:0"
    assert backend.ran.backend.endswith("with TensorRT-RTX's plug-in 0.5.0")
    backend.close()


def test_the_engine_is_built_for_the_shapes_that_fit(model: Path, plugin: dict[str, Any]) -> None:
    backend = OnnxRuntimeRtxBackend(model)
    options = plugin["options"]
    assert options["nv_profile_min_shapes"].startswith("slices:1x1x16x16,window:1x2,rows:8x16,")
    assert options["nv_profile_opt_shapes"].startswith("slices:1x32x256x256,")
    assert options["nv_profile_max_shapes"].endswith("slices_back:1600x257,rows_back:1024x8,columns_back:1024x8")
    assert Path(options["nv_runtime_cache_path"]).stat().st_mode & 0o777 == 0o700
    inputs = inputs_of(scan())[0]
    assert not backend.fits({**inputs, "columns": np.zeros((8, 1025), np.float32)})
    assert backend.largest_batch == 256


def test_a_gpu_that_it_does_not_support(model: Path, plugin: dict[str, Any]) -> None:
    plugin["devices"].remove(GPU)
    with pytest.raises(MachineError, match=r"found 0 GPUs that it supports, expected one for cuda:0, of compute"):
        OnnxRuntimeRtxBackend(model)


def test_an_engine_that_cannot_be_built_is_one_line(
    model: Path, plugin: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("EP_FAIL : failed to deserialize engine\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(ModelError, match=r"small\.onnx: .* cannot build an engine of it \(EP_FAIL : .* engine\)$"):
        OnnxRuntimeRtxBackend(model)


def test_without_the_driver(model: Path, plugin: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fails)
    with pytest.raises(MachineError, match=r"does not load; is NVIDIA's driver installed\? \(libcuda\.so\.1: cannot"):
        OnnxRuntimeRtxBackend(model)


def test_without_the_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, rtx.MODULE, None)
    request = Request(model, read_model(model).contract, 0, None, "labels", lambda _: None)
    with pytest.raises(OptionError, match=rf"not installed: pip install 'onnxruntime>=1\.24' {rtx.PACKAGE}$"):
        ENGINES["onnxruntime-rtx"].implementation().load(request)


def test_auto_does_not_choose_it(model: Path) -> None:
    request = Request(model, CONTRACT, 0, None, "labels", pytest.fail)
    assert ENGINES["onnxruntime-rtx"].implementation().candidates(request) == []


@pytest.mark.skipif(importlib.util.find_spec(rtx.MODULE) is None, reason=f"missing: {rtx.INSTALL}")
def test_the_real_package_loads_or_says_what_is_missing() -> None:
    """In a machine without a driver its library cannot be loaded; with one it lists the GPUs that it supports."""
    try:
        devices = rtx.supported_devices()
    except MachineError as error:
        assert "is NVIDIA's driver installed" in str(error)  # noqa: PT017  # both are right, by the machine
    else:
        assert all(device.ep_name == PROVIDER for device in devices)
