"""The parts of gpu.py that run the product: a trace of the engine's part, and `parotid-seg infer` by workers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_record import Record

from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.scan.chunks import CroppedScan


def trace(backend: Backend, scan: CroppedScan, batch_size: int, path: Path) -> None:
    """A Chrome trace of one scan through the batches and the engine."""
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


def end_to_end(
    scans: Sequence[Path],
    how: Mapping[str, str],
    workers_tried: Sequence[int],
    told: Mapping[str, Any],
    record: Record,
) -> None:
    """Measure by number of workers, and write each.

    Args:
        scans: what to segment; copied to be as many as `told` says.
        how: options that have `infer` use the fastest of ours.
        workers_tried: numbers of workers.
        told: what is known beforehand: scans, batch_size, engine_scans_a_second.
        record: where it is written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "scans"
        folder.mkdir()
        for number in range(told["scans"]):
            scan = scans[number % len(scans)]
            shutil.copy(scan, folder / f"{number:04d}-{scan.name}")
        given = [word for pair in how.items() for word in pair]
        command = [sys.executable, "-m", "parotid_seg", "infer", *given, "--quiet"]
        command += ["--batch-size", str(told["batch_size"]), "--allow-unverified"]

        def seconds(source: Path, name: str, workers: int) -> float:
            started = time.perf_counter()
            words = [*command, "--workers", str(workers), "--out", str(Path(scratch) / name), str(source)]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=max(1.0, record.left_s))
            if done.returncode:
                raise RuntimeError(f"infer ended with status {done.returncode}: {done.stderr[-300:]}")
            return time.perf_counter() - started

        rows: list[dict[str, Any]] = []
        for workers in workers_tried:
            work = partial(one_row, seconds, folder, workers, told["scans"], told["engine_scans_a_second"])
            row = record.attempt(f"end to end with {workers} workers", work)
            if row is not None:
                rows.append(row)
                record.add("end_to_end", {**told, "rows": rows})


def one_row(
    seconds: Callable[[Path, str, int], float], folder: Path, workers: int, scans: int, engine: float
) -> dict[str, Any]:
    """One number of workers: all scans, and one scan to know what starting takes."""
    one_s = seconds(min(folder.iterdir()), f"one{workers}", workers)
    all_s = seconds(folder, f"all{workers}", workers)
    row: dict[str, Any] = {"workers": workers, "s": all_s, "one_scan_s": one_s, "scans_a_second": scans / all_s}
    if scans > 1 and all_s > one_s:
        row["steady_scans_a_second"] = (scans - 1) / (all_s - one_s)
        row["of_the_engine"] = row["steady_scans_a_second"] / engine
    return row
