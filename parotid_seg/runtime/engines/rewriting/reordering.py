"""Joins the reordering of tokens to windows with the transposition between images and tokens before or after it.

The tokens of windows are the pixels of an image whose sides are cut into pieces, and the pieces transposed. So both
steps are one transposition of more axes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from parotid_seg.runtime.engines.rewriting.attention import order_of
from parotid_seg.runtime.engines.rewriting.graph import Graph


class _Cut(NamedTuple):
    """An order of tokens as a transposition.

    Attributes:
        sizes: of the axes into which the tokens are cut.
        axes: these axes in the new order.
    """

    sizes: list[int]
    axes: list[int]


def fuse_reordering(graph: Graph, transposition: NodeProto) -> None:
    """Put a transposition of more axes in the place of one between (B, features, tokens) and (B, tokens, features) and
    of the reordering of tokens beside it, if there is one."""
    if [list(attribute.ints) for attribute in transposition.attribute] != [[0, 2, 1]]:
        return
    gather = graph.maker(transposition.input[0], "Gather")
    if gather is not None and graph.is_inner(gather.output[0]):
        cut = _cut(graph, gather)
        features = graph.features(gather.output[0])
        if cut and features:
            axes = [0, 1 + len(cut.sizes), *(1 + axis for axis in cut.axes)]
            new = _transposed(graph, transposition, gather.input[0], [*cut.sizes, features], axes, features)
            graph.replace([gather, transposition], new)
        return
    value = transposition.output[0]
    norm = graph.taker(value, "LayerNormalization")
    gather = graph.taker(norm.output[0] if norm else value, "Gather")
    cut = _cut(graph, gather) if gather else None
    features = graph.features(value)
    if gather is not None and cut and features:
        axes = [0, *(2 + axis for axis in cut.axes), 1]
        tokens = int(np.prod(cut.sizes))
        new = _transposed(graph, transposition, transposition.input[0], [features, *cut.sizes], axes, tokens)
        (norm or new[-1]).output[0] = gather.output[0]
        graph.replace([transposition], new)
        graph.replace([gather], [])


def _transposed(
    graph: Graph, old: NodeProto, value: str, sizes: list[int], axes: list[int], first: int
) -> list[NodeProto]:
    """Nodes that make what a transposition made: a value as (B, *sizes), with its axes in another order, and that as
    (B, first, the rest)."""
    before, after = (
        graph.add_constant(f"{old.name}/{name}", np.array(shape))
        for name, shape in (("sizes", [-1, *sizes]), ("shape", [-1, first, int(np.prod(sizes)) // first]))
    )
    cut, moved = f"{old.name}/Reshape", f"{old.name}/Transpose"
    return [
        helper.make_node("Reshape", [value, before], [cut], name=cut),
        helper.make_node("Transpose", [cut], [moved], name=moved, perm=axes),
        helper.make_node("Reshape", [moved, after], old.output, name=f"{moved}/Reshape"),
    ]


def _cut(graph: Graph, gather: NodeProto) -> _Cut | None:
    """The order in which a node gathers tokens as a transposition; None if it is none."""
    order = order_of(graph, gather)
    if order is None:
        return None
    new, rest = list[tuple[int, int]](), order  # steps and sizes of the new axes, the last axis first
    while len(rest) > 1:
        step = int(rest[1] - rest[0])
        (ends,) = np.nonzero(np.diff(rest) != step)
        new.append((step, int(ends[0]) + 1 if len(ends) else len(rest)))
        rest = rest[:: new[-1][1]]
    old = sorted(new, reverse=True)
    cut = _Cut([size for _, size in old], [old.index(axis) for axis in reversed(new)])
    tokens = np.arange(int(np.prod(cut.sizes)))
    return cut if np.array_equal(tokens.reshape(cut.sizes).transpose(cut.axes).ravel(), order) else None
