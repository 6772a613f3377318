"""Packed labels, and graphs that pack them, are the labels."""

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from parotid_seg.runtime.engines.packing import PACKED, labels_per_byte, unpacked
from parotid_seg.runtime.engines.padding import STEPS, Size
from parotid_seg.runtime.engines.rewriting.packed_labels import packed
from parotid_seg.scan.volume import Mask


@pytest.mark.parametrize(("count", "number"), [(2, 8), (3, 4), (4, 4), (5, 2), (16, 2), (17, 1), (256, 1)])
def test_a_byte_holds_as_many_labels_as_fit(count: int, number: int) -> None:
    assert labels_per_byte(count) == number
    assert STEPS["out"] % number == 0


def labelling() -> ModelProto:
    """A graph that makes labels from scores as every model does."""
    nodes = [
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("out", "classes", "height", "width"))
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ("out", "height", "width"))
    graph = helper.make_graph(nodes, "labelling", [scores], [labels])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 16])
def test_what_a_graph_packs_is_unpacked_without_padding(count: int) -> None:
    """Every label occurs at every place of a byte."""
    random = np.random.default_rng(count)
    labels: Mask = random.integers(0, count, (16, 8, 24), np.uint8)
    scores = (np.arange(count)[:, None, None] == labels[:, None]).astype(np.float32)
    session = onnxruntime.InferenceSession(packed(labelling(), count).SerializeToString())
    (output,) = session.get_outputs()
    assert (output.shape, output.type) == ([1, PACKED], "tensor(uint8)")
    (found,) = session.run(None, {"scores": scores})
    number = labels_per_byte(count)
    assert found.nbytes == labels.nbytes / number
    back = unpacked(found.reshape(-1, *labels.shape[1:]), number, Size(13, 5, 23))
    np.testing.assert_array_equal(back, labels[:13, :5, :23])
    assert back.dtype == np.uint8


def test_labels_that_fill_a_byte_stay() -> None:
    assert packed(labelling(), 17) == labelling()
