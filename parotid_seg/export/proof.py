"""The verification of a candidate against the trained model: masks compared, multiply-adds counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.export.candidates import ExportCandidate, scores_of
from parotid_seg.export.ops_by_dtype import OpsByDtype, of_graph, of_run
from parotid_seg.export.parity import Parity, Run, ScanParity
from parotid_seg.export.picture import draw_difference
from parotid_seg.files import scratch_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.tolerance import GATES

LEAST_SHARE = 0.9
"""Least share of the network's multiply-adds in the requested type; resampling may stay in FP32."""
COMPUTED_ON_THE_CPU = ("fp32", "int8")
"""Types that onnxruntime's CPU provider computes in; it computes FP16 products in FP32."""

ADVICE = {
    "int8": "; try --precision fp16, or more and other scans for --verify: its scales are measured on them",
    "fp16": "; try --precision fp32",
}
"""Advice if a precision fails."""


@dataclass(frozen=True)
class Proof:
    """The results of a candidate's verification.

    Attributes:
        precision: requested type of the network.
        kept: parts that stay in FP32.
        steps: the tried variants.
        rows: comparisons of masks.
        network: multiply-adds of the network without resampling.
        asked: multiply-adds by type, as declared in the graph.
        ran: the same, as onnxruntime ran them on this machine's CPU.
        for_cpu: whether the model is meant for the CPU.
    """

    precision: str
    kept: tuple[str, ...]
    steps: tuple[str, ...]
    rows: tuple[ScanParity, ...]
    network: int
    asked: OpsByDtype
    ran: OpsByDtype
    for_cpu: bool = True

    @property
    def worst(self) -> ScanParity:
        """The worst comparison."""
        return worst_of(self.rows)

    @property
    def failure(self) -> str:
        """Why the candidate must not be used; empty if it may."""
        if not self.worst.passed:
            return f"the exported model differs from the trained one: {self.worst}{ADVICE.get(self.precision, '')}"
        expected = f"expected {self.precision} in at least {LEAST_SHARE:.0%} of the network"
        if self.asked.macs.get(self.precision, 0) < LEAST_SHARE * self.network:
            return f"its graph asks for {self.asked}, {expected}"
        on_cpu = self.for_cpu and self.precision in COMPUTED_ON_THE_CPU
        if on_cpu and self.ran.macs.get(self.precision, 0) < LEAST_SHARE * self.network:
            return f"onnxruntime computes {self.ran}, {expected}"
        return ""

    def lines(self) -> list[str]:
        """Lines for the terminal."""
        counted = f"multiply-adds {self.asked} in the graph, {self.ran} in onnxruntime on this CPU"
        rows = [f"agreement with the trained model: {row}" for row in self.rows]
        return [f"{self.precision}: {line}" for line in (*rows, counted)]

    def record(self) -> dict[str, Any]:
        """Record for the parity file."""
        census = {"asked": self.asked.macs, "onnxruntime_cpu": self.ran.macs}
        return {"failure": self.failure, "gate": asdict(GATES[self.precision]), **asdict(self), "census": census}

    def summary(self) -> dict[str, Any]:
        """Summary for the contract."""
        return {
            **summary_of(self.rows),
            "kept_in_fp32": list(self.kept),
            "multiply_adds": {kind: round(self.asked.share(kind), 4) for kind in self.asked.macs},
        }


def summary_of(rows: Sequence[ScanParity]) -> dict[str, Any]:
    """The comparisons in a few figures."""
    return {
        "scans": len({row.scan for row in rows}),
        "comparisons": len(rows),
        "lowest_dsc": min(row.dsc for row in rows),
        "largest_changed_share": max(row.changed_share for row in rows),
        "largest_hd95_mm": max(row.hd95_mm for row in rows),
    }


def worst_of(rows: Sequence[ScanParity]) -> ScanParity:
    """The worst of an export's comparisons."""
    return min(rows, key=lambda row: (row.passed, row.dsc))


def prove(
    candidate: ExportCandidate, content: bytes, parity: Parity, work: Mapping[str, int], *, for_cpu: bool = True
) -> Proof:
    """Load a candidate's file as a user would, compare its masks, and count.

    Args:
        content: the file, with its contract.
        work: see `ops_by_dtype.work_of`.
        for_cpu: see `Proof`.
    """
    with _loaded(content) as run:
        rows = parity.check(run, GATES[candidate.precision], scores_of(candidate.model))
    in_graph, in_run = of_graph(candidate.model, work), of_run(content, next(parity.inputs()))
    network = sum(macs for name, macs in work.items() if name.startswith("unet."))
    return Proof(candidate.precision, candidate.kept, candidate.steps, tuple(rows), network, in_graph, in_run, for_cpu)


def draw_failure(proof: Proof, content: bytes, parity: Parity, path: Path) -> None:
    """Write a picture of the differences in the worst comparison."""
    with _loaded(content) as run:
        comparison, labels = parity.labels_of(run, proof.worst)
    title = f"{proof.precision}: {proof.worst}"
    draw_difference(comparison.volume, comparison.windows, comparison.expected, labels, title, path)


@contextmanager
def _loaded(content: bytes) -> Iterator[Run]:
    """A model file loaded as by its users."""
    with scratch_folder() as folder:
        path = folder / "candidate.onnx"
        path.write_bytes(content)
        yield partial(labels_of, load_backend(path, "onnxruntime", "cpu", allow_unverified=True))
