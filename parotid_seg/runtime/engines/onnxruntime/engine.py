"""onnxruntime as an engine: on the CPU, on NVIDIA GPUs, and with the variants beside a model file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.autotune import Candidate, Say
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime import cpu, cuda
from parotid_seg.runtime.engines.registry import Request

FASTER = {"cpu": "int8", "cuda": "fp16"}
"""The lower precision that is tried, by device."""
DIFFERENT = ("precision", "weights", "graph_sha256", "cost", "verification")
"""Fields that may differ between the contracts of one model in two precisions."""


def load(request: Request) -> Backend:
    """Load a file. See `registry.Implementation`."""
    return _load(request.model, request.gpu, request.threads, request.output)


def candidates(request: Request) -> list[Candidate]:
    """The model file itself, and its variant in a lower precision. See `registry.Implementation`."""
    if request.gpu is not None:
        cuda.check_provider()
    model, contract = request.model, request.contract
    device, title = ("cpu", "onnxruntime") if request.gpu is None else ("cuda", "onnxruntime CUDA")
    files = {contract.precision: model}
    if contract.precision != FASTER[device] and (device == "cpu" or contract.precision == "fp32"):
        lower = variant(model, contract, FASTER[device], request.say)
        if lower:
            files[FASTER[device]] = lower
    return [
        Candidate(
            f"{title} {precision.upper()}",
            "onnxruntime",
            precision,
            file,
            partial(_load, file, request.gpu, request.threads, request.output),
        )
        for precision, file in files.items()
    ]


def variant(model: Path, contract: Contract, precision: str, say: Say) -> Path | None:
    """The same model in another precision, as `NAME.int8.onnx` beside `NAME.onnx`; None if there is no usable one."""
    path = model.with_suffix(f".{precision}.onnx")
    if not path.is_file() or path == model:
        return None
    try:
        other = read_model(path)[1]
    except ModelError as error:
        say(f"not used: {error}")
        return None
    if other.schema_version != contract.schema_version:
        say(
            f"{path}: not used: contract of schema version {other.schema_version}, expected {contract.schema_version}, "
            f"that of {model.name}; export it again"
        )
        return None
    comparable = replace(other, **{name: getattr(contract, name) for name in DIFFERENT})
    if other.precision != precision or comparable != contract:
        say(f"{path}: not used: not the model of {model.name} in {precision.upper()}; export both from one checkpoint")
    elif not other.verification:
        say(f"{path}: not used: not verified")
    else:
        return path
    return None


def _load(file: Path, gpu: int | None, threads: int | None, output: str) -> Backend:
    if gpu is None:
        return cpu.OnnxRuntimeBackend(file, threads=threads, output=output)
    return cuda.OnnxRuntimeCudaBackend(file, device=gpu, output=output)
