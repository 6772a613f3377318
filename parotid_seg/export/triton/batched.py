"""A model file with one more axis in front: several requests in one run of the network.

The graph of a model file takes one chunk of one scan, and none of its inputs has an axis along which a server could
join requests. Here its first and last layers are replaced by FP32 layers with a request axis N in front of every input
and of the output. The network between processes images independently, so it stays unchanged, including its precision,
and gets the images of all requests as one batch. Each request keeps its own window and matrices: chunks of different
patients may be joined if their shapes are equal.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.onnxruntime.cpu import session_options
from parotid_seg.runtime.tolerance import SAME
from parotid_seg.scan.chunks import Chunk
from parotid_seg.scan.volume import Mask

BATCHED_KEY = f"{METADATA_KEY}.batched"
"""Metadata key of the contract in such a file. Backends use another key and reject the file: its shapes differ."""

_TO_IMAGES = """
to_images (float16[N,{c},D,H,W] slices, float[N,{c},2] window, float[N,{g},H] rows, float[N,{g},W] columns,
           float[N,B,{k},D] neighbours) => (float[M,{ck},{g},{g}] each_image) {{
    each_value = Cast <to = 1> (slices)
    each_low_end, each_high_end = Split <axis = 2, num_outputs = 2> (window)
    per_voxel = Constant <value_ints = [3, 4]> ()
    each_low = Unsqueeze (each_low_end, per_voxel)
    each_high = Unsqueeze (each_high_end, per_voxel)
    each_raised = Max (each_value, each_low)
    each_clipped = Min (each_raised, each_high)
    each_above = Sub (each_clipped, each_low)
    each_width = Sub (each_high, each_low)
    each_windowed = Div (each_above, each_width)
    per_slice = Constant <value_ints = [1, 2]> ()
    each_columns_t = Transpose <perm = [0, 2, 1]> (columns)
    each_columns = Unsqueeze (each_columns_t, per_slice)
    each_rows = Unsqueeze (rows, per_slice)
    each_narrow = MatMul (each_windowed, each_columns)
    each_in_plane = MatMul (each_rows, each_narrow)
    flat_shape = Constant <value_ints = [0, {c}, -1, {gg}]> ()
    each_flat = Reshape (each_in_plane, flat_shape)
    requests_in = Shape <start = 0, end = 1> (neighbours)
    depth_in = Shape <start = 3, end = 4> (neighbours)
    wanted_middle = Constant <value_ints = [1, -1]> ()
    wanted_shape = Concat <axis = 0> (requests_in, wanted_middle, depth_in)
    each_wanted = Reshape (neighbours, wanted_shape)
    each_stacked = MatMul (each_wanted, each_flat)
    look_shape = Constant <value_ints = [0, {c}, -1, {k}, {gg}]> ()
    each_channel = Reshape (each_stacked, look_shape)
    each_look = Transpose <perm = [0, 2, 1, 3, 4]> (each_channel)
    image_shape = Constant <value_ints = [-1, {ck}, {g}, {g}]> ()
    each_image = Reshape (each_look, image_shape)
}}
"""

_TO_LABELS = """
to_labels (float[M,{l},{g},{g}] each_score, float[N,S,B] slices_back, float[N,H,{g}] rows_back,
           float[N,W,{g}] columns_back) => (uint8[N,S,H,W] labels) {{
    requests_out = Shape <start = 0, end = 1> (slices_back)
    score_rest = Constant <value_ints = [-1, {lgg}]> ()
    score_shape = Concat <axis = 0> (requests_out, score_rest)
    each_flat_score = Reshape (each_score, score_shape)
    each_mixed = MatMul (slices_back, each_flat_score)
    mixed_shape = Constant <value_ints = [0, -1, {l}, {g}, {g}]> ()
    each_native_slice = Reshape (each_mixed, mixed_shape)
    per_score = Constant <value_ints = [1, 2]> ()
    each_columns_back_t = Transpose <perm = [0, 2, 1]> (columns_back)
    each_columns_back = Unsqueeze (each_columns_back_t, per_score)
    each_rows_back = Unsqueeze (rows_back, per_score)
    each_wide = MatMul (each_native_slice, each_columns_back)
    each_native = MatMul (each_rows_back, each_wide)
    each_label = ArgMax <axis = 2, keepdims = 0> (each_native)
    labels = Cast <to = 2> (each_label)
}}
"""


def with_request_axis(content: bytes, contract: Contract) -> bytes:
    """Convert a model file's bytes to those of the same model with a request axis.

    Every input and the output get N in front of the shape that `scan.chunks.Chunk` gives, N free.

    Args:
        content: the .onnx file.
        contract: its contract; the new file has it under `BATCHED_KEY`.

    Raises:
        ModelError: if the graph does not have the layout of this version's exports.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    images, scores = _ends_of_network(model.graph)
    network = onnx.utils.Extractor(model).extract_model([images], [scores]).graph
    g, k = contract.grid.size, len(contract.grid.offsets_mm)
    c, classes = len(contract.channels), len(contract.labels)
    to_images = onnx.parser.parse_graph(_TO_IMAGES.format(c=c, g=g, gg=g**2, k=k, ck=c * k))
    to_labels = onnx.parser.parse_graph(_TO_LABELS.format(g=g, l=classes, lgg=classes * g**2))
    graph = helper.make_graph(
        [
            *to_images.node,
            helper.make_node("Cast", ["each_image"], [images], to=network.input[0].type.tensor_type.elem_type),
            *network.node,
            helper.make_node("Cast", [scores], ["each_score"], to=TensorProto.FLOAT),
            *to_labels.node,
        ],
        "parotid_seg_batched",
        [*to_images.input, *(entry for entry in to_labels.input if entry.name != "each_score")],
        list(to_labels.output),
        list(network.initializer),
    )
    batched = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    batched.producer_name = model.producer_name
    helper.set_model_props(batched, {BATCHED_KEY: contract.to_json()})
    onnx.checker.check_model(batched, full_check=True)
    serialized: bytes = batched.SerializeToString(deterministic=True)
    return serialized


def check_batched(content: bytes, batched: bytes, pairs: Iterable[tuple[Chunk, Chunk]]) -> tuple[int, int]:
    """Run pairs of chunks one by one through the model and as one batch of two through the batched one.

    Args:
        content, batched: the two files' bytes.
        pairs: chunks of equal shapes and different voxels, windows or matrices, so that a mix-up would show.

    Returns:
        Number of voxels with a structure in either result, and of those whose label differs.

    Raises:
        ModelError: if more of them differ than `tolerance.SAME` allows, or the model finds no structure to compare.
    """
    one, both = (
        onnxruntime.InferenceSession(each, session_options(), providers=["CPUExecutionProvider"])
        for each in (content, batched)
    )
    labelled = changed = 0
    for pair in pairs:
        expected: Mask = np.stack([one.run(["labels"], chunk.inputs)[0] for chunk in pair])
        labels: Mask = both.run(["labels"], stacked([chunk.inputs for chunk in pair]))[0]
        labelled += int(np.count_nonzero((expected > 0) | (labels > 0)))
        changed += int(np.count_nonzero(expected != labels))
    if not labelled:
        raise ModelError(
            "the model finds nothing in the scan that the batched one is compared on; name another in --verify"
        )
    if changed > SAME.most_changed_share * labelled:
        raise ModelError(
            f"the batched model differs from the model in {changed} of {labelled} labelled voxels, "
            f"expected at most {SAME.most_changed_share:.1%}"
        )
    return labelled, changed


def stacked(requests: list[dict[str, NDArray[np.float16] | NDArray[np.float32]]]) -> dict[str, NDArray[np.generic]]:
    """Inputs of equal-shaped requests, joined along a new first axis as a server joins them."""
    return {name: np.stack([request[name] for request in requests]) for name in requests[0]}


def _ends_of_network(graph: onnx.GraphProto) -> tuple[str, str]:
    """Names of the images (B, C x K, G, G) that enter the network and of the scores (B, L, G, G) that leave it.

    The images are the output of the last Reshape before the first convolution; a scaling, and the casts of another
    precision, may lie between. The scores are the input of the Reshape before the product with `slices_back`.
    """
    maker = {output: node for node in graph.node for output in node.output}
    weights = {weight.name for weight in graph.initializer}

    def origin(name: str, passed: set[str]) -> onnx.NodeProto | None:
        """The node that produces a value, skipping element-wise operators."""
        node = maker.get(name)
        while node is not None and node.op_type in passed:
            moving = [entry for entry in node.input if entry not in weights]
            node = maker.get(moving[0]) if len(moving) == 1 else None
        return node

    casts = {"Cast", "QuantizeLinear", "DequantizeLinear"}
    entering = next(
        (origin(node.input[0], casts | {"Mul", "Sub", "Add"}) for node in graph.node if node.op_type == "Conv"), None
    )
    back = {"slices_back"} | {
        node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] == "slices_back"
    }
    leaving = next(
        (origin(node.input[1], casts) for node in graph.node if node.op_type == "MatMul" and node.input[0] in back),
        None,
    )
    if entering is None or leaving is None or {entering.op_type, leaving.op_type} != {"Reshape"}:
        raise ModelError("the graph has no request axis and is not laid out as this version exports it; export again")
    return entering.output[0], leaving.input[0]
