"""What gpu.py has found so far: written anew after every step as gpu.json and, to be read, as gpu.md."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from parotid_seg.bench.system_state import about_machine, nvidia_smi_values
from parotid_seg.files import write_text
from parotid_seg.system import versions_of

MORE_PACKAGES = ("torch", "triton", "timm", "onnx", "onnxscript", "tensorrt-cu12", "tensorrt-cu13", "nvidia-cudnn-cu13")

T = TypeVar("T")


class Record:
    """Figures, what was left out and why, and the time there is.

    Args:
        folder: where to write.
        minutes: the time for everything.
        clock: tells the time in seconds.
    """

    def __init__(self, folder: Path, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock, self._began = folder, clock, clock()
        self.budget_s = 60 * minutes
        self.content: dict[str, Any] = {"budget_s": self.budget_s, "left_out": []}

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.budget_s - (self._clock() - self._began)

    def attempt(self, what: str, work: Callable[[], T], *, until: float = 1.0) -> T | None:
        """Do something, unless more than this share of the time is over; None, and said why, if it does not work."""
        if self.left_s <= (1 - until) * self.budget_s:
            self.leave_out(what, "no time left for it")
            return None
        try:
            return work()
        except Exception as error:  # whatever a library raises: the others go on
            self.leave_out(what, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
            return None

    def leave_out(self, what: str, why: str) -> None:
        """Name what is left out."""
        print(f"left out: {what}: {why}", flush=True)
        self.content["left_out"].append({"what": what, "why": why})
        self.save()

    def add(self, name: str, found: Any) -> None:
        """Keep what was found, and write everything."""
        self.content[name] = found
        print(f"{self.budget_s - self.left_s:.0f} s: {name}", flush=True)
        self.save()

    def save(self) -> None:
        """Write both files."""
        self.content["seconds"] = round(self.budget_s - self.left_s, 1)
        write_text(json.dumps(self.content, indent=1) + "\n", self._folder / "gpu.json")
        write_text(table(self.content), self._folder / "gpu.md")


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds, once Python code runs there (main thread, not Windows)."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def machine(device: str, index: int) -> dict[str, Any]:
    """Where and with what it is measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        **about_machine(None if device == "cpu" else index),
        "driver": None if device == "cpu" else nvidia_smi_values(index),
        "more_versions": versions_of(MORE_PACKAGES),
    }


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Median, 5th and 95th percentile, and how many there are."""
    low, middle, high = (float(value) for value in np.percentile(times_ms, (5, 50, 95)))
    return {"p50": middle, "p5": low, "p95": high, "count": len(times_ms)}


def traffic(inputs: dict[str, Any], labels: Any) -> dict[str, float]:
    """What of a chunk goes over the bus.

    Returns:
        bytes_in, bytes_out: of all inputs and of the labels,
        voxels: labels,
        bytes_a_voxel_stored: an intensity and a label,
        bytes_a_voxel_copied: everything over the voxels: also neighbours beyond the chunk, and matrices.
    """
    bytes_in = sum(array.nbytes for array in inputs.values())
    return {
        "bytes_in": bytes_in,
        "bytes_out": labels.nbytes,
        "voxels": labels.size,
        "bytes_a_voxel_stored": inputs["slices"].itemsize * len(inputs["slices"]) + labels.itemsize,
        "bytes_a_voxel_copied": (bytes_in + labels.nbytes) / labels.size,
    }


def share_of_bus(ms: float, chunk: dict[str, Any], bus: dict[str, float]) -> float:
    """Time for the copies of a chunk at the measured speed of the bus, over the time with copies."""
    there = chunk["bytes_in"] / bus["host_to_device_gb_s"]
    return float((there + chunk["bytes_out"] / bus["device_to_host_gb_s"]) / 1e6 / ms)


def table(content: dict[str, Any]) -> str:
    """Everything that there is, to be read."""
    lines = ["# Speed on a GPU", ""]
    about = content.get("machine")
    if about:
        gpu, driver = about["gpu"], about["driver"] or {}
        name = f"{gpu['name']}, driver {driver.get('driver_version', 'unknown')}" if gpu else "no GPU: a trial on a CPU"
        both = {**about["versions"], **about["more_versions"]}
        versions = ", ".join(f"{package} {version}" for package, version in both.items())
        lines += [f"{name}; {about['processor']}, {about['cores']} cores; {about['date']}.", "", f"{versions}.", ""]
    if "peaks" in content:
        found = content["peaks"]
        named = {f"{kind} product, Gop/s": value for kind, value in found["gflops"].items()}
        named |= {"copy on the device, GB/s": found["memory_gb_s"], **content.get("bus", {})}
        peaks = [f"| {name} | {value:.4g} |" for name, value in named.items()]
        lines += ["## Measured peaks", "", "| | |", "|---|---|", *peaks, ""]
    for size, found in content.get("sweep", {}).items():
        lines += _sweep_lines(size, found)
    if content.get("end_to_end", {}).get("rows"):
        lines += _end_to_end_lines(content["end_to_end"])
    if "trace" in content:
        lines += ["## Trace", "", f"`{content['trace']['file']}`: {content['trace']['of']}.", ""]
    left_out = [f"- {each['what']}: {each['why']}" for each in content["left_out"]]
    lines += ["## Left out", "", *(left_out or ["Nothing."]), ""]
    return "\n".join(lines)


def _sweep_lines(size: str, found: dict[str, Any]) -> list[str]:
    chunk = found["chunk"]
    met = "at most 3" if chunk["bytes_a_voxel_copied"] <= 3 else "more than 3"
    lines = [
        f"## Batches of {size}",
        "",
        f"{chunk['different']} different chunks of {chunk['looks']} looks, {chunk['shape']} voxels in. A voxel is "
        f"{chunk['bytes_a_voxel_stored']} bytes stored (in and out); with neighbours beyond the chunk and matrices "
        f"{chunk['bytes_a_voxel_copied']:.2f} bytes a labelled voxel go over the bus, {met}.",
        "",
        "| | ms a chunk (5 to 95 %) | one alone, ms | computing, ms | slices a second | changed voxels, of structures "
        "| Gop/s | of products' peak | of roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["contenders"].items():
        roof = row.get("roofline") or {}
        lines.append(
            f"| {name} | {row['ms']['p50']:.3f} ({row['ms']['p5']:.3f} to {row['ms']['p95']:.3f}) "
            f"| {_median(row, 'alone_ms')} | {_median(row, 'compute_ms')} | {row['looks_a_second']:.0f} "
            f"| {_changed(row)} | {_number(roof, 'gflops', '.0f')} | {_number(roof, 'share_of_products', '.1%')} "
            f"| {_number(roof, 'share', '.1%')} |"
        )
    if found.get("ours_over_torch"):
        best = found["best"]
        times = f"{found['ours_over_torch']:.2f} times as many slices a second as {best['torch']}"
        lines += ["", f"{best['ours']} makes {times}, the fastest of torch here."]
    return [*lines, ""]


def _end_to_end_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "## End to end",
        "",
        f"`parotid-seg infer` on {found['scans']} scans with {found['with']}, batches of {found['batch_size']}. Its "
        f"engine alone makes {found['engine_scans_a_second']:.2f} scans a second from memory. Without start-up: "
        "the time of one scan is taken off.",
        "",
        "| workers | s | scans a second | without start-up | of the engine alone |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        steady, share = _number(row, "steady_scans_a_second", ".2f"), _number(row, "of_the_engine", ".1%")
        lines.append(f"| {row['workers']} | {row['s']:.1f} | {row['scans_a_second']:.2f} | {steady} | {share} |")
    return [*lines, ""]


def _median(row: dict[str, Any], name: str) -> str:
    return f"{row[name]['p50']:.3f}" if row.get(name) else ""


def _changed(row: dict[str, Any]) -> str:
    if row.get("changed_voxels") is None:
        return ""
    share = row["changed_of_structures"]
    return f"{row['changed_voxels']}" + ("" if share is None else f", {share:.3%}")


def _number(found: dict[str, Any], name: str, form: str) -> str:
    return format(found[name], form) if found.get(name) is not None else ""
