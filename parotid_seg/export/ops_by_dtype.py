"""Multiply-adds by the type that they are computed in: as declared in a graph, as onnxruntime really runs it, and as
TensorRT parses it, with the layers of its network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from parotid_seg.errors import ModelError
from parotid_seg.export.build_engine import parse
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.profile import TYPES, count_nodes, type_in
from parotid_seg.runtime.engines.tensorrt.library import import_library, log_of

WIDTHS = ("int8", "fp16", "bf16", "fp32", "unknown")
"""Types of factors, ordered so that a product of two is computed in the later one."""
Layer = dict[str, Any]
"""name and type (text), inputs and outputs (a list of the tensors' types, see `type_in`)."""


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
        layers: see `describe_network`; the name of a layer contains those of the nodes that it consists of.
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
            operations[kind] += work[name]
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
    network, parser = parse(trt, builder, read_model(onnx_path).content, log, onnx_path)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised: set[str] = set()
    for layer in layers:  # the parser reshapes weights after their dequantisation
        reshaped = layer.type == trt.LayerType.SHUFFLE and layer.get_input(0).name in dequantised
        if reshaped or layer.type == trt.LayerType.DEQUANTIZE:
            dequantised.add(layer.get_output(0).name)
    described = [_network_layer(layer, dequantised) for layer in layers]
    del layers, parser
    return described


def _network_layer(layer: Any, dequantised: set[str]) -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    return {
        "name": layer.name,
        "type": layer.type.name.lower(),
        "inputs": [
            "int8" if tensor.name in dequantised else type_in(tensor.dtype.name)
            for tensor in inputs
            if tensor is not None
        ],
        "outputs": [type_in(tensor.dtype.name) for tensor in outputs],
    }
