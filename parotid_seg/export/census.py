"""What computes in which type, counted in multiply-adds: as a graph asks for it, and as onnxruntime really runs it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from parotid_seg.errors import ModelError, OutputError
from parotid_seg.files import scratch_folder

Shape = tuple[int, ...]
TYPES = {
    "float": "fp32", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64", "int8": "int8",
    "uint8": "int8", "unknown": "unknown",
}  # fmt: skip
"""Our words for the names that ONNX, onnxruntime and TensorRT have for types."""
WIDTHS = ("int8", "float16", "bfloat16", "float32", "unknown")
"""Types of factors, the one that a product of two is computed in last."""


@dataclass(frozen=True)
class Census:
    """Multiply-adds of one chunk by the type they are computed in.

    Attributes:
        macs: number by type; convolutions and matrix products, which are all but a few per cent of the work.
    """

    macs: dict[str, int]

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return sum(self.macs.values())

    def share(self, precision: str) -> float:
        """Part of the multiply-adds that is computed in a type."""
        return self.macs.get(precision, 0) / self.total if self.total else 0.0

    def __str__(self) -> str:
        shares = ((self.share(kind), kind) for kind in self.macs)
        return ", ".join(f"{share:.1%} {kind}" for share, kind in sorted(shares, reverse=True))


def work_of(content: bytes, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    """Multiply-adds of each node of an FP32 graph for one chunk, by the node's name, from a run as it is written."""
    runs = _profiled(content, inputs, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return {name: macs for name, _, macs in runs}


def of_graph(model: ModelProto, work: Mapping[str, int]) -> Census:
    """What a graph asks for.

    A product of dequantised values counts as int8: it is what a runtime is meant to fuse them to.

    Args:
        model: made of the FP32 graph without renaming its nodes.
        work: of the FP32 graph, see `work_of`.

    Raises:
        ModelError: if a node that does much of the work is missing.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    kinds |= {weight.name: weight.data_type for weight in graph.initializer}
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.name in work:
            kind = TensorProto.DataType.Name(kinds[node.input[0]]).lower()
            quantised = dequantised.issuperset(node.input[:2])
            found["int8" if quantised else TYPES.get(kind, kind)] += work[node.name]
    if sum(found.values()) != sum(work.values()):
        missing = work.keys() - {node.name for node in graph.node}
        raise ModelError(f"{len(missing)} nodes of the FP32 graph are not in this one, for example {min(missing)}")
    return Census(dict(found))


def of_layers(layers: Iterable[Mapping[str, Any]], work: Mapping[str, int]) -> Census:
    """What an engine's network computes in.

    Args:
        layers: see `engine_layers`; a layer that is one node, or several fused ones, has their names in its own.
        work: of the FP32 graph.

    Raises:
        ModelError: if more than a tenth of the work is in no layer.
    """
    found: Counter[str] = Counter()
    counted = set()
    for layer in layers:
        for name in work.keys() & set(re.split(r"[+\s,()\[\]]+", layer["name"])):
            factors = set(layer["inputs"][:2])
            kind = layer["inputs"][0] if len(factors) == 1 else max(factors, key=WIDTHS.index)
            found[TYPES[kind]] += work[name]
            counted.add(name)
    missing = sum(work.values()) - sum(work[name] for name in counted)
    if missing > sum(work.values()) / 10:
        raise ModelError(f"{missing:,} of {sum(work.values()):,} multiply-adds are in no layer of the engine")
    return Census(dict(found))


def of_run(content: bytes, inputs: Mapping[str, NDArray[np.generic]]) -> Census:
    """What onnxruntime's CPU provider does with a model after its own optimisation, from the profile of one run."""
    found: Counter[str] = Counter()
    for _, kind, macs in _profiled(content, inputs, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
        found[kind] += macs
    return Census(dict(found))


def _profiled(
    content: bytes, inputs: Mapping[str, NDArray[np.generic]], level: onnxruntime.GraphOptimizationLevel
) -> list[tuple[str, str, int]]:
    """Name, type and multiply-adds of every product and convolution that ran."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.enable_profiling = True
    with scratch_folder() as folder:
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            session.run(["labels"], dict(inputs))
            events = json.loads(Path(session.end_profiling()).read_text())
            graph = onnx.load(options.optimized_model_filepath).graph
        except Exception as error:  # onnxruntime's own classes, and what half-written files lead to
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"{folder}: no room for temporary files, or no way to run the graph ({reason})"
            ) from error
    sizes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    weights = {node.name: [sizes[name] for name in node.input if name in sizes] for node in graph.node}
    found = []
    for event in events:
        name, about = event["name"].removesuffix("_kernel_time"), event.get("args", {})
        operator = about.get("op_name", "").removeprefix("QLinear")
        if operator in MULTIPLY_ADDS and name != event["name"]:
            (kind, first), *others = map(_only, about["input_type_shape"])
            _, result = _only(about["output_type_shape"][0])
            factors = [
                *weights[name],
                *(shape for _, shape in others),
            ]  # weights that were packed are not in the profile
            macs = MULTIPLY_ADDS[operator](first, factors, result)
            found.append((name, TYPES.get(kind, kind), macs))
    return found


def _only(entry: dict[str, list[int]]) -> tuple[str, Shape]:
    ((kind, shape),) = entry.items()
    return kind, tuple(shape)


def _of_matmul(first: Shape, _: Sequence[Shape], result: Shape) -> int:
    transposed = len(first) > 1 and first[-2] != result[-2]  # onnxruntime's FusedMatMul may
    return math.prod(result) * (first[-2] if transposed else first[-1])


def _of_convolution(_: Shape, factors: Sequence[Shape], result: Shape) -> int:
    weight = next(shape for shape in factors if len(shape) == len(result))
    return math.prod(result) * math.prod(weight[1:])


MULTIPLY_ADDS: dict[str, Callable[[Shape, Sequence[Shape], Shape], int]] = {
    "Conv": _of_convolution,
    "FusedConv": _of_convolution,
    "NhwcFusedConv": _of_convolution,
    "FusedMatMul": _of_matmul,
    "MatMul": _of_matmul,
    "Gemm": _of_matmul,
}
"""By operator: from the shapes of the first input, of the other factors, and of the result."""
