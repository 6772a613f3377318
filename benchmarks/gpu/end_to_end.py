"""The parts of bench.py that run the product: a trace of the engine's part, and `parotid-seg infer` by workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from watch import memory_and_files

import parotid_seg
from gpu.record import Record
from parotid_seg.bench.system_state import gpu_memory_mib
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.scan.chunks import CroppedScan

EVERY_S = 0.5
"""Time between two measurements of memory, each of which costs some of the machine."""

PYTHON = (sys.executable, "-P")
"""Python that imports nothing from the working folder, in which another checkout may lie."""

Run = tuple[float, dict[str, float]]
"""Seconds and peaks of memory of a run of `infer`."""


def trace(backend: Backend, scan: CroppedScan, batch_size: int, path: Path) -> None:
    """A Chrome trace of one scan through the batches and the engine."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    def run() -> None:
        batches = Batcher[None](backend, batch_size)
        batches.add(None, scan)
        while batches.busy:
            with record_function("Batches.step"):
                batches.step()

    run()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as profiler:
        run()
    profiler.export_chrome_trace(str(path))


class PeakMemory:
    """Watches the memory of a process, its descendants and a GPU until it ends.

    Attributes:
        mib: largest sum of the processes' proportional memory, under "host_mib"; and largest growth of the GPU's
            memory in use, under "gpu_mib".
    """

    def __init__(self, process: int, gpu: int | None, before_mib: float | None) -> None:
        self.mib: dict[str, float] = {}
        self._process, self._gpu, self._before_mib = process, gpu, before_mib
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, float]:
        """Stop, and give the peaks."""
        self._ended.set()
        self._thread.join()
        return self.mib

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._note("host_mib", memory_and_files(self._process)[0] / 1024)
            used = None if self._gpu is None else gpu_memory_mib(self._gpu)
            if used is not None and self._before_mib is not None:
                self._note("gpu_mib", used - self._before_mib)

    def _note(self, name: str, mib: float) -> None:
        self.mib[name] = max(self.mib.get(name, 0.0), mib)


def end_to_end(
    scans: Sequence[Path],
    how: Mapping[str, str],
    workers_tried: Sequence[int],
    about: Mapping[str, Any],
    gpu: int | None,
    record: Record,
) -> None:
    """Measure by number of workers, and write each; numbers that the record has are not measured again.

    Args:
        scans: what to segment; copied to be as many as `about` says.
        how: options that have `infer` use the fastest of ours.
        workers_tried: numbers of workers.
        about: what is known beforehand: scans, batch_size, engine_scans_a_second.
        gpu: number of the GPU; None on a CPU.
        record: where it is written.
    """
    rows: list[dict[str, Any]] = record.content.get("end_to_end", {}).get("rows", [])
    missing = [workers for workers in workers_tried if workers not in {row["workers"] for row in rows}]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "scans"
        folder.mkdir()
        for number in range(about["scans"]):
            scan = scans[number % len(scans)]
            shutil.copy(scan, folder / f"{number:04d}-{scan.name}")
        given = [word for pair in how.items() for word in pair]
        command = [*PYTHON, "-m", "parotid_seg", "infer", *given, "--quiet"]
        command += ["--batch-size", str(about["batch_size"]), "--allow-unverified"]

        def run(source: Path, name: str, workers: int) -> Run:
            words = [*command, "--workers", str(workers), "--out", str(Path(scratch) / name), str(source)]
            return measured(words, gpu, most_s=max(1.0, record.left_s))

        if gpu is not None:  # engine, batch size and kernels are measured and compiled once, and kept
            record.attempt("first run of infer", partial(run, min(folder.iterdir()), "first", missing[0]))
        for workers in missing:
            work = partial(one_row, run, folder, workers, about["scans"], about["engine_scans_a_second"])
            row = record.attempt(f"end to end with {workers} workers", work)
            if row is not None:
                rows.append(row)
                record.add("end_to_end", {**about, "rows": rows})


def measured(command: Sequence[str], gpu: int | None, most_s: float) -> Run:
    """Run a command to its end.

    Raises:
        RuntimeError: if it fails.
        subprocess.TimeoutExpired: after so many seconds; it is ended.
    """
    before_mib = None if gpu is None else gpu_memory_mib(gpu)
    checkout = str(Path(parotid_seg.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([checkout, *filter(None, [os.getenv("PYTHONPATH")])])}
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        memory = PeakMemory(process.pid, gpu, before_mib)
        try:
            _, errors = process.communicate(timeout=most_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers
            raise
        finally:
            peaks = memory.end()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"infer ended with status {process.returncode}: {errors[-300:]}")
    return seconds, peaks


def one_row(
    run: Callable[[Path, str, int], Run], folder: Path, workers: int, scans: int, engine: float
) -> dict[str, Any]:
    """One number of workers: all scans, and one scan to know what starting takes."""
    one_s, _ = run(min(folder.iterdir()), f"one{workers}", workers)
    all_s, peaks = run(folder, f"all{workers}", workers)
    row: dict[str, Any] = {"workers": workers, "s": all_s, "one_scan_s": one_s, "scans_a_second": scans / all_s}
    if scans > 1 and all_s > one_s:
        row["steady_scans_a_second"] = (scans - 1) / (all_s - one_s)
        row["of_the_engine"] = row["steady_scans_a_second"] / engine
    return {**row, **peaks}
