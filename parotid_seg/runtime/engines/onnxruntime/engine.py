"""onnxruntime as an engine: on the CPU, on NVIDIA GPUs, and with the variants beside a model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError
from parotid_seg.files import hash_file
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
    """The model file itself, and its variant in a lower precision. See `registry.Implementation`.

    On a GPU an FP32 model always has one: it is made on first use if none lies beside the file.
    """
    if request.gpu is not None:
        cuda.check_provider()
    model, contract = request.model, request.contract
    device, title = ("cpu", "onnxruntime") if request.gpu is None else ("cuda", "onnxruntime CUDA")
    how = (request.gpu, request.threads, request.output)
    lower = FASTER[device]

    def candidate(precision: str, file: Path, make: Callable[[], Backend] | None = None) -> Candidate:
        name = f"{title} {precision.upper()}"
        return Candidate(name, "onnxruntime", precision, file, make or partial(_load, file, *how))

    found = [candidate(contract.precision, model)]
    if contract.precision == lower or (device == "cuda" and contract.precision != "fp32"):
        return found
    beside = variant(model, contract, lower, request.say)
    if beside:
        found.append(candidate(lower, beside))
    elif device == "cuda":
        from parotid_seg.runtime.engines.rewriting.gpu_graph import place_of_half

        found.append(candidate(lower, place_of_half(model), partial(_load_half, model, *how)))
    return found


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


def _load_half(model: Path, gpu: int | None, threads: int | None, output: str) -> Backend:
    """Load the FP16 graph of an FP32 file, made if there is none. Results name the file, by its hash."""
    from parotid_seg.runtime.engines.rewriting.gpu_graph import half

    backend = _load(half(model), gpu, threads, output)
    backend.model_sha256 = hash_file(model)
    return backend
