"""A fused graph computes what the graph computed. Attention in its packed form has no CPU kernel, so it is unpacked
here to the form that has one: the same operator with queries, keys and values as three inputs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.rewriting.fusion import fused
from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, lower, with_whole_weights
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.nifti import scan_of_image

pytestmark = pytest.mark.slow

CONTRACT = read_model(DEFAULT_MODEL).contract


@pytest.fixture(scope="module")
def plain() -> ModelProto:
    return with_whole_weights(onnx.load(DEFAULT_MODEL))


@pytest.fixture(scope="module")
def chunk(head: nibabel.Nifti1Image) -> Inputs:
    volume, windows = in_windows(scan_of_image(head, Path()).volume, CONTRACT.channels, CONTRACT.windows)
    return list(chunks(volume, windows, CONTRACT.grid, 3))[1].inputs


@pytest.fixture(scope="module")
def expected(plain: ModelProto, chunk: Inputs) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return scores_and_labels(plain, chunk)


def unpacked(model: ModelProto) -> ModelProto:
    """A graph with the queries, keys and values of each attention as inputs of their own."""
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in copy.graph.node:
        if node.op_type == "MultiHeadAttention":
            packed, bias = node.input[0], node.input[3]
            parts, flat = ([f"{node.name}/{kind}{index}" for index in range(3)] for kind in ("part", "flat"))
            width = next(len(numpy_helper.to_array(each)) for each in copy.graph.initializer if each.name == bias) // 3
            shape = numpy_helper.from_array(np.array([0, 0, width]), f"{node.name}/shape")
            copy.graph.initializer.append(shape)
            nodes.append(helper.make_node("Split", [packed], parts, axis=3, num_outputs=3))
            nodes += [
                helper.make_node("Reshape", [part, shape.name], [name]) for part, name in zip(parts, flat, strict=True)
            ]
            node.input[:] = [*flat, *node.input[3:]]
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def scores_and_labels(model: ModelProto, chunk: Inputs) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What a graph computes on the CPU."""
    watched = unpacked(model)
    scores = next(node.input[0] for node in watched.graph.node if node.op_type == "ArgMax")
    watched.graph.output.add().name = scores
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run([scores, "labels"], dict(chunk)))


def count(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_it_computes_the_same_with_half_the_nodes(
    plain: ModelProto, chunk: Inputs, expected: tuple[NDArray[np.float32], NDArray[np.uint8]]
) -> None:
    model = fused(plain)
    scores, labels = scores_and_labels(model, chunk)
    assert len(np.unique(labels)) == 3, "something to compare"
    assert float(np.abs(scores - expected[0]).max()) < 1e-4
    np.testing.assert_array_equal(labels, expected[1])
    found = count(model)
    assert found["MultiHeadAttention"] == 12
    assert (found["SkipLayerNormalization"], found["LayerNormalization"]) == (26, 8)
    assert (found["MatMul"], found["FusedMatMul"], found["Clip"]) == (61, 1, 1)
    assert (found["Transpose"], found["Gather"]) == (5, 14), "nothing is transposed but images and matrices"
    assert found["Softmax"] + found["Concat"] == 1, "of shapes"
    assert fused(model) == model, "there is nothing left to join"


def test_fp16_is_fused_too(
    plain: ModelProto, chunk: Inputs, expected: tuple[NDArray[np.float32], NDArray[np.uint8]]
) -> None:
    model = fused(lower(plain, "fp16", FALLBACKS[0].holds))
    scores, labels = scores_and_labels(model, chunk)
    assert float(np.abs(scores - expected[0]).max()) < 0.05
    assert np.count_nonzero(labels != expected[1]) <= 0.002 * np.count_nonzero(expected[1])
    assert (count(model)["MultiHeadAttention"], count(model)["SkipLayerNormalization"]) == (12, 26)
    assert {"FLOAT16"} == {
        helper.tensor_dtype_to_string(weight.data_type).removeprefix("TensorProto.")
        for weight in model.graph.initializer
        if ".attn/" in weight.name and ".constant" not in weight.name
    }


def _watched(model: ModelProto, name: str) -> None:
    """Let a value be a result of the graph, too."""
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda model: _watched(model, "unet.encoder.layers.0.blocks.1.attn/Mul"), 11),
        (lambda model: _watched(model, "unet.decoder.0.blocks.1.attn/Reshape_5"), 11),
        (lambda model: None, 12),
    ],
)
def test_values_that_others_take_stay(
    plain: ModelProto,
    chunk: Inputs,
    expected: tuple[NDArray[np.float32], NDArray[np.uint8]],
    change: Callable[[ModelProto], None],
    left: int,
) -> None:
    model = ModelProto()
    model.CopyFrom(plain)
    change(model)
    made = fused(model)
    assert count(made)["MultiHeadAttention"] == left
    np.testing.assert_array_equal(scores_and_labels(made, chunk)[1], expected[1])


def test_an_attention_of_two_precisions_stays(plain: ModelProto) -> None:
    softmax_in_fp32 = lower(plain, "fp16", FALLBACKS[2].holds)
    found = count(fused(softmax_in_fp32))
    assert (found["MultiHeadAttention"], found["Softmax"], found["SkipLayerNormalization"]) == (0, 12, 26)
