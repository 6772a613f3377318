"""How close an engine comes to the machine's peaks: the roofline of Williams, Waterman and Patterson (CACM 2009)."""

from __future__ import annotations

from dataclasses import dataclass

from parotid_seg.bench.peaks import Peaks
from parotid_seg.runtime.engines.onnxruntime.profile import Count

WIDTHS = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a value."""


@dataclass(frozen=True)
class Roofline:
    """A chunk's work against the machine's peaks.

    Attributes:
        multiply_adds: counted in the chunk's graph.
        gflops: billion operations a second while computing; a multiply-add is two.
        share_of_products: of the measured peak of the type.
        least_bytes: weights, inputs and labels, once each.
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


def roofline(count: Count, seconds: float, precision: str, peaks: Peaks) -> Roofline | None:
    """Compare a chunk's work with the peaks; None if there is no peak of its type.

    Args:
        count: operations in the chunk, counted in the FP32 graph.
        seconds: computing time.
        precision: type it was computed in.
        peaks: of the machine.
    """
    peak = peaks.gflops.get(precision)
    if peak is None:
        return None
    narrowed = WIDTHS[precision] / WIDTHS["fp32"]
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
