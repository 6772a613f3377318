"""Work against peaks, by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from parotid_seg.bench.roofline import WIDTHS, Peaks, roofline
from parotid_seg.runtime.engines.onnxruntime.profile import Count, count

COUNT = Count(multiply_adds=5_000_000_000, weight_bytes=12_000_000, boundary_bytes=4_000_000, unfused_bytes=400_000_000)


def test_the_roofline_is_the_slower_of_products_and_memory() -> None:
    peaks = Peaks({"fp16": 10_000.0, "fp32": 1000.0}, {}, 100.0)
    found = roofline(COUNT, "fp32", 2e-3, "fp16", peaks)
    assert found.gflops == pytest.approx(5000)  # 10 billion operations in 2 ms
    assert found.share_of_products == pytest.approx(0.5)
    assert found.least_bytes == 10_000_000  # weights in half the bytes, and what goes in and out
    assert found.share_of_memory == pytest.approx(0.05)
    assert found.unfused_share_of_memory == pytest.approx(1.0)
    assert found.share == pytest.approx(0.5)
    slow = roofline(COUNT, "fp32", 2e-3, "fp16", Peaks(peaks.gflops, {}, 8.0))
    assert slow.share == pytest.approx(0.625)
    assert roofline(COUNT, "fp32", 20e-3, "fp32", peaks).share == pytest.approx(0.5)


def test_without_a_peak_there_is_none() -> None:
    assert roofline(COUNT, "fp32", 1.0, "int8", Peaks({"fp32": 1000.0}, {}, 100.0)) is None
    found = roofline(COUNT, "fp32", 20e-3, "fp32", Peaks({"fp32": 1000.0}, {}, None))
    assert (found.share_of_memory, found.unfused_share_of_memory) == (None, None)
    assert found.share == pytest.approx(0.5)


SIDE = 256


def product(precision: str) -> bytes:
    """A model file of one product, with its weights in a precision."""
    weights = np.random.default_rng(0).integers(-9, 9, (SIDE, SIDE))
    kinds = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    constants = [numpy_helper.from_array(weights.astype(kinds[precision]), "weights")]
    nodes = [helper.make_node("MatMul", ["slices", "weights"], ["labels"])]
    if precision == "int8":
        constants.append(numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
        nodes = [
            helper.make_node("DequantizeLinear", ["weights", "scale"], ["wide"]),
            helper.make_node("MatMul", ["slices", "wide"], ["labels"]),
        ]
    ends = [helper.make_tensor_value_info(name, kind, [1, SIDE]) for name in ("slices", "labels")]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bytes_are_those_of_the_file_or_fewer(precision: str) -> None:
    """Computing in a narrower type moves less; a file that is narrow already is not narrowed again."""
    slices = np.ones((1, SIDE), np.float16 if precision == "fp16" else np.float32)
    counted = count(product(precision), {"slices": slices})
    for computed_in in ("fp32", "fp16", "int8"):
        found = roofline(counted, precision, 1.0, computed_in, Peaks(dict.fromkeys(WIDTHS, 1.0), {}, 1e-9))
        width = min(WIDTHS[precision], WIDTHS[computed_in])
        assert found.least_bytes - counted.boundary_bytes == pytest.approx(width * SIDE**2, abs=8)
        if computed_in == precision:
            assert found.unfused_share_of_memory == pytest.approx(counted.unfused_bytes)
