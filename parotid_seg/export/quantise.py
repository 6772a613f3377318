"""INT8 by onnxruntime's static quantiser: the scales of all values are calibrated on real scans."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from parotid_seg.files import scratch_folder
from parotid_seg.runtime.engines.rewriting.precision import is_within
from parotid_seg.scan.chunks import Inputs

OPERATORS = ("MatMul", "Conv")
KEPT = ("to_grid", "from_grid", "unet.classify", "")
"""Modules that stay in FP32: resampling, which determines intensities and outlines, and the last layer."""
MOST_CHUNKS = 16
"""Chunks for calibration; the quantiser keeps the values of all of them in memory."""


class _Chunks(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Iterable[Inputs]) -> None:
        self._inputs: Iterator[Inputs] = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        chunk = next(self._inputs, None)
        return None if chunk is None else dict(chunk)


def quantise(model: ModelProto, calibration: list[Inputs], *, symmetric: bool) -> ModelProto:
    """A graph whose linear layers, convolutions and attention compute in INT8, written as QuantizeLinear pairs (QDQ).

    Weights have 7 bits. With 8, sums of two products overflow 16 bits on CPUs with AVX2 or AVX-512 without VNNI, and
    onnxruntime does not report that: the same file would give other masks on these CPUs.

    Args:
        model: in FP32.
        calibration: chunks of real scans; evenly spread ones are used.
        symmetric: activations in int8 around zero and biases in FP32, as TensorRT requires; else in uint8 with a zero
            point, which is finer, and faster on CPUs.
    """
    step = max(1, -(-len(calibration) // MOST_CHUNKS))
    excluded = [node.name for node in model.graph.node if is_within(node, KEPT)]
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a preprocessing that this graph does not need
    try:
        with scratch_folder() as folder:
            source, result = folder / "fp32.onnx", folder / "int8.onnx"
            onnx.save(model, source)
            quantize_static(
                source,
                result,
                _Chunks(calibration[::step]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
            )
            return onnx.load(result)
    finally:
        logging.root.setLevel(level)
