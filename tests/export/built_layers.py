"""The layers of a built engine, with the types that they compute in."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

from parotid_seg.errors import ModelError
from parotid_seg.export.ops_by_dtype import Layer
from parotid_seg.runtime.engines.onnxruntime.profile import type_in
from parotid_seg.runtime.engines.tensorrt.library import import_library, library_named, log_of


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


def _engine_layer(entry: dict[str, Any]) -> Layer:
    return {
        "name": entry["Name"],
        "type": entry.get("LayerType", "unknown"),
        "inputs": [type_in(_type_text(tensor)) for tensor in entry.get("Inputs", [])],
        "outputs": [type_in(_type_text(tensor)) for tensor in entry.get("Outputs", [])],
    }


def _type_text(tensor: dict[str, Any]) -> str:
    """The inspector's text on a tensor's type; the field's name differs between versions."""
    fields = ("DataType", "Datatype", "Format/Datatype", "Format")
    return next((str(tensor[field]) for field in fields if field in tensor), "")
