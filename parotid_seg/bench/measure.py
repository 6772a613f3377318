"""`parotid-seg bench`: engines on the same chunks, then on the same scans, and whether their masks are the model's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.bench.bench_options import BenchOptions
from parotid_seg.bench.child import Child
from parotid_seg.bench.end_to_end import EndToEnd, end_to_end
from parotid_seg.bench.engine_process import EngineProcess
from parotid_seg.bench.mask_parity import EngineParity, Masks, compare, reference_masks
from parotid_seg.bench.result import Result, Row, Speed
from parotid_seg.bench.roofline import Peaks, measured_peaks, roofline
from parotid_seg.bench.selection import MOST_SCANS, in_memory
from parotid_seg.bench.stats import Latency
from parotid_seg.bench.system_state import about_machine, remarks, system_state
from parotid_seg.bench.turns import LAUNCHES, Job, MeasuredEngine, Turns
from parotid_seg.contract import Contract
from parotid_seg.errors import ParotidSegError
from parotid_seg.files import hash_file
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.profile import Count, count
from parotid_seg.runtime.pipeline.sources import Scan, place_of
from parotid_seg.system import available_cores
from parotid_seg.wording import Progress, Say

if TYPE_CHECKING:
    from parotid_seg.bench.layers import Layers

USUAL_SIZES = (1, 4, 16, 64)
"""Batch sizes, as far as an engine takes them."""
PARITY_SCANS = 3


class Bench:
    """A measurement of engines.

    Args:
        model: the requested file; an .onnx file is the reference for the masks of all engines.
        contract: its contract.
        candidates: the engines.
        scans: what to measure with.
        options: batch sizes, time, and whether layers are measured.
        gpu: number of the GPU that takes part, if one does.
        say: called with each step and each skipped engine or batch size.
        progress: called with phase, steps done and steps in all.

    Raises:
        InputError: if no scan has so many slices.
        ScanError: if a scan cannot be read.
    """

    def __init__(
        self,
        model: Path,
        contract: Contract,
        candidates: Sequence[Candidate],
        scans: Sequence[Scan],
        options: BenchOptions,
        *,
        gpu: int | None = None,
        say: Say = lambda _: None,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._model, self._contract, self._scans, self._options = model, contract, scans, options
        self._gpu, self._say, self._progress = gpu, say, progress
        self._left_out: list[tuple[str, str]] = []
        self._turns = Turns(
            candidates,
            contract,
            in_memory(scans[:MOST_SCANS], contract),
            options.batch_sizes or USUAL_SIZES,
            self._leave_out,
            gpu=gpu,
            strict=options.batch_sizes is not None,
        )

    def run(self) -> Result:
        """Measure everything.

        Raises:
            InputError: if a batch size was asked for that an engine does not take.
            ParotidSegError: if no engine can be measured at all.
        """
        begun, before = datetime.now(UTC), system_state(self._gpu)
        self._say(f"{', '.join(self._turns.entries)} on batches of {', '.join(map(str, self._turns.chunks))}")
        peaks = self._peaks()
        counts = self._counts()
        references = self._references()
        parities: dict[str, dict[int, EngineParity]] = {}
        ends: dict[str, EndToEnd] = {}
        layers: dict[str, Layers] = {}
        for launch in range(LAUNCHES):
            with self._turns.launched() as running:
                self._say(f"launch {launch + 1} of {LAUNCHES}")
                if launch == 0 and references:
                    parities = self._parities(running, references)
                self._turns.take(running, 60 * self._options.minutes / LAUNCHES, self._progress)
                if launch == LAUNCHES - 1:
                    ends = end_to_end(self._turns, running, self._scans, self._progress)
                    layers = self._layers(running) if self._options.layers else {}
        after = system_state(self._gpu)
        if not self._turns.entries:
            raise ParotidSegError(f"nothing could be measured: {'; '.join(': '.join(each) for each in self._left_out)}")
        rows = [
            self._row(entry, peaks, counts, parities.get(name, {}), ends.get(name), layers.get(name))
            for name, entry in self._turns.entries.items()
        ]
        return Result(
            made=begun.isoformat(timespec="seconds"),
            machine={**about_machine(self._gpu), "before": vars(before), "after": vars(after)},
            model=self._about_model(),
            inputs=self._about_inputs(),
            peaks=peaks,
            rows=tuple(rows),
            left_out=tuple(self._left_out),
            remarks=tuple(remarks(before, after, available_cores())),
        )

    def _leave_out(self, what: str, why: str) -> None:
        self._left_out.append((what, why))
        self._say(f"left out: {what}: {why}")

    def _peaks(self) -> dict[str, Peaks]:
        """By device."""
        peaks = {"cpu": measured_peaks()}
        if self._gpu is not None:
            try:
                peaks["cuda"] = measured_peaks("cuda", self._gpu)
            except Exception as error:  # whatever onnxruntime raises where it has no CUDA
                self._leave_out("peaks of the GPU", " ".join(str(error).split()))
        return peaks

    def _counts(self) -> dict[int, Count]:
        """Operations in a chunk of each batch size; empty for an engine, whose graph is not available."""
        if self._model.suffix == ".engine":
            return {}
        content = self._model.read_bytes()
        return {size: count(content, real[0]) for size, (real, _) in self._turns.chunks.items()}

    def _references(self) -> Masks:
        """The masks that all engines should give."""
        if self._model.suffix == ".engine":
            self._leave_out("masks", f"{self._model.name} is an engine; bench its .onnx file to compare them")
            return {}
        return reference_masks(OnnxRuntimeBackend(self._model), self._scans[:PARITY_SCANS])

    def _parities(self, running: dict[str, EngineProcess], references: Masks) -> dict[str, dict[int, EngineParity]]:
        parities: dict[str, dict[int, EngineParity]] = {}
        labels = len(self._contract.labels)
        for number, (name, entry) in enumerate(list(self._turns.entries.items())):
            self._progress("masks", number, len(running))
            with self._turns.left_out_if_failing(name):
                parities[name] = {
                    size: compare(
                        references,
                        {scan: running[name].ask(Child.labels, scan, size) for scan in references},
                        entry.candidate.precision,
                        labels,
                    )
                    for size in entry.jobs
                }
        return parities

    def _layers(self, running: dict[str, EngineProcess]) -> dict[str, Layers]:
        layers = {}
        for name, entry in list(self._turns.entries.items()):
            try:
                chunk = self._turns.chunks[entry.best_size][0][0]
                layers[name] = running[name].ask(Child.layers, entry.candidate.file, chunk)
            except ParotidSegError as error:
                self._leave_out(f"layers of {name}", str(error))
        return layers

    def _row(
        self,
        entry: MeasuredEngine,
        peaks: dict[str, Peaks],
        counts: dict[int, Count],
        parities: dict[int, EngineParity],
        end: EndToEnd | None,
        layers: Layers | None,
    ) -> Row:
        ran = entry.started[-1].ran
        device_peaks = peaks.get(ran.device.partition(":")[0])

        def speed(size: int, job: Job) -> Speed:
            real, _ = self._turns.chunks[size]
            slices = len(real[0]["slices_back"])
            every = [run for launch in job.rounds for run in launch]
            ahead_ms = [each for run in every for each in run.ahead_ms]
            point = None
            if device_peaks and size in counts:
                seconds, counted_in = job.median_ms / 1000, self._contract.precision
                point = roofline(counts[size], counted_in, seconds, ran.precision, device_peaks)
            return Speed(
                batch_size=size,
                chunks=len(real),
                slices=slices,
                real=Latency.of(job.real_ms),
                noise=Latency.of([each for run in every for each in run.noise_ms]),
                ahead_ms=statistics.median(ahead_ms) if ahead_ms else None,
                median_ms=job.median_ms,
                slices_a_second=1000 * slices / job.median_ms,
                spread=job.spread,
                undisturbed=sum(map(len, job.undisturbed_ms)) / sum(map(len, job.medians_ms)),
                rounds_ms=tuple(map(tuple, job.medians_ms)),
                transfers_ms=tuple(tuple(launch) for launch in job.transfers_ms if launch),
                peak_mib=statistics.median(job.peak_mib),
                gpu_mib=job.gpu_mib,
                roofline=point,
                parity=parities.get(size),
            )

        return Row(
            entry.candidate.name,
            ran,
            tuple(entry.cold_s),
            tuple(entry.warm_s),
            tuple(speed(size, job) for size, job in entry.jobs.items()),
            end,
            layers,
        )

    def _about_model(self) -> dict[str, object]:
        return {
            "file": self._model.name,
            "sha256": hash_file(self._model),
            "precision": self._contract.precision,
            "cost_of_a_sample": self._contract.cost,
            "verified": bool(self._contract.verification),
        }

    def _about_inputs(self) -> dict[str, object]:
        shapes = {size: list(real[0]["slices"].shape) for size, (real, _) in self._turns.chunks.items()}
        return {
            "scans": len(self._scans),
            "chunks_of": [place_of(self._scans[number][0]).name for number in sorted(self._turns.scans)],
            "voxels_of_a_chunk": {str(size): shape for size, shape in shapes.items()},
        }
