"""Multiply-adds by the type that they are computed in: as declared in a graph, and as onnxruntime really runs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.onnxruntime.profile import TYPES, count_nodes

WIDTHS = ("int8", "float16", "bfloat16", "float32", "unknown")
"""Types of factors, ordered so that a product of two is computed in the later one."""


@dataclass(frozen=True)
class OpsByDtype:
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
        """Share of the multiply-adds that is computed in a type."""
        return self.macs.get(precision, 0) / self.total if self.total else 0.0

    def __str__(self) -> str:
        shares = ((self.share(kind), kind) for kind in self.macs)
        return ", ".join(f"{share:.1%} {kind}" for share, kind in sorted(shares, reverse=True))


def work_of(content: bytes, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    """Multiply-adds of each node of an FP32 graph for one chunk, by the node's name, from a run without
    optimisation."""
    nodes = count_nodes(content, inputs, optimised=False)
    return {node.name: node.multiply_adds for node in nodes if node.multiply_adds}


def of_graph(model: ModelProto, work: Mapping[str, int]) -> OpsByDtype:
    """Multiply-adds by type as declared in a graph.

    A product of dequantised values counts as int8, because runtimes are expected to fuse it.

    Args:
        model: derived from the FP32 graph, with the same names of nodes.
        work: of the FP32 graph, see `work_of`.

    Raises:
        ModelError: if a node with counted work is missing.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    kinds |= {weight.name: weight.data_type for weight in graph.initializer}
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    operations: Counter[str] = Counter()
    for node in graph.node:
        if node.name in work:
            kind = TensorProto.DataType.Name(kinds[node.input[0]]).lower()
            quantised = dequantised.issuperset(node.input[:2])
            operations["int8" if quantised else TYPES.get(kind, kind)] += work[node.name]
    if sum(operations.values()) != sum(work.values()):
        missing = work.keys() - {node.name for node in graph.node}
        raise ModelError(f"{len(missing)} nodes of the FP32 graph are not in this one, for example {min(missing)}")
    return OpsByDtype(dict(operations))


def of_layers(layers: Iterable[Mapping[str, Any]], work: Mapping[str, int]) -> OpsByDtype:
    """Multiply-adds by type in an engine's network.

    Args:
        layers: see `engine_layers`; the name of a layer contains those of the nodes that it consists of.
        work: of the FP32 graph.

    Raises:
        ModelError: if more than a tenth of the work is in no layer.
    """
    operations: Counter[str] = Counter()
    counted = set()
    for layer in layers:
        for name in work.keys() & set(re.split(r"[+\s,()\[\]]+", layer["name"])):
            factors = set(layer["inputs"][:2])
            kind = layer["inputs"][0] if len(factors) == 1 else max(factors, key=WIDTHS.index)
            operations[TYPES[kind]] += work[name]
            counted.add(name)
    missing = sum(work.values()) - sum(work[name] for name in counted)
    if missing > sum(work.values()) / 10:
        raise ModelError(f"{missing:,} of {sum(work.values()):,} multiply-adds are in no layer of the engine")
    return OpsByDtype(dict(operations))


def of_run(content: bytes, inputs: Mapping[str, NDArray[np.generic]]) -> OpsByDtype:
    """Multiply-adds by type of onnxruntime's CPU provider after its optimisation, from the profile of one run."""
    operations: Counter[str] = Counter()
    for node in count_nodes(content, inputs, optimised=True):
        if node.multiply_adds:
            operations[node.type] += node.multiply_adds
    return OpsByDtype(dict(operations))
