"""Profiles a model on one chunk with onnxruntime: what its nodes compute and move, and how long they take.

Counting and timing use separate sessions. Weights that onnxruntime packs for its kernels are missing in a profile, so
counting runs without packing; timing runs with the usual settings.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel

from parotid_seg.errors import InputError, OutputError
from parotid_seg.files import scratch_folder
from parotid_seg.runtime.engines.base import OUTPUTS
from parotid_seg.runtime.engines.onnxruntime.cpu import session_options

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
Provider = str | tuple[str, dict[str, Any]]
TYPES = {
    "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64", "int8": "int8", "uint8": "int8",
}  # fmt: skip
"""The project's names of types, by their names in ONNX and onnxruntime."""
TYPE_WORDS = {
    **{"bf16": "bf16", "bfloat16": "bf16", "f16": "fp16", "fp16": "fp16", "float16": "fp16", "half": "fp16"},
    **{"u8": "int8", "i8": "int8", "int8": "int8", "f32": "fp32", "fp32": "fp32", "float": "fp32"},
}
"""The project's names of types, by words in texts of OpenVINO and TensorRT; of words at one place the first."""
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"}
"""Operators that reinterpret data without moving it."""
WARM = 2
"""Runs before the timed ones: the first learns how much memory is needed, the second allocates it at once."""
SUFFIX = "_kernel_time"
"""Most characters of a node's name in a profile."""


@dataclass(frozen=True)
class Node:
    """What one node of a graph does with a chunk.

    Attributes:
        name, operator: as in the graph that ran.
        type: of its first input, see `TYPES`, or onnxruntime's name for another type.
        multiply_adds: of convolutions and matrix products, which are all but a few per cent of the work; else 0.
        parameter_bytes, activation_bytes: of its inputs: the graph's constants, and all others.
        output_bytes: of its results.
    """

    name: str
    operator: str
    type: str
    multiply_adds: int
    parameter_bytes: int
    activation_bytes: int
    output_bytes: int

    @property
    def moved_bytes(self) -> int:
        """Bytes it reads and writes if no data stays in caches between nodes."""
        return 0 if self.operator in VIEWS else self.parameter_bytes + self.activation_bytes + self.output_bytes


@dataclass(frozen=True)
class Count:
    """The work and memory traffic of a chunk, in the graph's own types.

    Attributes:
        multiply_adds: of convolutions and matrix products.
        weight_bytes: the graph's constants, each as often as a node reads it.
        boundary_bytes: the model's inputs and its labels.
        unfused_bytes: if every node reads its inputs from memory and writes its results there.
    """

    multiply_adds: int
    weight_bytes: int
    boundary_bytes: int
    unfused_bytes: int


@dataclass(frozen=True)
class NodeTime:
    """The time of one node.

    Attributes:
        name, operator, type: see `Node`.
        seconds: in one run, as a mean.
    """

    name: str
    operator: str
    type: str
    seconds: float


@dataclass(frozen=True)
class Timing:
    """The time of a chunk.

    Attributes:
        nodes: in the order in which they ran.
        wall_seconds: of the same runs by the clock, as a mean.
    """

    nodes: tuple[NodeTime, ...]
    wall_seconds: float


def type_in(text: str) -> str:
    """The type named by OpenVINO ("brgemm_avx512_f32") or TensorRT ("HALF", "Row major linear FP16 format").

    It is "unknown" if the text has none of `TYPE_WORDS`.
    """
    match = re.search("|".join(TYPE_WORDS), text.lower())
    return TYPE_WORDS[match[0]] if match else "unknown"


def count_nodes(content: bytes, inputs: Arrays, *, optimised: bool) -> list[Node]:
    """The work of the CPU provider's nodes on a chunk, in the order in which they run.

    Args:
        content: the model file.
        inputs: the chunk, by the names of the model's inputs.
        optimised: whether onnxruntime optimises the graph first, as usual; else the graph runs unchanged.

    Raises:
        OutputError: if there is no room for temporary files, or onnxruntime cannot run the graph.
    """
    level = GraphOptimizationLevel.ORT_ENABLE_ALL if optimised else GraphOptimizationLevel.ORT_DISABLE_ALL
    return _counted(content, inputs, level)[0]


def count(content: bytes, inputs: Arrays) -> Count:
    """The work and memory traffic of a chunk in the unchanged graph, except nodes that do not depend on the chunk.

    An FP16 graph would be counted as onnxruntime's CPU provider runs it, in FP32 with casts, so use the FP32 graph.
    Raises as `count_nodes`.
    """
    nodes, labels = _counted(content, inputs, GraphOptimizationLevel.ORT_ENABLE_BASIC)
    return Count(
        sum(node.multiply_adds for node in nodes),
        sum(node.parameter_bytes for node in nodes),
        sum(array.nbytes for array in (*inputs.values(), labels)),
        sum(node.moved_bytes for node in nodes),
    )


def time_nodes(
    content: bytes,
    inputs: Arrays,
    *,
    repeats: int = 5,
    threads: int | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
) -> Timing:
    """The time of each node, as onnxruntime runs the model. On CUDA, where it does not wait for kernels, this is the
    time to launch them, unless CUDA was loaded with CUDA_LAUNCH_BLOCKING=1.

    Args:
        content, inputs: see `count_nodes`.
        repeats: runs to take the mean of, after `WARM` others.
        threads: computing threads on the CPU; default: one per core.
        providers: onnxruntime's providers; the first one must load.

    Raises:
        InputError: if the first provider does not load.
        OutputError: as `count_nodes`.
    """
    options = session_options()
    options.intra_op_num_threads = threads or 0
    runs, seconds, _ = _profiled(content, inputs, options, providers, WARM + repeats)
    nodes = []
    for events in zip(*runs[WARM:], strict=True):
        name, operator, kind = _described(events[0])
        nodes.append(NodeTime(name, operator, kind, sum(event["dur"] for event in events) / repeats / 1e6))
    return Timing(tuple(nodes), sum(seconds[WARM:]) / repeats)


def _counted(content: bytes, inputs: Arrays, level: GraphOptimizationLevel) -> tuple[list[Node], NDArray[np.generic]]:
    """The nodes of one run, and the labels."""
    options = session_options()
    options.graph_optimization_level = level
    options.add_session_config_entry("session.disable_prepacking", "1")
    (events,), _, labels = _profiled(content, inputs, options, ("CPUExecutionProvider",), 1)
    return [_node(event) for event in events], labels


def _profiled(
    content: bytes, inputs: Arrays, options: onnxruntime.SessionOptions, providers: Sequence[Provider], times: int
) -> tuple[list[list[dict[str, Any]]], list[float], NDArray[np.generic]]:
    """For each run the profiler's events of nodes and its wall-clock seconds; and the labels."""
    options.enable_profiling = True
    seconds = []
    with scratch_folder() as folder:
        options.profile_file_prefix = str(folder / "profile")
        try:
            session = onnxruntime.InferenceSession(content, options, providers=list(providers), enable_fallback=0)
            for _ in range(times):
                begun = time.perf_counter()
                (labels,) = session.run([OUTPUTS[0]], dict(inputs))
                seconds.append(time.perf_counter() - begun)
            # this process' own file, in a private folder
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # onnxruntime's exception classes, and errors from incomplete files
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"no room for temporary files, or no way to run the graph ({reason})", path=folder
            ) from error
    expected, found = providers[0] if isinstance(providers[0], str) else providers[0][0], session.get_providers()[0]
    if found != expected:
        raise InputError(f"onnxruntime {onnxruntime.__version__}: runs on {found}, expected {expected}")
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["name"] == "model_run":  # written at its end
            runs.append([])
        elif event["name"].endswith(SUFFIX):
            runs[-1].append(event)
    return runs[:-1], seconds, labels


def _described(event: dict[str, Any]) -> tuple[str, str, str]:
    """A node's name, operator and type."""
    about = event["args"]
    kinds = [_only(entry)[0] for entry in about["input_type_shape"][:1]]
    kind = kinds[0] if kinds else "unknown"
    return event["name"].removesuffix(SUFFIX), about["op_name"], TYPES.get(kind, kind)


def _node(event: dict[str, Any]) -> Node:
    name, operator, kind = _described(event)
    about, macs = event["args"], 0
    product = MULTIPLY_ADDS.get(operator.removeprefix("QLinear"))
    if product is not None:
        first, *factors = (_only(entry)[1] for entry in about["input_type_shape"])
        macs = product(first, factors, _only(about["output_type_shape"][0])[1])
    sizes = (int(about[f"{what}_size"]) for what in ("parameter", "activation", "output"))
    return Node(name, operator, kind, macs, *sizes)


def _only(entry: dict[str, list[int]]) -> tuple[str, Shape]:
    ((kind, shape),) = entry.items()
    return kind, tuple(shape)


def _of_matmul(first: Shape, _: Sequence[Shape], result: Shape) -> int:
    transposed = len(first) > 1 and first[-2] != result[-2]  # onnxruntime's FusedMatMul may
    return math.prod(result) * (first[-2] if transposed else first[-1])


def _of_convolution(_: Shape, factors: Sequence[Shape], result: Shape) -> int:
    weight = next(shape for shape in factors if len(shape) == len(result))
    return math.prod(result) * math.prod(weight[1:])


def _of_transposed_convolution(first: Shape, _: Sequence[Shape], result: Shape) -> int:
    return math.prod(result) * first[1]  # the kernel is as large as the stride, see `export.window_order.Shuffled`


MULTIPLY_ADDS: dict[str, Callable[[Shape, Sequence[Shape], Shape], int]] = {
    "Conv": _of_convolution,
    "FusedConv": _of_convolution,
    "NhwcFusedConv": _of_convolution,
    "ConvTranspose": _of_transposed_convolution,
    "FusedMatMul": _of_matmul,
    "MatMul": _of_matmul,
    "Gemm": _of_matmul,
}
"""Multiply-adds by operator, from the shapes of the first input, of the other factors, and of the result."""
