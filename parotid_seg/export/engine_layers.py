"""The layers of an engine, and of the network before it is built, with the types that they compute in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from parotid_seg.errors import ModelError
from parotid_seg.export.engine import parse
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import import_library, library_named, log_of

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


def describe_layers(engine: bytes, library: str) -> list[Layer]:
    """The layers of a built engine, by its library's inspector. This loads the engine, which needs its GPU.

    Args:
        engine: bytes from `runtime.engines.engine_file.read_engine`; any other bytes could run arbitrary code.
        library: the library that built it.

    Raises:
        InputError: if the library is not installed.
        ModelError: if the library does not load the engine, with its message; without a GPU it never does.
    """
    trt, log = import_library(library), log_of(library)
    log.clear()
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # version-compatible engines contain a runtime
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise ModelError(f"{library_named(library).title} {trt.__version__} does not load the engine: {log.said()}")
    inspector = loaded.create_engine_inspector()
    inspector.execution_context = _context_of_usual_shapes(trt, loaded)
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    # not from a file: the library says this of an engine whose hash was checked, and which runs as a program anyway
    return [_engine_layer(entry) for entry in json.loads(text)["Layers"]]


def _context_of_usual_shapes(trt: ModuleType, loaded: Any) -> Any:
    """A context without memory: types of tensors with free sizes are reported only for given sizes."""
    context = loaded.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    for index in range(loaded.num_io_tensors):
        name = loaded.get_tensor_name(index)
        if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, loaded.get_tensor_profile_shape(name, 0)[1])
    return context


def _network_layer(layer: Any, dequantised: set[str]) -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    return {
        "name": layer.name,
        "type": layer.type.name.lower(),
        "inputs": [
            "int8" if tensor.name in dequantised else _plain(tensor.dtype.name)
            for tensor in inputs
            if tensor is not None
        ],
        "outputs": [_plain(tensor.dtype.name) for tensor in outputs],
    }


def _engine_layer(entry: dict[str, Any]) -> Layer:
    return {
        "name": entry["Name"],
        "type": entry.get("LayerType", "unknown"),
        "inputs": [_plain(_type_text(tensor)) for tensor in entry.get("Inputs", [])],
        "outputs": [_plain(_type_text(tensor)) for tensor in entry.get("Outputs", [])],
    }


def _type_text(tensor: dict[str, Any]) -> str:
    """The inspector's text on a tensor's type; the field's name differs between versions."""
    fields = ("DataType", "Datatype", "Format/Datatype", "Format")
    return next((str(tensor[field]) for field in fields if field in tensor), "")


def _plain(text: str) -> str:
    """One spelling for "HALF", "Half" and "Row major linear FP16 format (kLINEAR)"; "unknown" if it names no type."""
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((PLAIN[word] for word in words if word in PLAIN), "unknown")
