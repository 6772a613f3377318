"""What bench.py has found so far: written anew after every part as gpu.json and, to be read, as gpu.md."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gpu.table import table
from gpu.tried import AGAIN, Tried
from parotid_seg.bench.system_state import about_machine, nvidia_smi_values
from parotid_seg.files import write_text
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask
from parotid_seg.system import versions_of

MORE_PACKAGES = ("torch", "triton", "timm", "onnx", "onnxscript", "tensorrt-cu12", "tensorrt-cu13", "nvidia-cudnn-cu13")

T = TypeVar("T")


class Record:
    """Figures, what was skipped and why, and the time there is.

    Args:
        folder: where to write. The figures that are there are kept if they have the same key. What was skipped is
            forgotten, to be tried again, unless it ended an earlier process.
        minutes: the time for everything.
        key: what the figures depend on.
        parts: what is tried now; what was skipped of other parts is kept.
        clock: returns the time in seconds.
        is_lost: whether the GPU does no more work for this process; asked after errors.

    Attributes:
        content: all figures.
        failed: whether something was skipped since it failed.
        out_of_time: whether something was skipped since the time was too short for it.
        part: what is tried now, of `parts`; belongs to what is skipped.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float,
        key: Mapping[str, str],
        parts: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        is_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._clock, self._began, self._is_lost = folder, clock, clock(), is_lost
        self._tried = Tried(folder)
        self.budget_s = 60 * minutes
        before = read(folder)
        kept = before if before.get("key") == dict(key) else {}
        self.failed = self.out_of_time = False
        self.part = ""
        skipped = [each for each in kept.get("skipped", []) if each["part"] not in ("", *parts)]
        self.content: dict[str, Any] = {**kept, "key": dict(key), "skipped": skipped}

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.budget_s - (self._clock() - self._began)

    def attempt(self, what: str, work: Callable[[], T], *, until: float = 1.0) -> T | None:
        """Do something, unless more than this share of the time is over; None, and said why, if it does not work."""
        if self.left_s <= (1 - until) * self.budget_s:
            self.out_of_time = True
            self.skip(what, "no time left for it")
            return None
        return self.guarded(what, work)

    def guarded(self, what: str, work: Callable[[], T]) -> T | None:
        """Do something; None, and said why, if it does not work, or hung or crashed in an earlier process.

        Raises:
            SystemExit: if nothing else can work in this process either, with status `AGAIN`.
        """
        if what in self._tried.avoided:
            self.skip(what, "it hung or crashed before")
            return None
        try:
            with self._tried.now(what):
                return work()
        except Exception as error:  # whatever a library raises: the others go on
            self.failed = True
            self.skip(what, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
        if self._is_lost():
            self._tried.avoid(what)
            print(f"the GPU does no more work for this process: {what} is not tried again", flush=True)
            raise SystemExit(AGAIN)
        return None

    def skip(self, what: str, why: str) -> None:
        """Name what is skipped."""
        found = {"part": self.part, "what": what, "why": why}
        if found not in self.content["skipped"]:
            print(f"skipped: {what}: {why}", flush=True)
            self.content["skipped"].append(found)
            self.save()

    def add(self, name: str, found: Any) -> None:
        """Keep what was found, and write everything."""
        self.content[name] = found
        print(f"{self.budget_s - self.left_s:.0f} s: {name}", flush=True)
        self.save()

    def save(self) -> None:
        """Write both files."""
        write_text(json.dumps(self.content, indent=1) + "\n", self._folder / "gpu.json")
        write_text(table(self.content), self._folder / "gpu.md")


def read(folder: Path) -> dict[str, Any]:
    """The figures of an earlier run; none if there are none, or they are incomplete."""
    try:
        found = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def traffic(inputs: Inputs, labels: Mask, copied: tuple[int, int] | None) -> dict[str, float]:
    """What of a chunk goes over the bus.

    Args:
        inputs, labels: the chunk's.
        copied: bytes in and out, if they are not those of the inputs and labels.

    Returns:
        bytes_in, bytes_out: in all,
        bytes_a_voxel: both over the labelled voxels: intensities (also of neighbours), matrices and labels.
    """
    bytes_in, bytes_out = copied or (sum(array.nbytes for array in inputs.values()), labels.nbytes)
    return {"bytes_in": bytes_in, "bytes_out": bytes_out, "bytes_a_voxel": (bytes_in + bytes_out) / labels.size}


def share_of_bus(ms: float, copied: dict[str, Any], bus: dict[str, float]) -> float:
    """Time for the copies of a chunk (see `traffic`) at the measured speed of the bus, over the time with copies."""
    there = copied["bytes_in"] / bus["host_to_device_gb_s"]
    return float((there + copied["bytes_out"] / bus["device_to_host_gb_s"]) / 1e6 / ms)
