"""The exported graph: names that can be read, class probabilities, types, and what computes in them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch.utils.flop_counter import FlopCounterMode

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError
from parotid_seg.export.candidates import quantise, run_of
from parotid_seg.export.onnx_file import halve_weights
from parotid_seg.export.ops_by_dtype import of_graph, of_run, work_of
from parotid_seg.export.parity import Parity
from parotid_seg.export.window_order import in_window_order
from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, in_any, lower, module_of
from parotid_seg.scan.chunks import Inputs
from parotid_seg.train.checkpoint import Checkpoint
from tests.export.conftest import Translation, two_patients

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chunk(parity: Parity) -> Inputs:
    return parity.usual_chunk()


@pytest.fixture(scope="module")
def work(translated: tuple[onnx.ModelProto, Contract], chunk: Inputs) -> dict[str, int]:
    return work_of(translated[0].SerializeToString(), chunk)


def test_nodes_have_their_modules_names(translated: tuple[onnx.ModelProto, Contract], checkpoint: Checkpoint) -> None:
    graph = translated[0].graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    modules = dict(in_window_order(checkpoint.network()).named_modules())
    assert {module_of(name) for name in names} <= modules.keys()
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            assert isinstance(modules[module_of(node.name)], torch.nn.LayerNorm)
    for module in ("unet.encoder.layers.0.blocks.0.attn.queries", "unet.decoder.0.join", "unet.classify", "to_grid"):
        assert any(module_of(name) == module for name in names), module
    queries = next(node for node in graph.node if node.name == "unet.encoder.layers.0.blocks.0.attn.queries/MatMul")
    assert queries.input[1] == "unet.encoder.layers.0.blocks.0.attn.queries.weight.T"
    every = [*names, *(name for node in graph.node for name in (*node.input, *node.output))]
    assert not [name for name in every if "val_" in name or "node_" in name or "aten" in name]
    assert [entry.name for entry in graph.output] == ["labels"]


def test_the_model_is_left_as_it_was(two_channels: Translation) -> None:
    assert two_channels.before
    for name, value in two_channels.after.items():
        torch.testing.assert_close(value, two_channels.before[name])


def test_probabilities_are_the_labels(two_channels: Translation) -> None:
    session = onnxruntime.InferenceSession(two_channels.model.SerializeToString())
    chunk = next(two_patients(two_channels.contract))[0].inputs
    labels, shares = session.run(["labels", "probabilities"], dict(chunk))
    assert set(np.unique(labels)) == {1, 2, 3}
    assert shares.shape == (len(labels), 4, *labels.shape[1:])
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=1), labels)
    beyond = {**chunk, "rows_back": np.zeros_like(chunk["rows_back"])}
    _, nothing = session.run(["labels", "probabilities"], beyond)
    np.testing.assert_array_equal(nothing[:, 0], 1)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Type of the first output of every node."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {node.name: kinds[node.output[0]] for node in graph.node}


@pytest.mark.parametrize("fallbacks", [0, 1, 4])
def test_fp16_is_where_it_is_asked_for(
    translated: tuple[onnx.ModelProto, Contract], chunk: Inputs, fallbacks: int
) -> None:
    kept = FALLBACKS[:fallbacks]
    lowered = lower(translated[0], "fp16", lambda node: in_any(kept, node))
    onnx.checker.check_model(lowered, full_check=True)
    kinds = types_of(lowered)
    for node in translated[0].graph.node:
        if node.op_type in ("MatMul", "Conv", "LayerNormalization", "Softmax", "Gelu"):
            wanted = TensorProto.FLOAT if in_any(kept, node) else TensorProto.FLOAT16
            assert kinds[node.name] == wanted, node.name
    assert [v.type.tensor_type.elem_type for v in lowered.graph.input] == [
        v.type.tensor_type.elem_type for v in translated[0].graph.input
    ]
    same = run_of(lowered)(chunk) == run_of(translated[0])(chunk)
    assert same.mean() > 0.999
    assert lowered.ByteSize() < 0.7 * translated[0].ByteSize()


def test_an_output_keeps_its_type(two_channels: Translation) -> None:
    lowered = lower(two_channels.model, "fp16", lambda _: False)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.graph.output[1].type.tensor_type.elem_type == TensorProto.FLOAT


def test_bf16_needs_a_newer_opset_and_is_well_formed(translated: tuple[onnx.ModelProto, Contract]) -> None:
    newer = onnx.version_converter.convert_version(translated[0], 22)
    lowered = lower(newer, "bf16", FALLBACKS[0].holds)
    onnx.checker.check_model(lowered, full_check=True)
    assert TensorProto.BFLOAT16 in types_of(lowered).values()


def test_a_weight_that_fp16_cannot_hold_is_named(translated: tuple[onnx.ModelProto, Contract]) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(translated[0])
    weight = next(each for each in large.graph.initializer if each.name == "unet.classify.weight")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1e9)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ModelError, match=r"unet\.classify\.weight: found .* more than float16"):
        lower(large, "fp16", lambda _: False)
    lower(large, "fp16", FALLBACKS[1].holds)


def test_the_count_agrees_with_torch(checkpoint: Checkpoint, chunk: Inputs, work: dict[str, int]) -> None:
    net = checkpoint.network()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(**{name: torch.from_numpy(values) for name, values in chunk.items()})
    assert sum(work.values()) == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_census_by_precision(
    translated: tuple[onnx.ModelProto, Contract],
    chunk: Inputs,
    work: dict[str, int],
    parity: Parity,
) -> None:
    model = translated[0]
    assert of_graph(model, work).macs == {"fp32": sum(work.values())}
    assert of_graph(halve_weights(model), work).share("fp32") == 1
    all_half = lower(model, "fp16", lambda _: False)
    assert of_graph(all_half, work).share("fp16") == 1
    assert of_run(all_half.SerializeToString(), chunk).share("fp32") == 1  # what onnxruntime makes of it on a CPU
    encoder = lower(model, "fp16", lambda node: module_of(node.name).startswith("unet.encoder"))
    inside = sum(macs for name, macs in work.items() if name.startswith("unet.encoder"))
    assert of_graph(encoder, work).macs["fp32"] == inside
    eight = quantise(model, parity.calibration(), symmetric=False)
    asked, ran = of_graph(eight, work), of_run(eight.SerializeToString(), chunk)
    stem = ("unet.stem_full.", "unet.stem_half.", "unet.encoder.patch_embed.")
    kept = ("to_grid/", "from_grid/", *stem, "unet.classify/", "unet.expand_half/", "unet.expand_full/")
    assert asked.macs["fp32"] == sum(macs for name, macs in work.items() if name.startswith(kept))
    assert ran.macs["int8"] == asked.macs["int8"]
    assert of_graph(quantise(model, parity.calibration(), symmetric=True), work) == asked


def test_ranges_for_int8_are_measured_where_the_structures_are(
    translated: tuple[onnx.ModelProto, Contract], parity: Parity
) -> None:
    run, calibration = run_of(translated[0]), parity.calibration()
    assert len(calibration) == len(parity.comparisons)
    for inputs, each in zip(calibration, parity.comparisons, strict=True):
        assert np.count_nonzero(run(inputs)) > 0.3 * np.count_nonzero(each.expected)


def test_a_census_of_another_graph_is_refused(
    translated: tuple[onnx.ModelProto, Contract], work: dict[str, int]
) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(translated[0])
    next(node for node in other.graph.node if node.op_type == "Conv").name = "renamed"
    with pytest.raises(ModelError, match="not in this one"):
        of_graph(other, work)
