"""How close an engine comes to the machine's peaks: the roofline of Williams, Waterman and Patterson (CACM 2009).

The peaks are operations per second by type, and bytes per second of memory. The products are those of two square
matrices, by whichever of the installed engines is faster. The files in `products` are that one operator each, as
`tests/bench/test_peaks.py` makes them.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from parotid_seg.errors import InputError
from parotid_seg.runtime.engines.onnxruntime.cpu import session_options
from parotid_seg.runtime.engines.onnxruntime.cuda import check_provider
from parotid_seg.runtime.engines.onnxruntime.profile import Count
from parotid_seg.runtime.engines.openvino import TYPES, computes_bf16, cpu_core
from parotid_seg.system import available_cores

SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows of the matrices."""
REPEATS = 7
COPIED_BYTES = 1 << 28
"""Far more than any cache holds."""
NUMBERS: dict[str, tuple[type[Any], type[Any]]] = {
    "fp32": (np.float32, np.float32),
    "fp16": (np.float16, np.float16),
    "int8": (np.uint8, np.int8),
}
"""Types of the factors in the files in `products`."""
WIDTHS = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a value."""


Work = tuple[str, str, Callable[[], object]]
"""Type, engine, and a function that computes the product once."""


@dataclass(frozen=True)
class Peaks:
    """The peaks that were reached.

    Attributes:
        gflops: billion operations per second by type; a multiply-add is two.
        by: the engine that reached it, by type.
        memory_gb_s: billion bytes per second read and written by a large copy in the memory of the device.
    """

    gflops: dict[str, float]
    by: dict[str, str]
    memory_gb_s: float | None


def measured_peaks(device: str = "cpu", index: int = 0) -> Peaks:
    """Measure; a few seconds.

    Args:
        device: "cpu" or "cuda"; the latter needs onnxruntime-gpu.
        index: number of the GPU.
    """
    gflops: dict[str, float] = {}
    by: dict[str, str] = {}
    side = SIDE[device]
    works = _on_cpu(side) if device == "cpu" else _on_cuda(side, index)
    for precision, engine, work in works:
        reached = 2 * side**3 / _least_s(work) / 1e9
        if reached > gflops.get(precision, 0.0):
            gflops[precision], by[precision] = reached, engine
    return Peaks(gflops, by, _copy_gb_s() if device == "cpu" else None)


@dataclass(frozen=True)
class Roofline:
    """A chunk's work against the machine's peaks.

    Attributes:
        multiply_adds: counted in the chunk's graph.
        gflops: billion operations per second while computing; a multiply-add is two.
        share_of_products: of the measured peak of the type.
        least_bytes: weights, inputs and labels, once each; weights in the narrower one of the graph's type and the type
            that is computed in.
        share_of_memory: of the measured copy, if only those are moved; None where it is not known.
        unfused_share_of_memory: if every node reads and writes memory. Above 1 the caches, or fusion, keep values.
        share: the least time there can be, products or memory, whichever takes longer, over the time taken.
    """

    multiply_adds: int
    gflops: float
    share_of_products: float
    least_bytes: int
    share_of_memory: float | None
    unfused_share_of_memory: float | None
    share: float


def roofline(count: Count, counted_in: str, seconds: float, precision: str, peaks: Peaks) -> Roofline | None:
    """Compare a chunk's work with the peaks; None if there is no peak of its type.

    Args:
        count: operations in the chunk.
        counted_in: precision of the graph in which they were counted.
        seconds: computing time.
        precision: type it was computed in.
        peaks: of the machine.
    """
    peak = peaks.gflops.get(precision)
    if peak is None:
        return None
    narrowed = min(1.0, WIDTHS[precision] / WIDTHS[counted_in])
    least_bytes = round(count.weight_bytes * narrowed) + count.boundary_bytes
    gflop = 2 * count.multiply_adds / 1e9
    products_s = gflop / peak
    memory_s, unfused_s = (
        moved / peaks.memory_gb_s / 1e9 if peaks.memory_gb_s else None
        for moved in (least_bytes, count.unfused_bytes * narrowed)
    )
    return Roofline(
        count.multiply_adds,
        gflop / seconds,
        products_s / seconds,
        least_bytes,
        None if memory_s is None else memory_s / seconds,
        None if unfused_s is None else unfused_s / seconds,
        max(products_s, memory_s or 0.0) / seconds,
    )


def _on_cpu(side: int) -> list[Work]:
    works: list[Work] = []
    for precision in ("fp32", "int8"):
        session, factors = _session(precision, "CPUExecutionProvider"), _factors(precision, side)
        works.append((precision, "onnxruntime", partial(session.run, None, factors)))
    try:
        core = cpu_core()
    except InputError:
        return works
    factors = _factors("fp32", side)
    graph = core.read_model(io.BytesIO(_file("fp32")))
    for precision in ("fp32", "bf16") if computes_bf16() else ("fp32",):
        how = {"INFERENCE_PRECISION_HINT": TYPES[precision], "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(graph, "CPU", how).create_infer_request()
        works.append((precision, "OpenVINO", partial(request.infer, factors, share_inputs=True)))
    return works


def _on_cuda(side: int, index: int) -> list[Work]:
    check_provider()
    works: list[Work] = []
    provider = ("CUDAExecutionProvider", {"device_id": str(index), "use_tf32": "0"})
    for precision in ("fp32", "fp16"):
        session = _session(precision, provider)
        binding = session.io_binding()
        for name, factor in _factors(precision, side).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(factor, "cuda", index))
        binding.bind_output("product", "cuda", index)
        works.append((precision, "onnxruntime CUDA", partial(session.run_with_iobinding, binding)))
    return works


def _session(precision: str, provider: str | tuple[str, dict[str, str]]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(_file(precision), session_options(), providers=[provider])


def _file(precision: str) -> bytes:
    return Path(__file__).parent.joinpath("products", f"{precision}.onnx").read_bytes()


def _factors(precision: str, side: int) -> dict[str, Any]:
    one, other = NUMBERS[precision]
    return {"one": _random(one, side), "other": _random(other, side)}


def _random(kind: type[Any], side: int) -> Any:
    random = np.random.default_rng(0)
    if np.issubdtype(kind, np.integer):
        return random.integers(0, 127, (side, side)).astype(kind)
    return random.standard_normal((side, side), np.float32).astype(kind)


def _copy_gb_s() -> float:
    """Billion bytes per second of a copy in which every core copies its part."""
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    bounds = np.linspace(0, COPIED_BYTES, available_cores() + 1).astype(int)
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    with ThreadPoolExecutor(len(parts)) as threads:
        seconds = _least_s(lambda: list(threads.map(lambda part: np.copyto(target[part], source[part]), parts)))
    return 2 * COPIED_BYTES / seconds / 1e9


def _least_s(work: Callable[[], object]) -> float:
    """The shortest of some times in seconds, because every disturbance makes them longer."""
    work()
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
