"""Joins nodes of a graph to operators of onnxruntime (domain com.microsoft) that its CUDA provider computes at once.

A GPU waits for its kernels to be launched if a chunk is small. The packed form of attention has no CPU kernel, so such
a graph is for GPUs only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper

from parotid_seg.runtime.engines.rewriting.attention import fuse_attention
from parotid_seg.runtime.engines.rewriting.graph import DOMAIN, Graph
from parotid_seg.runtime.engines.rewriting.reordering import fuse_reordering


def fused(model: ModelProto) -> ModelProto:
    """A copy of a graph with fused operators for onnxruntime's CUDA provider; what does not fit stays as it is.

    Args:
        model: from `export`, with its weights in the precision that it computes in.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    for operator, fuse in (
        ("Softmax", fuse_attention),
        ("LayerNormalization", _fuse_norm),
        ("Add", _fuse_sum),
        ("Mul", _fuse_factor),
        ("Div", _fuse_window),
        ("Transpose", fuse_reordering),
    ):
        for node in [each for each in graph.nodes if each.op_type == operator]:
            fuse(graph, node)
    graph.store()
    return copy


def _fuse_norm(graph: Graph, norm: NodeProto) -> None:
    """Put SkipLayerNormalization in the place of a LayerNormalization and the sums before it."""
    total = graph.maker(norm.input[0], "Add")
    if total is None:
        return
    bias = graph.constant(total.input[1])
    product = graph.maker(total.input[0], "MatMul")
    if product is not None and bias is not None and bias.ndim == 1:
        parts = _split_product(graph, product)
        if parts:
            _put_skip_norm(graph, [*parts, total.input[1]], total, norm.output[0], norm)
        return
    linear = _linear(graph, total)
    if linear is not None:
        (residual,) = [name for name in total.input if name != linear.output[0]]
        _put_skip_norm(graph, [linear.input[0], residual, linear.input[1]], total, norm.output[0], norm)
        graph.replace([linear], [])


def _fuse_sum(graph: Graph, total: NodeProto) -> None:
    """Put SkipLayerNormalization in the place of a linear layer's bias and a residual, of which no norm is taken.

    One kernel with a norm that nobody takes is less than two kernels without.
    """
    linear = _linear(graph, total)
    if linear is None:
        return
    (residual,) = [name for name in total.input if name != linear.output[0]]
    bias = graph.constant(linear.input[1])
    assert bias is not None
    ones = graph.add_constant(f"{total.name}/ones", np.ones_like(bias))
    _put_skip_norm(graph, [linear.input[0], residual, linear.input[1]], total, f"{total.name}/norm", None, ones)
    graph.replace([linear], [])


def _put_skip_norm(
    graph: Graph, summands: Sequence[str], total: NodeProto, normed: str, norm: NodeProto | None, weight: str = ""
) -> None:
    """Replace a sum, and its norm if there is one.

    Args:
        summands: two values (B, tokens, features), and a bias.
        normed: name of the normalised sum.
        weight: of the norm if there is none.
    """
    first, second, bias = summands
    epsilon = [attribute.f for attribute in norm.attribute if attribute.name == "epsilon"] if norm else []
    joint = helper.make_node(
        "SkipLayerNormalization",
        [first, second, *(norm.input[1:] if norm else [weight, ""]), bias],
        [normed, "", "", total.output[0]],
        name=f"{total.name}/SkipLayerNormalization",
        domain=DOMAIN,
        epsilon=epsilon[0] if epsilon else 1e-5,
    )
    graph.replace([total], [joint])
    if norm:
        graph.replace([norm], [])


def _split_product(graph: Graph, product: NodeProto) -> list[str]:
    """The products of two joined values with their parts of a weight, put in the place of a product of both.

    Returns:
        Their results; none if the factor is not joined of two values with the same number of features.
    """
    concat, weight = graph.maker(product.input[0], "Concat"), graph.constant(product.input[1])
    if concat is None or weight is None or not graph.is_inner(concat.output[0]):
        return []
    if [graph.features(value) for value in concat.input] != [len(weight) // 2] * 2:
        return []
    results, new = [], []
    for index, (value, part) in enumerate(zip(concat.input, np.split(weight, 2), strict=True)):
        results.append(f"{product.name}/{index}")
        factor = graph.add_constant(f"{product.name}/weight.{index}", part)
        new.append(helper.make_node("MatMul", [value, factor], [results[-1]], name=results[-1]))
    graph.replace([concat, product], new)
    return results


def _linear(graph: Graph, total: NodeProto) -> NodeProto | None:
    """The sum of a matrix product and a bias that only another sum takes, as one of its two summands."""
    if any(graph.constant(value) is not None for value in total.input):
        return None
    for value in total.input:
        node = graph.maker(value, "Add")
        bias = graph.constant(node.input[1]) if node else None
        if node is None or bias is None or bias.ndim != 1 or not graph.is_inner(value):
            continue
        if graph.maker(node.input[0], "MatMul") is not None:
            return node
    return None


def _fuse_factor(graph: Graph, factor: NodeProto) -> None:
    """Let a matrix product multiply by a constant in whose place only views and transpositions of it are taken."""
    constant = graph.constant(factor.input[1])
    value = factor.input[0]
    while constant is not None and constant.ndim == 0 and graph.is_inner(value):
        product = graph.maker(value, "MatMul")
        if product is not None:
            joint = helper.make_node(
                "FusedMatMul", product.input, product.output, name=product.name, domain=DOMAIN, alpha=float(constant)
            )
            graph.replace([product], [joint])
            graph.rename(factor.output[0], factor.input[0])
            graph.replace([factor], [])
            return
        makers = (graph.maker(value, operator) for operator in ("Reshape", "Transpose", "Cast"))
        moved = next((node for node in makers if node), None)
        if moved is None:
            return
        value = moved.input[0]


def _fuse_window(graph: Graph, quotient: NodeProto) -> None:
    """(min(max(x, low), high) - low) / (high - low) as one clip of (x - low) / (high - low) to 0 and 1."""
    difference, width = (graph.maker(name, "Sub") for name in quotient.input)
    least = graph.maker(difference.input[0], "Min") if difference and width else None
    most = graph.maker(least.input[0], "Max") if least else None
    if difference is None or width is None or least is None or most is None:
        return
    if not all(map(graph.is_inner, (most.output[0], least.output[0], difference.output[0]))):
        return
    low, high = most.input[1], least.input[1]
    if (difference.input[1], list(width.input)) != (low, [high, low]):
        return
    kind = graph.kind(quotient.output[0])
    ends = [graph.add_constant(f"{quotient.name}/{end}", np.array(end, kind)) for end in (0, 1)]
    scaled = f"{quotient.name}/scaled"
    new = [
        helper.make_node("Sub", [most.input[0], low], [difference.output[0]], name=difference.name),
        helper.make_node("Div", quotient.input, [scaled], name=quotient.name),
        helper.make_node("Clip", [scaled, *ends], quotient.output, name=f"{quotient.name}/Clip"),
    ]
    graph.replace([most, least, difference, quotient], new)
