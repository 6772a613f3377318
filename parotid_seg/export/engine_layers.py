"""The layers of a network as TensorRT parses it, with the types that they compute in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from parotid_seg.export.build_engine import parse
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import import_library, log_of

PLAIN = {
    **{name: name for name in ("int4", "int8", "int32", "int64", "uint8", "bool", "fp4", "fp8")},
    **{"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16"},
    **{"bf16": "bfloat16", "bfloat16": "bfloat16"},
}
"""One name for each of the library's names of a type."""

Layer = dict[str, Any]
"""name and type (text), inputs and outputs (a list of the tensors' types, "float32", "float16", "int64" ...)."""


def describe_network(onnx_path: Path, library: str) -> list[Layer]:
    """The layers of a model file after the library's parser; needs no GPU.

    The network is strongly typed, so the engine keeps these types; fusion is not known yet. A dequantised input is
    reported as int8, because the builder uses the quantised values where it fuses both layers.

    Raises:
        InputError: if the library is not installed.
        ModelError: if its parser rejects the file.
    """
    trt, log = import_library(library), log_of(library)
    builder = trt.Builder(log)
    network, parser = parse(trt, builder, read_model(onnx_path)[0], log, onnx_path)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised: set[str] = set()
    for layer in layers:  # the parser reshapes weights after their dequantisation
        reshaped = layer.type == trt.LayerType.SHUFFLE and layer.get_input(0).name in dequantised
        if reshaped or layer.type == trt.LayerType.DEQUANTIZE:
            dequantised.add(layer.get_output(0).name)
    described = [_network_layer(layer, dequantised) for layer in layers]
    del layers, parser
    return described


def _network_layer(layer: Any, dequantised: set[str]) -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    return {
        "name": layer.name,
        "type": layer.type.name.lower(),
        "inputs": [
            "int8" if tensor.name in dequantised else plain_type(tensor.dtype.name)
            for tensor in inputs
            if tensor is not None
        ],
        "outputs": [plain_type(tensor.dtype.name) for tensor in outputs],
    }


def plain_type(text: str) -> str:
    """One spelling for "HALF", "Half" and "Row major linear FP16 format (kLINEAR)"; "unknown" if it names no type."""
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((PLAIN[word] for word in words if word in PLAIN), "unknown")
