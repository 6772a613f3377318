"""A graph whose nodes are found by their values, and whose weights are arrays, to rewrite it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

DOMAIN = "com.microsoft"
"""The domain of onnxruntime's own operators."""
Array = NDArray[Any]


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto], weights: Iterable[TensorProto]) -> None:
    """Give a graph other nodes, and of some weights those that the nodes take; types of values between are dropped."""
    nodes = list(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in weights if weight.name in used]
    for field, items in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, [])):
        del field[:]
        field.extend(items)


class Graph:
    """A graph whose nodes are found by their values.

    Args:
        model: is changed by `store`.

    Attributes:
        nodes: each after those whose results it takes.
        outputs: names of the graph's results.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.nodes = list(model.graph.node)
        self._stored = {weight.name: weight for weight in model.graph.initializer}
        self._arrays: dict[str, Array] = {}
        known = (*shape_inference.infer_shapes(model).graph.value_info, *model.graph.input, *model.graph.output)
        self._types = {value.name: value.type.tensor_type for value in known}
        self.outputs = {value.name for value in model.graph.output}

    def constant(self, name: str) -> Array | None:
        """A weight's values; None for any other value."""
        if name not in self._stored:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._stored[name])
        return self._arrays[name]

    def kind(self, value: str) -> np.dtype[Any]:
        """The type of a value of the graph as it was."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self._types[value].elem_type))

    def features(self, value: str) -> int:
        """The last size of a value of the graph as it was; 0 if it is free or unknown."""
        sizes = self._types[value].shape.dim if value in self._types else ()
        return int(sizes[-1].dim_value) if sizes else 0

    def add_constant(self, name: str, values: Array) -> str:
        """Add a weight; returns its name, which differs from the given one if there is a weight of that name."""
        while name in self._stored:
            name += ".fused"
        self._stored[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._arrays[name] = values
        return name

    def maker(self, value: str, operator: str) -> NodeProto | None:
        """The node of an operator that makes a value."""
        return next((node for node in self.nodes if value in node.output and node.op_type == operator), None)

    def takers(self, value: str) -> list[NodeProto]:
        """The nodes that take a value."""
        return [node for node in self.nodes if value in node.input]

    def taker(self, value: str, operator: str) -> NodeProto | None:
        """The node of an operator that takes a value, if nothing else does."""
        return next((node for node in self.takers(value) if self.is_inner(value) and node.op_type == operator), None)

    def is_inner(self, value: str) -> bool:
        """Whether exactly one node takes a value."""
        return value not in self.outputs and len(self.takers(value)) == 1

    def place(self, node: NodeProto) -> int:
        """A node's index."""
        return next(index for index, each in enumerate(self.nodes) if each is node)

    def replace(self, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
        """Put nodes in the place of the last of others."""
        gone = {id(node) for node in old}
        last = max(index for index, node in enumerate(self.nodes) if id(node) in gone)
        self.nodes[last + 1 : last + 1] = new
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def rename(self, old: str, new: str) -> None:
        """Let all nodes take another value in a value's place."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def store(self) -> None:
        """Write the nodes and the weights that they take into the model."""
        set_nodes(self._model.graph, self.nodes, self._stored.values())
        domains = {entry.domain for entry in self._model.opset_import}
        if DOMAIN not in domains and any(node.domain == DOMAIN for node in self.nodes):
            self._model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
