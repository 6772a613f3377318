"""One trained model in several precisions: the least FP32 that passes the tolerance, and the choice of the fastest.

INT8 is by onnxruntime's static quantiser: the scales of all values are calibrated on real scans.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from parotid_seg.errors import ModelError
from parotid_seg.export.parity import Parity, Run
from parotid_seg.files import scratch_folder
from parotid_seg.runtime.engines.onnxruntime.cpu import session_options
from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, RESAMPLING, in_any, in_modules, lower, module_of
from parotid_seg.runtime.tolerance import GATES
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask
from parotid_seg.wording import Say

TIMED_TURNS = 9
LEAST_GAIN = 0.05
"""Least gain in speed for which another precision than FP32 is chosen; less is noise on a shared machine."""
QUANTISED = ("MatMul", "Conv")
STEM = ("unet.stem_full", "unet.stem_half", "unet.encoder.patch_embed")
NOT_QUANTISED = (*RESAMPLING, *STEM, "unet.classify")
"""Modules that stay in FP32: resampling, which determines intensities and outlines, and the first and last layers. With
the stem in INT8, which has 7 % of the multiply-adds, half more voxels of the packaged model's masks change."""
MOST_CHUNKS = 32
"""Chunks for calibration; the quantiser keeps the values of all of them in memory."""


@dataclass(frozen=True)
class ExportCandidate:
    """A graph that may be exported.

    Attributes:
        precision: one of `contract.PRECISIONS`.
        model: the graph.
        kept: the parts that stay in FP32: FP32 fallbacks, operators or modules.
        steps: the tried variants, a line each.
    """

    precision: str
    model: ModelProto
    kept: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


def make(precision: str, model: ModelProto, parity: Parity, report: Say, *, symmetric: bool = False) -> ExportCandidate:
    """The FP32 graph in a precision.

    Args:
        model: in FP32.
        symmetric: see `quantise`.

    Raises:
        ModelError: if FP16 fails the tolerance even with all FP32 fallbacks.
    """
    if precision == "fp16":
        return _lowest(model, parity, report)
    if precision == "int8":
        report("measuring ranges for INT8 and comparing")
        fp32_parts = ("resampling", "first convolutions", "last layer", "everything but products and convolutions")
        return ExportCandidate(precision, quantise(model, parity.calibration(), symmetric=symmetric), fp32_parts)
    return ExportCandidate(precision, model)


def run_of(model: ModelProto) -> Run:
    """A graph on onnxruntime's CPU provider."""
    session = _session(model)

    def run(inputs: Inputs) -> Mask:
        labels: Mask = session.run(["labels"], dict(inputs))[0]
        return labels

    return run


def scores_of(model: ModelProto) -> Callable[[Inputs], NDArray[np.float32]]:
    """The scores from which a graph chooses its labels, as a function of a chunk."""
    watched = ModelProto()
    watched.CopyFrom(model)
    choice = next(node for node in watched.graph.node if node.op_type == "ArgMax")
    watched.graph.output.add().name = choice.input[0]
    session = _session(watched)

    def scores(inputs: Inputs) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run([choice.input[0]], dict(inputs))[0]
        return result

    return scores


def fastest(candidates: Sequence[ExportCandidate], inputs: Inputs) -> tuple[ExportCandidate, dict[str, float]]:
    """The candidate that takes least time for a chunk on this machine's CPU, and the speed of each over the first's.

    Candidates are timed in turns, and only times of the same turn are compared, because a shared machine's speed
    drifts.

    Args:
        candidates: FP32 first; another is taken only if it is faster by more than `LEAST_GAIN`.
    """
    runs = [run_of(candidate.model) for candidate in candidates]
    turns = []
    for _ in range(TIMED_TURNS + 1):
        seconds = []
        for run in runs:
            started = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - started)
        turns.append([seconds[0] / candidate_seconds for candidate_seconds in seconds])
    speeds = np.median(turns[1:], axis=0)  # the first is to warm up
    best = int(np.argmax(speeds))
    chosen = candidates[best if speeds[best] > 1 + LEAST_GAIN else 0]
    pairs = zip(candidates, speeds, strict=True)
    return chosen, {candidate.precision: round(float(speed), 2) for candidate, speed in pairs}


def _lowest(model: ModelProto, parity: Parity, report: Say) -> ExportCandidate:
    """FP16 with as little FP32 as passes: first one FP32 fallback after the other, then single modules."""
    steps: list[str] = []

    def passes(keep: Callable[[NodeProto], bool], words: str) -> ModelProto | None:
        try:
            lowered = lower(model, "fp16", keep)
        except ModelError as error:
            steps.append(f"fp16, {words}: {error}")
            report(steps[-1])
            return None
        row = parity.quick(run_of(lowered), GATES["fp16"])
        steps.append(f"fp16, {words}: {row}")
        report(steps[-1])
        return lowered if row.passed else None

    for count in range(len(FALLBACKS) + 1):
        fp32_parts = tuple(fallback.name for fallback in FALLBACKS[:count])
        words = f"{' and '.join(fp32_parts) or 'nothing'} in FP32"
        lowered = passes(partial(in_any, FALLBACKS[:count]), words)
        if lowered is not None:
            return ExportCandidate("fp16", lowered, fp32_parts, tuple(steps))
    modules = list(dict.fromkeys(module_of(node.name) for node in model.graph.node if node.op_type != "Cast"))

    def needed(among: list[str]) -> list[str]:
        """Modules that cannot be FP16 even if all others of the network are FP32."""
        others = set(modules) - set(among)
        if passes(
            lambda node: module_of(node.name) in others or in_any(FALLBACKS, node), f"{len(others)} modules in FP32"
        ):
            return []
        half = len(among) // 2
        return among if len(among) == 1 else needed(among[:half]) + needed(among[half:])

    culprits = needed(modules)
    lowered = passes(
        lambda node: in_modules(node.name, culprits) or in_any(FALLBACKS, node),
        f"{', '.join(culprits)} and all fallbacks in FP32",
    )
    if lowered is None:
        raise ModelError(f"FP16 fails the comparison even with {', '.join(culprits)} in FP32; the last: {steps[-1]}")
    return ExportCandidate("fp16", lowered, (*(fallback.name for fallback in FALLBACKS), *culprits), tuple(steps))


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"])


class _Chunks(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Iterable[Inputs]) -> None:
        self._inputs: Iterator[Inputs] = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        chunk = next(self._inputs, None)
        return None if chunk is None else dict(chunk)


def quantise(model: ModelProto, calibration: list[Inputs], *, symmetric: bool) -> ModelProto:
    """A graph whose linear layers, convolutions and attention compute in INT8, written as QuantizeLinear pairs (QDQ),
    without `NOT_QUANTISED`.

    Weights have 7 bits. With 8, sums of two products overflow 16 bits on CPUs with AVX2 or AVX-512 without VNNI, and
    onnxruntime does not report that: the same file would give other masks on these CPUs.

    Args:
        model: in FP32.
        calibration: chunks of real scans that show the structures, on which the ranges of values are measured. With
            chunks of whole scans, masks of the packaged model become 1 % smaller. Evenly spread ones are used.
        symmetric: activations in int8 around zero and biases in FP32, as TensorRT requires; else in uint8 with a zero
            point, which is finer, and faster on CPUs.
    """
    step = max(1, -(-len(calibration) // MOST_CHUNKS))
    excluded = [node.name for node in model.graph.node if in_modules(node.name, NOT_QUANTISED)]
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
                op_types_to_quantize=list(QUANTISED),
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
