"""Layers and their types: of real networks by TensorRT-RTX's parser, of engines from what inspectors write."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parotid_seg.errors import ModelError
from parotid_seg.export.ops_by_dtype import describe_network
from parotid_seg.models import DEFAULT_MODEL
from tests.export import built_layers as module
from tests.export.built_layers import describe_layers
from tests.export.small_model import rtx, write_small_model


@rtx
def test_a_half_precision_convolution_is_seen_as_one(tmp_path: Path) -> None:
    layers = describe_network(write_small_model(tmp_path / "small.onnx"), "tensorrt-rtx")
    (convolution,) = [layer for layer in layers if layer["type"] == "convolution"]
    assert convolution["name"] == "look_at_the_gland"
    assert set(convolution["inputs"]) == set(convolution["outputs"]) == {"fp16"}
    products = [layer for layer in layers if layer["type"] == "matrix_multiply"]
    assert len(products) == 6
    assert all(layer["outputs"] == ["fp32"] for layer in products)
    assert layers[-1]["outputs"] == ["int8"]


@rtx
def test_the_packaged_model_computes_in_single_precision() -> None:
    layers = describe_network(DEFAULT_MODEL, "tensorrt-rtx")
    kinds = ("convolution", "matrix_multiply", "normalization", "softmax")
    found = Counter((layer["type"], layer["outputs"][0]) for layer in layers if layer["type"] in kinds)
    assert {kind for kind, _ in found} == set(kinds)
    assert {output for _, output in found} == {"fp32"}


@rtx
def test_what_is_no_engine_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^TensorRT-RTX \S+ does not load the engine: ") as caught:
        describe_layers(b"no engine", "tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_what_inspectors_of_several_versions_write(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
        },
        {
            "Name": "norm",
            "LayerType": "kgen",
            "Inputs": [{"Name": "y", "Format": "Row major linear FP32 format (kLINEAR)"}],
            "Outputs": [
                {"Name": "z", "DataType": "Float"},
                {"Name": "v", "Format/Datatype": "N/A due to dynamic shapes"},
            ],
        },
        {"Name": "bare"},
    ]
    given: dict[str, Any] = {}
    context = SimpleNamespace(set_input_shape=given.__setitem__)
    inspector = SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))
    loaded = SimpleNamespace(
        create_engine_inspector=lambda: inspector,
        create_execution_context=lambda _: context,
        num_io_tensors=2,
        get_tensor_name=("x", "labels").__getitem__,
        get_tensor_mode=lambda name: "in" if name == "x" else "out",
        get_tensor_profile_shape=lambda _, index: [(1,), (4,), (8,)],
    )
    library = SimpleNamespace(
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: loaded),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON=0),
    )
    monkeypatch.setattr(module, "import_library", lambda _: library)
    monkeypatch.setattr(module, "log_of", lambda _: SimpleNamespace(clear=lambda: None))
    assert describe_layers(b"engine", "tensorrt") == [
        {"name": "conv", "type": "CaskConvolution", "inputs": ["fp16"], "outputs": ["fp16"]},
        {"name": "norm", "type": "kgen", "inputs": ["fp32"], "outputs": ["fp32", "unknown"]},
        {"name": "bare", "type": "unknown", "inputs": [], "outputs": []},
    ]
    assert given == {"x": (4,)}
    assert inspector.execution_context is context
