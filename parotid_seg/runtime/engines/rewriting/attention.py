"""Joins the nodes of an attention to one operator of onnxruntime, and removes the reordering of tokens around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from parotid_seg.runtime.engines.rewriting.graph import DOMAIN, Array, Graph

TOKEN_WISE = ("LayerNormalization", "MatMul", "Add", "Gelu")
"""Operators that compute each token by itself, if their other inputs are weights."""


@dataclass(frozen=True)
class _Attention:
    """The nodes of an attention, and what they compute with.

    Attributes:
        name: its module.
        nodes: all of them, from the linear layers of queries, keys and values to the joined heads.
        tokens: the value that it takes, (B, windows * area, features).
        mixed: the value that it makes, of the same shape.
        weights: of queries, keys and values, (features, features) each.
        biases: of the same, (features,) each.
        position_bias: (1, heads, area, area), or (windows, heads, area, area) if the windows of an image differ.
        scale: factor of the queries.
        shape: as it is stored.
    """

    name: str
    nodes: list[NodeProto]
    tokens: str
    mixed: str
    weights: list[Array]
    biases: list[Array]
    position_bias: Array
    scale: float
    shape: Array


def _attention(graph: Graph, softmax: NodeProto) -> _Attention | None:
    """The attention around a softmax as `export.window_order.Attention` has it; None if it is anything else."""
    nodes = [softmax]

    def back(value: str, *operators: str) -> str | None:
        """The first input of a chain of nodes that ends in a value, each with one taker."""
        for operator in operators:
            node = graph.maker(value, operator)
            if node is None or not graph.is_inner(value):
                return None
            nodes.append(node)
            value = node.input[0]
        return value

    masked = graph.maker(softmax.input[0], "Reshape") is not None
    scores = back(softmax.input[0], *(("Reshape", "Add", "Reshape") if masked else ("Add",)))
    product = graph.maker(scores, "MatMul") if scores else None
    takers = graph.takers(softmax.output[0])
    if product is None or len(takers) != 1 or takers[0].op_type != "MatMul":
        return None
    position_bias = next(graph.constant(node.input[1]) for node in nodes if node.op_type == "Add")
    mixing = takers[0]
    join = [mixing]
    for operator in ("Transpose", "Reshape"):
        takers = graph.takers(join[-1].output[0])
        if len(takers) != 1 or takers[0].op_type != operator:
            return None
        join.append(takers[0])
    nodes += [product, *join]
    chains = (
        (product.input[0], ("Mul", "Transpose", "Reshape", "Add", "MatMul")),
        (product.input[1], ("Transpose", "Reshape", "Add", "MatMul")),
        (mixing.input[1], ("Transpose", "Reshape", "Add", "MatMul")),
    )
    tokens: set[str | None] = set()
    for value, operators in chains:
        first = len(nodes)
        tokens.add(back(value, *operators))
        if len(nodes) - first != len(operators):
            return None
    linear = [node for node in nodes if node.op_type == "Add"][-3:]
    products = [node for node in nodes if node.op_type == "MatMul"][-3:]
    scale = next(node for node in nodes if node.op_type == "Mul")
    stored = [node.input[1] for node in (*products, *linear, scale, join[-1])]
    arrays = [array for array in map(graph.constant, stored) if array is not None]
    taken = tokens.pop()
    if tokens or taken is None or position_bias is None or len(arrays) != len(stored):
        return None
    weights, biases, (factor, shape) = arrays[:3], arrays[3:6], arrays[6:]
    return _Attention(
        name=softmax.name.rpartition("/")[0],
        nodes=nodes,
        tokens=taken,
        mixed=join[-1].output[0],
        weights=weights,
        biases=biases,
        position_bias=position_bias,
        scale=float(factor),
        shape=shape,
    )


def fuse_attention(graph: Graph, softmax: NodeProto) -> None:
    """Put one product for queries, keys and values, and one MultiHeadAttention, in the place of an attention.

    The operator adds one position bias to all images. Windows that differ are therefore heads of their own: the tokens
    of all windows at a place are side by side, and the places follow each other.
    """
    found = _attention(graph, softmax)
    if found is None:
        return
    windows, heads, area, _ = found.position_bias.shape
    features = found.weights[0].shape[1]
    name, tokens, joined, new = found.name, found.tokens, found.mixed, list[NodeProto]()
    shifted = _shift(graph, found) if windows > 1 else None
    order = np.arange(windows * area) if shifted is None else shifted.order
    places = order[np.arange(windows * area).reshape(windows, area).T.ravel()]
    if windows > 1:
        tokens, joined = f"{name}/Gather", f"{name}/Reshape_2"
        new.append(_gather(graph, found.tokens, places, tokens))
    by_head = [weight.reshape(-1, heads, features // heads) for weight in found.weights]
    constants = {
        "MatMul.weight": np.stack(by_head, axis=2).reshape(-1, 3 * features),
        "Reshape.constant": np.array([-1, area, windows * heads, 3, features // heads]),
        "bias": np.concatenate([np.tile(each, windows) for each in found.biases]),
        "position_bias": found.position_bias.reshape(1, windows * heads, area, area),
        "Reshape_2.constant": found.shape,
    }
    weight, split, bias, position, whole = (
        graph.add_constant(f"{name}/{key}", values) for key, values in constants.items()
    )
    steps = [f"{name}/{operator}" for operator in ("MatMul", "Reshape", "MultiHeadAttention")]
    new += [
        helper.make_node("MatMul", [tokens, weight], [steps[0]], name=steps[0]),
        helper.make_node("Reshape", [steps[0], split], [steps[1]], name=steps[1]),
        helper.make_node(
            "MultiHeadAttention",
            [steps[1], "", "", bias, "", position],
            [steps[2]],
            name=steps[2],
            domain=DOMAIN,
            num_heads=windows * heads,
            scale=found.scale,
        ),
        helper.make_node("Reshape", [steps[2], whole], [joined], name=f"{name}/Reshape_2"),
    ]
    if windows > 1:
        new.append(_gather(graph, joined, np.argsort(places), found.mixed))
    graph.replace(found.nodes, new)
    if shifted is not None:
        graph.replace([shifted.gather], [])
        graph.rename(shifted.gather.output[0], shifted.gather.input[0])
        _carry(graph, shifted.residual.output[0], shifted.order)


@dataclass(frozen=True)
class _Shift:
    """The reordering of all tokens of a block before an attention within shifted windows.

    Attributes:
        gather: its node.
        order: its index.
        residual: the sum of the reordered tokens and the attention's result.
    """

    gather: NodeProto
    order: Array
    residual: NodeProto


def _shift(graph: Graph, found: _Attention) -> _Shift | None:
    """The reordering before an attention, if only the attention and the sum around it take its result."""
    norm = graph.maker(found.tokens, "LayerNormalization")
    gather = graph.maker(norm.input[0], "Gather") if norm else None
    order = order_of(graph, gather) if gather else None
    if norm is None or gather is None or order is None or len(graph.takers(found.tokens)) != 3:
        return None
    residual = [node for node in graph.takers(gather.output[0]) if node is not norm]
    if len(residual) != 1 or residual[0].op_type != "Add" or len(np.unique(order)) != len(order):
        return None
    value = found.mixed
    for operator in ("MatMul", "Add", "Add"):
        takers = graph.takers(value)
        if len(takers) != 1 or takers[0].op_type != operator:
            return None
        value = takers[0].output[0]
    return _Shift(gather, order, residual[0]) if value == residual[0].output[0] else None


def _carry(graph: Graph, value: str, order: Array) -> None:
    """Let the nodes after a value take it in another order of tokens, up to those that gather tokens or need the order.

    Args:
        value: (B, tokens, features); it had been this value reordered by `order`.
    """
    carried = {value: order}
    for node in list(graph.nodes):
        taken = [name for name in node.input if name in carried]
        if not taken:
            continue
        now = carried[taken[0]]
        others = [graph.constant(name) for name in node.input if name not in carried]
        index, finer = order_of(graph, node), _finer(graph, node, now)
        if index is not None:
            graph.replace([node], [_gather(graph, taken[0], now[index], node.output[0])])
        elif finer is not None:
            carried[node.output[0]] = finer
        elif node.op_type in TOKEN_WISE and all(each is not None and each.ndim <= 2 for each in others):
            carried[node.output[0]] = now
        else:
            for name in dict.fromkeys(taken):
                reordered = f"{node.name}/{name}"
                graph.nodes.insert(graph.place(node), _gather(graph, name, carried[name], reordered))
                node.input[:] = [reordered if each == name else each for each in node.input]


def _finer(graph: Graph, node: NodeProto, order: Array) -> Array | None:
    """The order of the parts that a node splits each token into; None for any other node."""
    shape = graph.constant(node.input[1]) if node.op_type == "Reshape" else None
    if shape is None or len(shape) != 3 or shape[0] != -1 or shape[1] < len(order) or shape[1] % len(order):
        return None
    parts = int(shape[1]) // len(order)
    return np.asarray(order[:, None] * parts + np.arange(parts)).ravel()


def order_of(graph: Graph, node: NodeProto) -> Array | None:
    """The index of a node that gathers tokens; None for any other node."""
    if node.op_type != "Gather" or [attribute.i for attribute in node.attribute] != [1]:
        return None
    index = graph.constant(node.input[1])
    return index if index is not None and index.ndim == 1 else None


def _gather(graph: Graph, value: str, order: Array, result: str) -> NodeProto:
    """A node that gathers tokens; an Identity if it would not change their order."""
    if np.array_equal(order, np.arange(len(order))):
        return helper.make_node("Identity", [value], [result], name=f"{result}/Identity")
    index = graph.add_constant(f"{result}/Gather.constant", order)
    return helper.make_node("Gather", [value, index], [result], name=f"{result}/Gather", axis=1)
