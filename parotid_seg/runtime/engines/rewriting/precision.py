"""Sets the precision in the graph: which nodes compute in FP16 or BF16 and which stay in FP32.

Engine builders are strongly typed: they use the types in the graph. The types are therefore set here, by casts, and
are visible in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.rewriting.graph import set_nodes

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PASSING = {
    "Concat", "DepthToSpace", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that move values without computing: they keep the type of their input."""


@dataclass(frozen=True)
class Fallback:
    """Nodes that are set back to FP32 if the tolerance fails without it.

    Attributes:
        name: its name in reports.
        operators: all nodes of these operators.
        modules: all nodes of these modules and of the modules within.
    """

    name: str
    operators: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def holds(self, node: NodeProto) -> bool:
        """Whether a node belongs to this fallback."""
        return node.op_type in self.operators or in_modules(node.name, self.modules)


RESAMPLING = ("to_grid", "from_grid", "")
"""Modules around the network."""
FALLBACKS = (
    Fallback("resampling", modules=RESAMPLING),
    Fallback("last layer", modules=("unet.classify",)),
    Fallback("softmax", operators=("Softmax",)),
    Fallback("LayerNorm", operators=("LayerNormalization",)),
)
"""FP32 fallbacks, least costly first: parts where rounding moves an outline, then parts that may overflow."""


def module_of(name: str) -> str:
    """The module in a node's or a value's name; empty outside of any."""
    return name.rpartition("/")[0]


def in_modules(name: str, modules: Iterable[str]) -> bool:
    """Whether a node of this name belongs to one of these modules, or to a module within; "" is the outside of all
    modules."""
    node_module = module_of(name)
    return any(node_module == module or (module and node_module.startswith(f"{module}.")) for module in modules)


def in_any(fallbacks: Iterable[Fallback], node: NodeProto) -> bool:
    """Whether a node belongs to one of these fallbacks."""
    return any(fallback.holds(node) for fallback in fallbacks)


def with_whole_weights(model: ModelProto) -> ModelProto:
    """A copy of a graph with its weights in FP32, in place of weights stored in FP16 and cast."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    stored = {weight.name: weight for weight in graph.initializer}
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        values = numpy_helper.to_array(stored[cast.input[0]]).astype(np.float32)
        stored[cast.input[0]].CopyFrom(numpy_helper.from_array(values, cast.output[0]))
        graph.node.remove(cast)
    return whole


def lower(model: ModelProto, precision: str, keep: Callable[[NodeProto], bool]) -> ModelProto:
    """A copy of an FP32 graph that computes in a half type, except for some nodes.

    Args:
        model: after `export.onnx_file.name_after_modules`; its inputs and outputs keep their types.
        precision: one of `HALF_TYPES`.
        keep: which nodes stay in FP32.

    Raises:
        ModelError: if a weight is too large for the type.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))
    _Lowering(lowered.graph, HALF_TYPES[precision]).rewrite(keep)
    return lowered


class _Lowering:
    """One pass over a graph in its order; `now` is the type of each value in the new graph."""

    def __init__(self, graph: GraphProto, half: int) -> None:
        self.graph, self.half = graph, half
        self.weights = {weight.name: weight for weight in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self.now = {value.name: value.type.tensor_type.elem_type for value in values}
        self.now |= {name: weight.data_type for name, weight in self.weights.items()}
        self.floats = {name for name, kind in self.now.items() if kind == TensorProto.FLOAT}
        self.nodes: list[NodeProto] = []
        self.copies: dict[tuple[str, int], str] = {}

    def rewrite(self, keep: Callable[[NodeProto], bool]) -> None:
        """Set the type of every node that computes."""
        outputs = {value.name for value in self.graph.output}
        for node in list(self.graph.node):
            results = [name for name in node.output if name in self.floats]
            if not results and self.floats.isdisjoint(node.input):
                self.nodes.append(node)
                continue
            kind = TensorProto.FLOAT if keep(node) else self.half
            if node.op_type in PASSING and node.input[0] not in self.weights:
                kind = self.now[node.input[0]]
            if node.op_type == "Cast":
                node.attribute[0].i = kind
            else:
                node.input[:] = [self._as(kind, name) if name in self.floats else name for name in node.input]
            self.nodes.append(node)
            for name in results:
                self.now[name] = kind
                if name in outputs and kind != TensorProto.FLOAT:
                    inner = f"{name}.{_word(kind)}"
                    node.output[list(node.output).index(name)] = inner
                    self.nodes.append(_cast(inner, name, TensorProto.FLOAT))
        set_nodes(self.graph, self.nodes, self.graph.initializer)

    def _as(self, kind: int, name: str) -> str:
        """The value's name in a type; a cast or a converted weight is added if it does not exist yet."""
        if self.now[name] == kind:
            return name
        if (name, kind) not in self.copies:
            copy = self.copies[name, kind] = f"{name}.{_word(kind)}"
            if name in self.weights:
                self.graph.initializer.append(_converted(self.weights[name], copy, kind))
            else:
                self.nodes.append(_cast(name, copy, kind))
        return self.copies[name, kind]


def _converted(weight: TensorProto, name: str, kind: int) -> TensorProto:
    values = numpy_helper.to_array(weight)
    with np.errstate(over="ignore"):
        converted = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    if not np.isfinite(converted.astype(np.float32)).all():
        largest = float(np.abs(values).max())
        raise ModelError(f"weight {weight.name}: found {largest:g}, more than {_word(kind)} can hold")
    return numpy_helper.from_array(converted, name)


def _cast(source: str, result: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/Cast", to=kind)


def _word(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
