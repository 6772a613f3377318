"""Model files that are sealed but not what their contract promises: one line, whatever onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from parotid_seg.contract import METADATA_KEY
from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.model_file import graph_hash, sealed
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.scan.chunks import crop_to_grid
from tests.export.small_model import CONTRACT, GRID, write_small_model
from tests.scan.test_chunks import scan_at
from tests.scan.test_grid import HU


def label_without_a_name(graph: onnx.GraphProto) -> None:
    graph.node[-1].input[0] = "more"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(graph.initializer[1]) * 200, "hundreds"))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Add", ["best", "hundreds"], ["more"]))


def other_shape(graph: onnx.GraphProto) -> None:
    graph.node[-1].input[0] = "flat labels"
    graph.initializer.append(helper.make_tensor("short", TensorProto.INT64, [3], [1, 1, -1]))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Reshape", ["best", "short"], ["flat labels"]))


def other_type(graph: onnx.GraphProto) -> None:
    graph.node[-1].attribute[0].i = TensorProto.INT32
    graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


def fails_when_run(graph: onnx.GraphProto) -> None:
    flat = next(each for each in graph.initializer if each.name == "flat")
    flat.CopyFrom(helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 7919]))


def fails_to_load(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "NoSuchOperator"


def segment_with(path: Path) -> None:
    batches: Batcher[Any] = Batcher(OnnxRuntimeBackend(path, threads=1), 4)
    batches.add(1, crop_to_grid(scan_at(80, 70), HU, GRID))
    while batches.busy:
        batches.step()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (label_without_a_name, r"the model gives .* up to 20\d, expected"),
        (other_shape, "the model gives"),
        (other_type, "values of int32"),
        (fails_when_run, "cannot run it"),
        (fails_to_load, "not an ONNX model that onnxruntime can load"),
    ],
)
def test_a_model_that_does_not_keep_its_promise_is_one_line(
    tmp_path: Path, spoil: Callable[..., None], words: str
) -> None:
    path = write_small_model(tmp_path / "m.onnx", None)
    model = onnx.load(path)
    spoil(model.graph)
    hashed = graph_hash(model.SerializeToString())
    helper.set_model_props(
        model, {METADATA_KEY: CONTRACT.to_json().replace('"graph_sha256": ""', f'"graph_sha256": "{hashed}"')}
    )
    path.write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(ModelError, match=words) as caught:
        segment_with(path)
    assert "\n" not in str(caught.value)
