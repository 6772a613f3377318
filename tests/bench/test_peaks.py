"""The machine's peaks: what the packaged products are, and that figures are plausible."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from parotid_seg.bench import roofline as peaks
from parotid_seg.errors import InputError

OPERATORS = {
    "fp32": ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
    "fp16": ("MatMul", TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT16),
    "int8": ("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
}


def product(precision: str) -> bytes:
    """The file: one operator, free sizes."""
    operator, *kinds = OPERATORS[precision]
    one, other, result = (
        helper.make_tensor_value_info(name, kind, sizes)
        for name, kind, sizes in zip(
            ("one", "other", "product"), kinds, (["m", "k"], ["k", "n"], ["m", "n"]), strict=True
        )
    )
    graph = helper.make_graph(
        [helper.make_node(operator, ["one", "other"], ["product"])], "product", [one, other], [result]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("precision", OPERATORS)
def test_the_packaged_products_are_made_here(precision: str) -> None:
    packaged = Path(peaks.__file__).with_name("products") / f"{precision}.onnx"
    assert onnx.load(packaged) == onnx.load_from_string(product(precision))


def test_products_are_right() -> None:
    """A peak of something else would flatter nobody, but lie."""
    for precision in ("fp32", "int8"):
        factors = peaks._factors(precision, 64)
        (found,) = peaks._session(precision, "CPUExecutionProvider").run(None, factors)
        expected = factors["one"].astype(np.float64) @ factors["other"].astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_without_a_cuda_provider_there_is_one_error_and_no_warning(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(InputError, match="has no CUDAExecutionProvider"):
        peaks.measured_peaks("cuda")
    assert (len(recwarn), capfd.readouterr().err) == (0, "")


def test_peaks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.SIDE, "cpu", 256)
    monkeypatch.setattr(peaks, "COPIED_BYTES", 1 << 24)
    found = peaks.measured_peaks()
    assert {"fp32", "int8"} <= found.gflops.keys() == found.by.keys()
    assert all(1 < each < 100_000 for each in found.gflops.values())
    assert found.memory_gb_s is not None
    assert 0.5 < found.memory_gb_s < 5000
