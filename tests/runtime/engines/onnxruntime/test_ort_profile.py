"""What onnxruntime's profiler tells, against torch's count of the same network and against arithmetic by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from parotid_seg.errors import InputError, OutputError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_benchmark import usual_chunk
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cuda import PROVIDER
from parotid_seg.runtime.engines.onnxruntime.profile import count, count_nodes, time_nodes
from parotid_seg.scan.chunks import Inputs
from parotid_seg.train.config import NetworkConfig
from parotid_seg.train.network import ParotidNet

pytestmark = pytest.mark.slow


CONTENT, CONTRACT, _ = read_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def chunk() -> Inputs:
    return usual_chunk(CONTRACT, 2)


@pytest.fixture(scope="module")
def net() -> ParotidNet:
    """The packaged model's architecture without its weights."""
    return ParotidNet(NetworkConfig(), CONTRACT.grid, len(CONTRACT.channels), len(CONTRACT.labels)).eval()


@pytest.mark.parametrize("fused", [True, False])
def test_the_packaged_models_count_agrees_with_torch(chunk: Inputs, net: ParotidNet, fused: bool) -> None:
    """Attention once as torch's one operator, whose flops its counter has a formula for, and once as its products."""
    module: Any
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(**{name: torch.from_numpy(values) for name, values in chunk.items()})
    seen = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    if fused and not any("scaled_dot_product" in operator for operator in seen):
        pytest.skip("this torch does not count its attention")
    assert any("scaled_dot_product" in operator for operator in seen) == fused
    assert count(CONTENT, chunk).multiply_adds == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_the_count_is_the_same_in_every_form_of_the_graph(chunk: Inputs) -> None:
    counted = count(CONTENT, chunk).multiply_adds
    written, optimised = (count_nodes(CONTENT, chunk, optimised=each) for each in (False, True))
    assert sum(node.multiply_adds for node in written) == counted
    assert len(optimised) < len(written)
    padded = sum(node.multiply_adds for node in optimised)  # of 3 classes it makes 16 channels
    assert counted <= padded < 1.01 * counted


def test_bytes_of_the_packaged_model(chunk: Inputs, net: ParotidNet) -> None:
    counted = count(CONTENT, chunk)
    values = sum(parameter.numel() for parameter in net.parameters())
    assert 4 * values < counted.weight_bytes < 1.1 * 4 * values  # the rest are biases by place, and masks
    slices_back, rows_back, columns_back = (len(chunk[f"{axis}_back"]) for axis in ("slices", "rows", "columns"))
    inputs = sum(array.nbytes for array in chunk.values())
    assert counted.boundary_bytes == inputs + slices_back * rows_back * columns_back
    larger = count(CONTENT, usual_chunk(CONTRACT, 4))
    assert larger.multiply_adds == pytest.approx(2 * counted.multiply_adds, rel=0.1)
    assert larger.weight_bytes == counted.weight_bytes
    activations, of_larger = (each.unfused_bytes - each.weight_bytes for each in (counted, larger))
    assert of_larger == pytest.approx(2 * activations, rel=0.1)
    assert activations > 10 * counted.boundary_bytes


def by_hand(weight: tuple[int, int] = (5, 4)) -> bytes:
    """slices (2, 5) x weight -> a sum with itself -> seen in another shape -> labels."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT, name="unet/Cast"),
            helper.make_node("MatMul", ["slices", "weight"], ["product"], name="unet/MatMul"),
            helper.make_node("Add", ["product", "product"], ["sum"], name="unet/Add"),
            helper.make_node("Reshape", ["sum", "flat"], ["labels"], name="unet/Reshape"),
        ],
        "by hand",
        [helper.make_tensor_value_info("slices", TensorProto.FLOAT, ("rows", 5))],
        [helper.make_tensor_value_info("labels", TensorProto.FLOAT, (None,))],
        [
            numpy_helper.from_array(np.ones(weight, np.float16), "stored"),
            numpy_helper.from_array(np.array([-1]), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


def test_a_graph_counted_by_hand() -> None:
    inputs = {"slices": np.ones((2, 5), np.float32)}
    counted = count(by_hand(), inputs)
    assert counted.multiply_adds == 2 * 5 * 4
    assert counted.weight_bytes == 4 * 5 * 4 + 8  # cast once and for all; and the shape
    assert counted.boundary_bytes == 4 * (2 * 5 + 2 * 4)
    assert counted.unfused_bytes == 4 * (2 * 5 + 5 * 4 + 2 * 4) + 4 * 3 * 2 * 4  # product, sum; a view is free
    nodes = {node.name: node for node in count_nodes(by_hand(), inputs, optimised=False)}
    assert [*nodes] == ["unet/Cast", "unet/MatMul", "unet/Add", "unet/Reshape"]
    assert {name: node.multiply_adds for name, node in nodes.items() if node.multiply_adds} == {"unet/MatMul": 40}
    assert (nodes["unet/Cast"].type, nodes["unet/MatMul"].type) == ("fp16", "fp32")
    assert nodes["unet/MatMul"].operator == "MatMul"


def test_nodes_are_timed(chunk: Inputs) -> None:
    timing = time_nodes(CONTENT, chunk, repeats=2, threads=1)
    assert {node.name for node in timing.nodes} == {node.name for node in count_nodes(CONTENT, chunk, optimised=True)}
    assert min(node.seconds for node in timing.nodes) >= 0
    assert 0.2 * timing.wall_seconds < sum(node.seconds for node in timing.nodes) < timing.wall_seconds
    products = sum(node.seconds for node in timing.nodes if "MatMul" in node.operator)
    assert products > 10 * sum(node.seconds for node in timing.nodes if node.operator == "Squeeze")


def test_seconds_are_the_mean_of_the_runs_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a profile that says what each run took: 1000, 100, then 10 and 20 microseconds a node."""
    inputs = {"slices": np.ones((2, 5), np.float32)}
    real, durations = onnxruntime.InferenceSession.end_profiling, iter((1000, 100, 10, 20))

    def end_profiling(session: Any) -> Path:
        path = Path(real(session))
        events, now = json.loads(path.read_text()), next(durations)
        for event in events:
            event["dur"] = now
            now = next(durations, 0) if event["name"] == "model_run" else now
        path.write_text(json.dumps(events))
        return path

    monkeypatch.setattr(onnxruntime.InferenceSession, "end_profiling", end_profiling)
    timing = time_nodes(by_hand(), inputs, repeats=2)
    assert [node.seconds for node in timing.nodes] == pytest.approx([15e-6] * len(timing.nodes))


def test_a_graph_that_does_not_run_is_told_in_one_line() -> None:
    with pytest.raises(OutputError, match="no way to run the graph") as caught:
        count(by_hand(weight=(6, 4)), {"slices": np.ones((2, 5), np.float32)})
    assert "\n" not in str(caught.value)


def test_it_does_not_fall_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime-gpu does where CUDA does not load: a session without it, and no exception."""
    real = onnxruntime.InferenceSession

    def fallen_back(content: Any, options: Any, **_: object) -> Any:
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen_back)
    with pytest.raises(InputError, match="runs on CPUExecutionProvider, expected CUDAExecutionProvider"):
        time_nodes(by_hand(), {"slices": np.ones((2, 5), np.float32)}, repeats=1, providers=[(PROVIDER, {})])
