"""A reordering to windows beside a transposition between images and tokens is one transposition, if it can be."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from parotid_seg.runtime.engines.rewriting.fusion import fused

SIDE, FEATURES = 6, 5
PIXELS = np.arange(SIDE * SIDE)
WINDOWS = PIXELS.reshape(2, 3, 3, 2).swapaxes(1, 2).ravel()
"""Windows of 3 x 2 pixels."""
BACK = np.argsort(WINDOWS)
ROLLED = np.roll(PIXELS.reshape(SIDE, SIDE), 1, 0).ravel()
TWICE = np.concatenate([PIXELS, PIXELS])


def graph(nodes: list[NodeProto], order: NDArray[np.int64], shape: tuple[int, int]) -> ModelProto:
    """A graph of nodes from x (B, *shape) to y, with a norm's weights and an order as constants."""
    weights = [numpy_helper.from_array(np.linspace(0.5, 2, FEATURES, dtype=np.float32), "weight")]
    weights.append(numpy_helper.from_array(order, "order"))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", *shape))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "reordering", [given], [result], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def to_tokens(order: NDArray[np.int64], *, norm: bool) -> ModelProto:
    nodes = [helper.make_node("Transpose", ["x"], ["tokens"], name="t", perm=[0, 2, 1])]
    if norm:
        nodes.append(helper.make_node("LayerNormalization", ["tokens", "weight"], ["normed"], name="n"))
    nodes.append(helper.make_node("Gather", ["normed" if norm else "tokens", "order"], ["y"], name="g", axis=1))
    return graph(nodes, order, (FEATURES, SIDE * SIDE))


def to_image(order: NDArray[np.int64]) -> ModelProto:
    nodes = [
        helper.make_node("Gather", ["x", "order"], ["pixels"], name="g", axis=1),
        helper.make_node("Transpose", ["pixels"], ["y"], name="t", perm=[0, 2, 1]),
    ]
    return graph(nodes, order, (SIDE * SIDE, FEATURES))


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: ModelProto) -> NDArray[np.float32]:
    shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize("order", [WINDOWS, BACK])
def test_windows_and_images_are_one_transposition_apart(order: NDArray[np.int64]) -> None:
    for model in (to_tokens(order, norm=False), to_tokens(order, norm=True), to_image(order)):
        made = fused(model)
        assert (kinds(made)["Gather"], kinds(made)["Transpose"]) == (0, 1)
        np.testing.assert_array_equal(run(made), run(model))


@pytest.mark.parametrize("order", [ROLLED, TWICE, np.random.default_rng(1).permutation(PIXELS)])
def test_any_other_order_stays(order: NDArray[np.int64]) -> None:
    for model in (to_tokens(order, norm=True), to_image(order)):
        assert kinds(fused(model)) == kinds(model)


def test_what_others_take_stays() -> None:
    for model, value in ((to_tokens(WINDOWS, norm=False), "tokens"), (to_image(WINDOWS), "pixels")):
        shape = ("batch", SIDE * SIDE, FEATURES)
        model.graph.output.add().CopyFrom(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))
        assert kinds(fused(model)) == kinds(model)
