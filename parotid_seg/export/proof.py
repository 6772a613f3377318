"""The verification of a candidate against the trained model: masks compared and drawn, multiply-adds counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from parotid_seg.export.candidates import NOT_QUANTISED, ExportCandidate, scores_of
from parotid_seg.export.ops_by_dtype import OpsByDtype, of_graph, of_run
from parotid_seg.export.parity import Parity, Run, ScanParity
from parotid_seg.files import atomic_write, scratch_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.rewriting.precision import RESAMPLING, in_modules
from parotid_seg.runtime.tolerance import GATES
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Mask, Volume

LEAST_SHARE = 0.9
"""Least share of the network's multiply-adds in the requested type, without resampling and without what is never
quantised to INT8."""
COMPUTED_ON_THE_CPU = ("fp32", "int8")
"""Types that onnxruntime's CPU provider computes in; it computes FP16 products in FP32."""

ADVICE = {
    "int8": "; try --precision fp16, or more and other scans for --verify: its scales are measured on them",
    "fp16": "; try --precision fp32",
}
"""Advice if a precision fails."""
MOST_SLICES = 6
MARGIN_MM = 15.0
"""Margin around the structures, to which the picture is cropped."""


@dataclass(frozen=True)
class Proof:
    """The results of a candidate's verification.

    Attributes:
        precision: requested type of the network.
        kept: parts that stay in FP32.
        steps: the tried variants.
        rows: comparisons of masks.
        network: multiply-adds of the layers that the requested type is meant for.
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
    in_graph, in_run = of_graph(candidate.model, work), of_run(content, parity.usual_chunk())
    exempt = NOT_QUANTISED if candidate.precision == "int8" else RESAMPLING
    network = sum(macs for name, macs in work.items() if not in_modules(name, exempt))
    return Proof(candidate.precision, candidate.kept, candidate.steps, tuple(rows), network, in_graph, in_run, for_cpu)


def draw_failure(proof: Proof, content: bytes, parity: Parity, path: Path) -> None:
    """Write a picture of the differences in the worst comparison."""
    with _loaded(content) as run:
        comparison, labels = parity.labels_of(run, proof.worst)
    title = f"{proof.precision}: {proof.worst}"
    _draw_difference(comparison.volume, comparison.windows, comparison.expected, labels, title, path)


@contextmanager
def _loaded(content: bytes) -> Iterator[Run]:
    """A model file loaded as by its users."""
    with scratch_folder() as folder:
        path = folder / "candidate.onnx"
        path.write_bytes(content)
        yield partial(labels_of, load_backend(path, "onnxruntime", "cpu", allow_unverified=True))


def _draw_difference(volume: Volume, windows: Windows, expected: Mask, found: Mask, title: str, path: Path) -> None:
    """Write a PNG: trained model's outline white, export's orange, changed voxels red. Raises OutputError."""
    changed = np.count_nonzero(expected != found, axis=(1, 2))
    order = np.argsort(changed)[::-1][:MOST_SLICES]
    shown = np.sort(order[changed[order] > 0])
    low, high = map(float, windows[0])
    rows, columns = (
        _span((expected[shown] > 0) | (found[shown] > 0), axis, volume.spacing_mm[axis]) for axis in (1, 2)
    )
    figure = Figure((12, 6.0), layout="constrained")
    panels = figure.subplots(2, MOST_SLICES // 2)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, index in zip(panels.flat, shown, strict=False):
        aspect = volume.spacing_mm[1] / volume.spacing_mm[2]
        axes.imshow(volume.voxels[0, index], cmap="gray", vmin=low, vmax=high, aspect=aspect)
        differs = np.ma.masked_equal(expected[index] != found[index], False)
        axes.imshow(differs, cmap=ListedColormap(["red"]), aspect=aspect, alpha=0.8, interpolation="nearest")
        for mask, colour in ((expected[index] > 0, "white"), (found[index] > 0, "orange")):
            if mask.any():
                axes.contour(mask, [0.5], colors=colour, linewidths=0.9)
        axes.set(xlim=columns, ylim=rows[::-1])
        axes.set_title(f"slice {index}: {changed[index]} voxels changed", fontsize=10)
    figure.suptitle(f"{title}\ntrained model white, export orange, changed red", fontsize=11)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=90, format="png")


def _span(shown: NDArray[np.bool_], axis: int, spacing_mm: float) -> tuple[float, float]:
    """First and last position of the shown structures along an axis, with a margin and within the scan."""
    where = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
    margin, last = MARGIN_MM / spacing_mm, shown.shape[axis] - 1
    first, stop = (where[0], where[-1]) if where.size else (0, last)
    return max(-0.5, first - margin), min(last + 0.5, stop + margin)
