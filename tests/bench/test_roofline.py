"""Work against peaks, by hand."""

import pytest

from parotid_seg.bench.roofline import Peaks, roofline
from parotid_seg.runtime.engines.onnxruntime.profile import Count

COUNT = Count(multiply_adds=5_000_000_000, weight_bytes=12_000_000, boundary_bytes=4_000_000, unfused_bytes=400_000_000)


def test_the_roofline_is_the_slower_of_products_and_memory() -> None:
    peaks = Peaks({"fp16": 10_000.0, "fp32": 1000.0}, {}, 100.0)
    found = roofline(COUNT, 2e-3, "fp16", peaks)
    assert found.gflops == pytest.approx(5000)  # 10 billion operations in 2 ms
    assert found.share_of_products == pytest.approx(0.5)
    assert found.least_bytes == 10_000_000  # weights in half the bytes, and what goes in and out
    assert found.share_of_memory == pytest.approx(0.05)
    assert found.unfused_share_of_memory == pytest.approx(1.0)
    assert found.share == pytest.approx(0.5)
    slow = roofline(COUNT, 2e-3, "fp16", Peaks(peaks.gflops, {}, 8.0))
    assert slow.share == pytest.approx(0.625)
    assert roofline(COUNT, 20e-3, "fp32", peaks).share == pytest.approx(0.5)


def test_without_a_peak_there_is_none() -> None:
    assert roofline(COUNT, 1.0, "int8", Peaks({"fp32": 1000.0}, {}, 100.0)) is None
    found = roofline(COUNT, 20e-3, "fp32", Peaks({"fp32": 1000.0}, {}, None))
    assert (found.share_of_memory, found.unfused_share_of_memory) == (None, None)
    assert found.share == pytest.approx(0.5)
