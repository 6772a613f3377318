"""Converts a checkpoint to one self-describing ONNX file: raw intensities in, labels out, the contract in its
metadata. Nodes and values are named after their modules, so that a profile can be read."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from parotid_seg.contract import FREE, INPUT_SPECS, METADATA_KEY, Contract, Grid, model_sizes
from parotid_seg.export.window_order import in_window_order
from parotid_seg.runtime.engines.model_file import graph_hash, sealed
from parotid_seg.scan.intensity import fixed_windows
from parotid_seg.train.checkpoint import Checkpoint
from parotid_seg.train.network import ParotidNet

OPSET = 20
SMALLEST_HALVED = 256
"""Weights with fewer values (norms, biases) stay FP32: halving them saves little, and they have the widest range."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of torch's exporter with the modules around a node, from the outermost inwards, and the traced operation."""


def to_onnx(checkpoint: Checkpoint, *, probabilities: bool = False) -> tuple[onnx.ModelProto, Contract]:
    """The network as an FP32 graph without metadata, and its contract.

    Args:
        checkpoint: the trained model.
        probabilities: whether the graph has probabilities as a second output.
    """
    net = in_window_order(checkpoint.network())
    net.probabilities = probabilities
    model = _translate(net, checkpoint.config.grid, len(checkpoint.channels))
    _forget_torch(model)
    contract = Contract(
        labels=checkpoint.labels,
        channels=checkpoint.channels,
        windows=fixed_windows(checkpoint.channels, checkpoint.config.window_hu),
        grid=checkpoint.config.grid,
        opset=OPSET,
        training={**checkpoint.training, "weights_sha256": weights_hash(checkpoint.weights)},
    )
    onnx.checker.check_model(model, full_check=True)
    return model, contract


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of trained weights: names, types, shapes and values. It is equal for all files of one checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def with_contract(model: onnx.ModelProto, contract: Contract) -> bytes:
    """The model file's bytes: the graph, the contract, and the seal over both."""
    onnx.checker.check_model(model, full_check=True)
    del model.metadata_props[:]
    hashed = graph_hash(model.SerializeToString(deterministic=True))
    promised = dataclasses.replace(contract, graph_sha256=hashed)
    helper.set_model_props(model, {METADATA_KEY: promised.to_json()})
    return sealed(model.SerializeToString(deterministic=True))


def _translate(net: ParotidNet, grid: Grid, channels: int) -> onnx.ModelProto:
    """Trace the network with torch's exporter; all sizes except the grid's and the number of channels stay free."""
    sizes = {"depth": 5, "batch": 3, "out": 4, "height": 20, "width": 24} | model_sizes(grid, channels)
    example = {spec.name: torch.from_numpy(np.zeros(spec.shape(sizes), spec.dtype)) for spec in INPUT_SPECS}
    example["window"][:, 1] = 1.0
    free = {name: torch.export.Dim(name, min=1) for name in FREE}
    shapes = {
        spec.name: {index: free[axis] for index, axis in enumerate(spec.axes) if axis in free} for spec in INPUT_SPECS
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            net,
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(example),
            output_names=["labels", "probabilities"][: 1 + net.probabilities],
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    name_after_modules(model, net.state_dict().keys())
    return model


def _forget_torch(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces and other metadata, which name files of the machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "parotid-seg", ""
    model.graph.name = "parotid_seg"


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph with large weights stored in FP16, each with a cast that runtimes fold on loading."""
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph, casts = halved.graph, []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < SMALLEST_HALVED:
            continue
        stored = f"{weight.name}.fp16"
        casts.append(
            helper.make_node("Cast", [stored], [weight.name], name=f"{weight.name}/Cast", to=TensorProto.FLOAT)
        )
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    cast_outputs = {cast.output[0] for cast in casts}
    remaining = [value for value in graph.value_info if value.name not in cast_outputs]
    for items, new in ((graph.node, [*casts, *graph.node]), (graph.value_info, remaining)):
        del items[:]
        items.extend(new)
    return halved


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
