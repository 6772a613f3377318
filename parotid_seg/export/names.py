"""Names nodes and values of the exported graph after their modules, so that a profile can be read."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

from onnx import ModelProto, NodeProto, numpy_helper

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of torch's exporter with the modules around a node, from the outermost inwards, and the traced operation."""


def name_after_modules(model: ModelProto, parameters: Collection[str]) -> None:
    """Rename every node, value and constant of a graph fresh from torch's exporter, in place.

    A node becomes `<module>/<operator>`, with a number where a module has several; its output has the node's name. A
    constant that the exporter made from a module's weight by transposing it becomes `<module>.weight.T`; any other has
    the name of the first node that takes it. Inputs, outputs and weights keep theirs.

    Args:
        model: still with the exporter's metadata.
        parameters: the module's own names of weights.
    """
    graph = model.graph
    fixed_names = {value.name for value in (*graph.input, *graph.output)} | {""}
    constants = {weight.name: weight for weight in graph.initializer if weight.name not in parameters}
    new: dict[str, str] = {}
    uses = Counter[str]()
    for node in graph.node:
        module = _module(node)
        node.name = _numbered(f"{module}/{node.op_type}" if module else node.op_type, uses)
        for index, value in enumerate(node.output):
            if value not in fixed_names:
                new[value] = f"{node.name}:{index}" if index else node.name
        for value in node.input:
            if value in constants and value not in new:
                weight = f"{module}.weight"
                linear = weight in parameters and numpy_helper.to_array(constants[value]).ndim == 2
                new[value] = _numbered(f"{weight}.T" if linear else f"{node.name}.constant", uses)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for item in (*graph.initializer, *graph.value_info):
        item.name = new.get(item.name, item.name)


def _module(node: NodeProto) -> str:
    noted = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    scopes: list[str] = ast.literal_eval(noted)[:-1]
    return scopes[-1] if scopes and not scopes[-1].startswith("_") else ""


def _numbered(name: str, uses: Counter[str]) -> str:
    uses[name] += 1
    return name if uses[name] == 1 else f"{name}_{uses[name]}"
