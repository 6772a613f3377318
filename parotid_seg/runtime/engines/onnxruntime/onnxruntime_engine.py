"""onnxruntime as an engine: on the CPU, on NVIDIA GPUs, and with the variants beside a model file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, OutputError
from parotid_seg.files import hash_file
from parotid_seg.runtime.engines.autotune import Candidate, cache_folder
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.registry import Request
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph

FASTER = {"cpu": "int8", "cuda": "fp16"}
"""The lower precision that is tried, by device."""
DIFFERENT = ("precision", "weights", "graph_sha256", "cost", "verification")
"""Fields that may differ between the contracts of one model in two precisions."""


def load(request: Request) -> Backend:
    """Load a file. See `registry.Implementation`."""
    return _load(request.model, request.gpu, request.threads, request.output)


def candidates(request: Request) -> list[Candidate]:
    """The model file itself, its variant in a lower precision, and on a GPU the fused graphs of both. See
    `registry.Implementation`.

    For a GPU an FP32 model always has an FP16 variant: it is made on first use if none lies beside the file.
    """
    if request.gpu is None:
        return _files(request, "onnxruntime")
    from parotid_seg.runtime.engines.onnxruntime.cuda import check_provider
    from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph

    check_provider()
    found = _files(request, "onnxruntime CUDA")
    if request.contract.precision not in ("fp32", "fp16"):
        return found
    try:
        cache_folder()
    except OutputError as error:
        request.say(f"no graphs are made for the GPU: {error}")
        return found
    files = {each.precision: each.file for each in found}
    if "fp16" not in files:
        graph = GpuGraph(request.model, "fp16")
        found.append(_of_graph(request, graph, "onnxruntime CUDA FP16"))
    for each in tuple(found):
        graph = GpuGraph(files.get(each.precision, request.model), each.precision, fused=True)
        found.append(_of_graph(request, graph, f"{each.name} fused"))
    return found


def _files(request: Request, title: str) -> list[Candidate]:
    """The model file, and the file beside it in a lower precision."""
    lower = FASTER["cpu" if request.gpu is None else "cuda"]
    files = {request.contract.precision: request.model}
    if request.contract.precision != lower and (request.gpu is None or request.contract.precision == "fp32"):
        beside = variant(request.model, request.contract, lower, request.say)
        if beside:
            files[lower] = beside
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


def _of_graph(request: Request, graph: GpuGraph, name: str) -> Candidate:
    """A graph that is made when it is first loaded."""
    load_it = partial(_load_made, graph, request.gpu, request.output)
    return Candidate(name, "onnxruntime", graph.precision, graph.path, load_it)


def variant(model: Path, contract: Contract, precision: str, say: Say) -> Path | None:
    """The same model in another precision, as `NAME.int8.onnx` beside `NAME.onnx`; None if there is no usable one."""
    path = model.with_suffix(f".{precision}.onnx")
    if not path.is_file() or path == model:
        return None
    try:
        other = read_model(path).contract
    except ModelError as error:
        say(f"not used: {error}")
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
        from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend

        return OnnxRuntimeBackend(file, threads=threads, output=output)
    from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend

    return OnnxRuntimeCudaBackend(file, device=gpu, output=output)


def _load_made(graph: GpuGraph, gpu: int | None, output: str) -> Backend:
    """Load a graph that is made from a file. Results name the file, by its hash."""
    backend = _load(graph.made(), gpu, None, output)
    backend.model_sha256 = hash_file(graph.model)
    if graph.fused:
        backend.ran = replace(backend.ran, backend=f"{backend.ran.backend}, fused operators")
    return backend
