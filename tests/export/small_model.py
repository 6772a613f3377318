"""A model file of the same inputs and outputs as the real ones, with one FP16 convolution in place of a network."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from parotid_seg.contract import METADATA_KEY, Contract, Grid
from parotid_seg.runtime.engines.model_file import graph_hash, sealed

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is missing: pip install tensorrt-rtx"
)
GRID = Grid(size=8, spacing_mm=20.0, offsets_mm=(-3.0, 0.0, 3.0))
CONTRACT = Contract(
    labels=("background", "gland"), channels=("CT",), windows=((-200.0, 300.0),), grid=GRID, precision="fp16"
)
NODES = (
    helper.make_node("Cast", ["slices"], ["hu"], to=TensorProto.FLOAT),
    helper.make_node("Gather", ["window", "zero"], ["low"], axis=1),
    helper.make_node("Gather", ["window", "one"], ["high"], axis=1),
    helper.make_node("Sub", ["high", "low"], ["width"]),
    helper.make_node("Sub", ["hu", "low"], ["above"]),
    helper.make_node("Div", ["above", "width"], ["seen"]),
    helper.make_node("MatMul", ["rows", "seen"], ["rows seen"]),
    helper.make_node("Transpose", ["columns"], ["columns turned"], perm=[1, 0]),
    helper.make_node("MatMul", ["rows seen", "columns turned"], ["in plane"]),
    helper.make_node("Reshape", ["in plane", "flat"], ["planes"]),
    helper.make_node("MatMul", ["neighbours", "planes"], ["stacked"]),
    helper.make_node("Reshape", ["stacked", "images"], ["input"]),
    helper.make_node("Cast", ["input"], ["input half"], to=TensorProto.FLOAT16),
    helper.make_node("Conv", ["input half", "weight"], ["scores half"], name="look_at_the_gland"),
    helper.make_node("Cast", ["scores half"], ["scores"], to=TensorProto.FLOAT),
    helper.make_node("Reshape", ["scores", "looks"], ["scores flat"]),
    helper.make_node("MatMul", ["slices_back", "scores flat"], ["mixed flat"]),
    helper.make_node("Reshape", ["mixed flat", "maps"], ["mixed"]),
    helper.make_node("Transpose", ["columns_back"], ["back turned"], perm=[1, 0]),
    helper.make_node("MatMul", ["mixed", "back turned"], ["columns done"]),
    helper.make_node("MatMul", ["rows_back", "columns done"], ["native"]),
    helper.make_node("ArgMax", ["native"], ["best"], axis=1, keepdims=0),
    helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
)
SIZE, NEIGHBOURS = GRID.size, len(GRID.offsets_mm)
KERNEL = np.zeros((2, NEIGHBOURS, 1, 1), np.float16)
KERNEL[1, 1] = 1
CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "flat": np.array([-1, SIZE * SIZE]),
    "images": np.array([-1, NEIGHBOURS, SIZE, SIZE]),
    "looks": np.array([-1, 2 * SIZE * SIZE]),
    "maps": np.array([-1, 2, SIZE, SIZE]),
    "weight": KERNEL,
}
SHAPES: dict[str, tuple[int, tuple[int | str, ...]]] = {
    "slices": (TensorProto.FLOAT16, (1, "depth", "height", "width")),
    "window": (TensorProto.FLOAT, (1, 2)),
    "rows": (TensorProto.FLOAT, (SIZE, "height")),
    "columns": (TensorProto.FLOAT, (SIZE, "width")),
    "neighbours": (TensorProto.FLOAT, ("batch", NEIGHBOURS, "depth")),
    "slices_back": (TensorProto.FLOAT, ("out", "batch")),
    "rows_back": (TensorProto.FLOAT, ("height", SIZE)),
    "columns_back": (TensorProto.FLOAT, ("width", SIZE)),
}


def write_small_model(path: Path, contract: Contract | None = CONTRACT, extra: onnx.NodeProto | None = None) -> Path:
    """Write the model.

    Args:
        path: where.
        contract: what goes into its metadata; None leaves it out.
        extra: a node more, from the value "scores" to the value "more".
    """
    nodes = NODES if extra is None else (*NODES, extra)
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, ("out", "height", "width"))]
    if extra is not None:
        outputs.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    return write_graph(path, nodes, CONSTANTS, SHAPES, outputs, contract)


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, tuple[int | str, ...]]],
    outputs: Sequence[onnx.ValueInfoProto],
    contract: Contract | None,
) -> Path:
    """Write a graph as a model file.

    Args:
        path: where.
        nodes: its operators.
        constants: its constants by name.
        shapes: type and shape of each input.
        outputs: its outputs.
        contract: what goes into its metadata, with the graph's hash; None leaves it out.
    """
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *what) for name, what in shapes.items()],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    if contract is not None:
        hashed = dataclasses.replace(contract, graph_sha256=graph_hash(model.SerializeToString()))
        helper.set_model_props(model, {METADATA_KEY: hashed.to_json()})
    content = model.SerializeToString()
    path.write_bytes(content if contract is None else sealed(content))
    return path
