"""Which engines could run a model here: what is installed, and what lies beside the model file."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, ModelError
from parotid_seg.files import hash_file
from parotid_seg.runtime.engines.autotune import Candidate, Say
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.system import versions_of

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "parotid-seg")
"""A choice is made anew when a version of these changes."""


def on_cpu(model: Path, contract: Contract, threads: int | None, output: str, say: Say) -> list[Candidate]:
    """Engines on the CPU; the first is onnxruntime with the model file itself."""
    found = [_onnxruntime(model, contract.precision, threads, output)]
    quantised = variant(model, contract, "int8", say)
    if quantised:
        found.append(_onnxruntime(quantised, "int8", threads, output))
    # An INT8 file is not computed alike by two engines: its masks are proven for onnxruntime's rounding.
    if contract.precision == "int8" or importlib.util.find_spec("openvino") is None:
        return found
    from parotid_seg.runtime.engines.openvino import OpenVinoBackend, computes_bf16

    try:
        precisions = ("fp32", "bf16") if computes_bf16() else ("fp32",)
    except InputError as error:
        say(f"OpenVINO is not used: {error}")
        return found
    for precision in precisions:
        make = partial(OpenVinoBackend, model, precision=precision, threads=threads, output=output)
        found.append(Candidate(f"OpenVINO {precision.upper()}", "openvino", precision, model, make))
    return found


def on_gpu(model: Path, contract: Contract, index: int, output: str, say: Say) -> list[Candidate]:
    """Engines on an NVIDIA GPU for ONNX files; the first takes the model file itself."""
    from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend

    files = {contract.precision: model}
    half = variant(model, contract, "fp16", say)
    if half and contract.precision == "fp32":
        files["fp16"] = half
    return [
        Candidate(
            f"onnxruntime CUDA {precision.upper()}",
            "onnxruntime",
            precision,
            file,
            partial(OnnxRuntimeCudaBackend, file, device=index, output=output),
        )
        for precision, file in files.items()
    ]


def variant(model: Path, contract: Contract, precision: str, say: Say) -> Path | None:
    """The same model in another precision, as `NAME.int8.onnx` beside `NAME.onnx`; None if there is none to be used."""
    path = model.with_suffix(f".{precision}.onnx")
    if not path.is_file() or path == model:
        return None
    try:
        found = read_model(path)[1]
    except ModelError as error:
        say(f"not used: {error}")
        return None
    if found.schema_version != contract.schema_version:
        say(
            f"{path}: not used: contract of schema version {found.schema_version}, expected {contract.schema_version}, "
            f"that of {model.name}; export it again"
        )
        return None
    ours = replace(found, **{name: getattr(contract, name) for name in DIFFERENT})
    if found.precision != precision or ours != contract:
        say(f"{path}: not used: not the model of {model.name} in {precision.upper()}; export both from one checkpoint")
    elif not found.verification:
        say(f"{path}: not used: not verified")
    else:
        return path
    return None


DIFFERENT = ("precision", "weights", "graph_sha256", "cost", "verification")
"""What the contracts of one model in two precisions need not share."""


def facts_of(model: Path) -> dict[str, object]:
    """What a choice depends on besides the machine: model files and versions."""
    files = [model, *(model.with_suffix(f".{precision}.onnx") for precision in ("int8", "fp16"))]
    return {"files": [hash_file(file) for file in files if file.is_file()], "versions": versions_of(PACKAGES)}


def _onnxruntime(model: Path, precision: str, threads: int | None, output: str) -> Candidate:
    name = f"onnxruntime {precision.upper()}"
    return Candidate(
        name, "onnxruntime", precision, model, partial(OnnxRuntimeBackend, model, threads=threads, output=output)
    )
