"""Lets a graph pack its labels, see `packing`, by operators that onnxruntime's CUDA provider has."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from parotid_seg.runtime.engines.base import OUTPUTS
from parotid_seg.runtime.engines.packing import PACKED, labels_per_byte
from parotid_seg.runtime.engines.rewriting.graph import Graph

LABELS = OUTPUTS[0]


def packed(model: ModelProto, count: int) -> ModelProto:
    """A copy of a graph whose labels (S, H, W) are packed: (1, S * H * W / labels in a byte).

    A matrix product adds up the labels of a byte, each times its place's value, as there are no shifts on a GPU. Whole
    numbers up to 255 are exact. S must be a multiple of 8.

    Args:
        model: from `export`, or made of such a model.
        count: of different labels. With more than 16 nothing is packed.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    number, graph = labels_per_byte(count), Graph(copy)
    cast = graph.maker(LABELS, "Cast")
    if number == 1 or cast is None:
        return copy
    values = (1 << (8 // number)) ** np.arange(number)
    places = graph.add_constant(f"{LABELS}/places", values[None].astype(np.float32))
    shape = graph.add_constant(f"{LABELS}/shape", np.array([number, -1]))
    steps = [f"{LABELS}/{operator}" for operator in ("Cast", "Reshape", "MatMul")]
    new = [
        helper.make_node("Cast", cast.input, steps[:1], name=steps[0], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [steps[0], shape], steps[1:2], name=steps[1]),
        helper.make_node("MatMul", [places, steps[1]], steps[2:], name=steps[2]),
        helper.make_node("Cast", steps[2:], [LABELS], name=f"{LABELS}/Cast_2", to=TensorProto.UINT8),
    ]
    graph.replace([cast], new)
    graph.store()
    output = next(each for each in copy.graph.output if each.name == LABELS)
    output.CopyFrom(helper.make_tensor_value_info(LABELS, TensorProto.UINT8, (1, PACKED)))
    return copy
