"""Where a chunk's time goes: the report of an engine's own profiler, summed by module of the network."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import onnxruntime

from parotid_seg.errors import InputError, ParotidSegError
from parotid_seg.runtime.engines.base import Backend, ExecutionInfo
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.cuda import OPTIONS, PROVIDER, OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.onnxruntime.profile import (
    TYPE_WORDS,
    WARM,
    NodeTime,
    Provider,
    Timing,
    count_nodes,
    time_nodes,
    type_in,
)
from parotid_seg.runtime.engines.openvino import OpenVinoBackend
from parotid_seg.runtime.engines.padding import pad_to_bucket
from parotid_seg.runtime.engines.tensorrt.execution_slot import ExecutionSlot
from parotid_seg.runtime.engines.tensorrt.library import import_library
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend, check_shapes, filled
from parotid_seg.scan.chunks import Inputs

MODULE = re.compile(r"((?:to_grid|unet|from_grid)(?:\.\w+)*)/\w")
"""A node is named <module>/<operator> by the export (`export.onnx_file`); engines add to names, and join several."""
FOLDED = re.compile(r"(?:unet\.)?((?:encoder\.layers|decoder)\.\d+|encoder\.\w+|\w+)")
"""The unit of the report: a stage of the encoder or the decoder, or a layer outside of them."""
ENTRANCE, EXIT = "to_grid", "from_grid"
UNNAMED = "unnamed"
"""In place of a module: for the time of nodes whose module is unknown."""
LEAST_SHARE = 0.01
"""Least share of a layer's time for a type to be reported."""


@dataclass(frozen=True)
class Layer:
    """A module of the network, or several.

    Attributes:
        module: its name; "unet" is what the network does between its layers.
        seconds: of one chunk.
        share: of all layers' seconds.
        multiply_adds: as the model file asks for them; 0 if there are none or they are not known.
        gflops: billions of operations per second, two for a multiply-add.
        nodes: how many of the engine's it is made of.
        types: that it computes in, the one that takes most time first.
    """

    module: str
    seconds: float
    share: float
    multiply_adds: int
    gflops: float
    nodes: int
    types: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """The profile of one chunk.

    Attributes:
        ran: the engine.
        samples: in the chunk.
        repeats: runs that times are the mean of.
        seconds: of all layers.
        wall_seconds: of the same runs by the clock, with the profiler at work and, on a GPU, with the copies.
        layers: the one that takes most time first.
    """

    ran: ExecutionInfo
    samples: int
    repeats: int
    seconds: float
    wall_seconds: float
    layers: tuple[Layer, ...]

    @property
    def covered(self) -> float:
        """Share of the wall-clock time that the layers account for."""
        return self.seconds / self.wall_seconds

    @property
    def named(self) -> float:
        """Share of the layers' time in nodes of known modules."""
        return 1.0 - sum(layer.share for layer in self.layers if layer.module == UNNAMED)


def profile_layers(model: Path, backend: Backend, inputs: Inputs, *, repeats: int = 5) -> Layers:
    """Profile a chunk on a second engine like the loaded one, because profiling costs time.

    Args:
        model: the loaded .onnx file; for an engine the file it was built from, or the engine itself, and then
            multiply-adds are not known.
        backend: the loaded backend; it gives engine, type and threads, and stays usable.
        inputs: the chunk.
        repeats: runs to take the mean of, after a few others.

    Raises:
        InputError: if there is no profiler for it.
        ModelError: as `read_model`.
        OutputError: as `profile.count_nodes`.
        DeviceMemoryError: if the GPU's memory does not suffice for a second one.
    """
    content = b"" if model.suffix == ".engine" else read_model(model).content
    timing = _timed(content, backend, inputs, repeats)
    work: Counter[str] = Counter()
    for node in count_nodes(content, inputs, optimised=False) if content else ():
        work[_module(node.name, {})] += node.multiply_adds
    seconds = sum(node.seconds for node in timing.nodes)
    layers = fold(timing.nodes, work)
    return Layers(backend.ran, len(inputs["neighbours"]), repeats, seconds, timing.wall_seconds, layers)


def rows(layers: Layers, top: int = 10) -> list[Layer]:
    """Rows of a table: the layers that take most time, and all others as one row."""
    first, others = layers.layers[:top], layers.layers[top:]
    if not others:
        return list(first)
    seconds, macs = sum(each.seconds for each in others), sum(each.multiply_adds for each in others)
    share, nodes = sum(each.share for each in others), sum(each.nodes for each in others)
    types = tuple(dict.fromkeys(kind for each in others for kind in each.types))
    return [*first, Layer("all others", seconds, share, macs, _gflops(macs, seconds), nodes, types)]


def fold(nodes: Sequence[NodeTime], work: Mapping[str, int]) -> tuple[Layer, ...]:
    """The time of nodes by module, longest first.

    A node without a module in its name belongs to the module that the nodes before and after it are of; between two
    modules it is unnamed. The first ones belong to the entrance and the last ones to the exit.

    Args:
        nodes: in the order in which they ran.
        work: multiply-adds by module. A node made of nodes of several modules counts to the one with most of them.
    """
    modules = [_folded(_module(node.name, work)) for node in nodes]
    before = [*accumulate(modules, lambda last, module: module or last, initial=ENTRANCE)][1:]
    after = [*accumulate(reversed(modules), lambda last, module: module or last, initial=EXIT)][:0:-1]
    by_module: dict[str, list[NodeTime]] = defaultdict(list)
    for node, last, following in zip(nodes, before, after, strict=True):
        by_module[last if last == following else UNNAMED].append(node)
    macs: Counter[str] = Counter()
    for module, number in work.items():
        folded = _folded(module)
        macs[folded if folded in by_module else UNNAMED] += number
    total = sum(node.seconds for node in nodes)
    layers = [_layer(module, members, macs[module], total) for module, members in by_module.items()]
    return tuple(sorted(layers, key=lambda layer: -layer.seconds))


def _layer(module: str, nodes: Sequence[NodeTime], macs: int, total: float) -> Layer:
    seconds = sum(node.seconds for node in nodes)
    by_type: dict[str, float] = defaultdict(float)
    for node in nodes:
        by_type[node.type] += node.seconds
    types = [kind for kind in by_type if kind in TYPE_WORDS.values() and by_type[kind] > LEAST_SHARE * seconds]
    types.sort(key=lambda kind: -by_type[kind])
    share = seconds / total if total else 0.0
    return Layer(module, seconds, share, macs, _gflops(macs, seconds), len(nodes), tuple(types))


def _module(name: str, work: Mapping[str, int]) -> str:
    """The module in a node's name; of several the one with most work; empty if there is none."""
    modules = MODULE.findall(name)
    if "..." in name and len({_folded(module) for module in modules}) > 1:
        return ""  # TensorRT's {ForeignNode[first...last]} is everything between two nodes
    return max(modules, key=lambda module: work.get(module, 0), default="")


def _folded(module: str) -> str:
    match = FOLDED.match(module)
    return match[1] if match else ""


def _gflops(macs: int, seconds: float) -> float:
    return 2 * macs / seconds / 1e9 if seconds else 0.0


def _timed(content: bytes, backend: Backend, inputs: Inputs, repeats: int) -> Timing:
    """The report of an engine's profiler."""
    if isinstance(backend, OnnxRuntimeBackend):
        threads = backend._session.get_session_options().intra_op_num_threads
        return time_nodes(content, inputs, repeats=repeats, threads=threads)
    if isinstance(backend, OnnxRuntimeCudaBackend):
        provider = (PROVIDER, {**OPTIONS, "device_id": str(backend._bound.index)})
        return time_apart(content, pad_to_bucket(inputs)[0], repeats, provider)
    if isinstance(backend, OpenVinoBackend):
        return _on_openvino(backend, content, pad_to_bucket(inputs)[0], repeats)
    if isinstance(backend, TensorRtBackend):
        return _on_tensorrt(backend, inputs, repeats)
    raise InputError(f"{backend.ran.backend}: no profile: it does not report the times of its layers")


def time_apart(content: bytes, chunk: Inputs, repeats: int, provider: Provider) -> Timing:
    """`time_nodes` in a process of its own in which CUDA waits for every kernel.

    onnxruntime's packages are built without its profiler of kernels and report the time to launch them. CUDA waits only
    if this is set before it is loaded.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_wait_for_kernels) as pool:
        return pool.submit(time_nodes, content, dict(chunk), repeats=repeats, providers=[provider]).result()


def _wait_for_kernels() -> None:
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    onnxruntime.preload_dlls(directory="")  # pip's packages of CUDA


def _on_openvino(backend: OpenVinoBackend, content: bytes, chunk: Inputs, repeats: int) -> Timing:
    """OpenVINO reports the mean of all runs since the model was loaded; the share of the first runs is subtracted."""
    config = {**backend._config, "PERF_COUNT": True}
    graph = backend._core.read_model(io.BytesIO(content))
    request = backend._core.compile_model(graph, "CPU", config).create_infer_request()
    for _ in range(WARM):
        request.infer(dict(chunk), share_inputs=True)
    first = request.get_profiling_info()
    begun = time.perf_counter()
    for _ in range(repeats):
        request.infer(dict(chunk), share_inputs=True)
    wall_seconds = (time.perf_counter() - begun) / repeats
    nodes = []
    for early, late in zip(first, request.get_profiling_info(), strict=True):
        sums = late.real_time.total_seconds() * (WARM + repeats) - early.real_time.total_seconds() * WARM
        if late.real_time:  # what was fused into others takes none
            nodes.append(NodeTime(late.node_name, late.node_type, type_in(late.exec_type), max(sums, 0.0) / repeats))
    return Timing(tuple(nodes), wall_seconds)


def _on_tensorrt(backend: TensorRtBackend, inputs: Inputs, repeats: int) -> Timing:
    """Profile in a separate execution slot whose contexts have a profiler."""
    if backend._engine is None or backend._context is None:
        raise ParotidSegError(f"{backend._path}: the engine is closed")
    trt, engine = import_library(backend._sidecar.library), backend._engine
    chunk = filled(inputs, backend._sidecar.batch.min)
    check_shapes(chunk, backend._path, backend._sidecar)
    times: dict[str, float] = defaultdict(float)

    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]  # known only once imported
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] += ms / 1e3 / repeats

    profiler, contexts = Profiler(), []

    def new_context() -> Any:
        contexts.append(_uncaptured(trt, engine.cuda_engine))
        contexts[-1].profiler = profiler
        return contexts[-1]

    with backend._context.current():
        slot = ExecutionSlot(dataclasses.replace(engine, new_context=new_context, captures=False))
        try:
            for _ in range(WARM):
                slot.start(chunk, slot.finish).result()
            times.clear()
            begun = time.perf_counter()
            for _ in range(repeats):
                slot.start(chunk, slot.finish).result()
            wall_seconds = (time.perf_counter() - begun) / repeats
            about = _inspected(trt, engine.cuda_engine, contexts[0])
        finally:
            contexts.clear()
            slot.close()
    nodes = (_described(name, seconds, about.get(name, {})) for name, seconds in times.items())
    return Timing(tuple(nodes), wall_seconds)


def _uncaptured(trt: Any, cuda_engine: Any) -> Any:
    """A context without memory of its own and without CUDA graphs, which would merge the layers.

    TensorRT-RTX would run fallback kernels until it has compiled those for a shape; it is set to wait for them.
    """
    how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is not None:
        config = cuda_engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(how)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        how = config
    return cuda_engine.create_execution_context(how)


def _inspected(trt: Any, cuda_engine: Any, context: Any) -> dict[str, dict[str, Any]]:
    """The inspector's information on layers by name; for an engine built without details, names only."""
    inspector = cuda_engine.create_engine_inspector()
    inspector.execution_context = context
    # not from a file: the library says this of an engine whose hash was checked, and which runs as a program anyway
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    return {layer["Name"]: layer for layer in layers if isinstance(layer, dict)}


def _described(name: str, seconds: float, about: Mapping[str, Any]) -> NodeTime:
    """A layer with the nodes of the model file that it was made of, which the inspector notes beside it."""
    tensor: Mapping[str, Any] = next(iter(about.get("Inputs", [])), {})
    type_text = " ".join(
        str(value) for key, value in tensor.items() if "type" in key.lower() or "format" in key.lower()
    )
    return NodeTime(f"{name} {about.get('Metadata', '')}", str(about.get("LayerType", "")), type_in(type_text), seconds)
