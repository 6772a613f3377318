"""The machine's state during a measurement: clocks, throttling, other work."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.report.summary import PACKAGES
from parotid_seg.system import available_cores, cpu_name, memory_bytes, versions_of

CPU_INFO = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")
THROTTLED = "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"
SYSTEM = Path("/sys")
STOLEN = 7
"""Column of /proc/stat's first line after its name: time in which another guest of the host had the core."""
ASKED_OF_THE_DRIVER = (
    "driver_version",
    "memory.total",
    "memory.used",
    "power.limit",
    "clocks.max.sm",
    "clocks.sm",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
)
NO_REASON = 1
"""Bit of clocks_throttle_reasons.active that means that the GPU had nothing to do."""


@dataclass(frozen=True)
class SystemState:
    """The state at one moment; None where the system does not report a value.

    Attributes:
        cpu_mhz: median clock of the cores.
        throttled: how often cores were slowed down by heat since the system's start.
        stolen_share: of all cores' time since the system's start, taken by the host's other guests.
        load: processes that were running or waiting, mean of the last minute.
        gpu: values from nvidia-smi, by `ASKED_OF_THE_DRIVER`.
    """

    cpu_mhz: float | None
    throttled: int | None
    stolen_share: float | None
    load: float | None
    gpu: Mapping[str, str] | None


def about_machine(gpu: int | None = None) -> dict[str, Any]:
    """Processor, cores, memory, GPU, system and versions of what takes part.

    Args:
        gpu: number of the GPU to describe.
    """
    device = None if gpu is None else find_gpu(gpu)
    return {
        "processor": cpu_name(),
        "cores": available_cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "gpu": device and {"name": device.name, "capability": list(device.compute_capability), "cuda": device.cuda},
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of(PACKAGES),
    }


def system_state(gpu: int | None = None) -> SystemState:
    """How the machine is now.

    Args:
        gpu: number of the GPU to describe.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return SystemState(_cpu_mhz(), _throttled(), _stolen_share(), load, None if gpu is None else nvidia_smi_values(gpu))


def remarks(before: SystemState, after: SystemState, cores: int) -> list[str]:
    """What may have disturbed a measurement, one short sentence each."""
    sentences = []
    if before.load is not None and before.load > 0.5 * cores:
        sentences.append(f"other work was going on at the start: a load of {before.load:.1f} on {cores} cores")
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        sentences.append(f"cores were slowed down by heat {after.throttled - before.throttled} times")
    if before.stolen_share is not None and after.stolen_share is not None:
        more = after.stolen_share - before.stolen_share
        if after.stolen_share > 0.01 and more > 0:
            sentences.append(
                f"other guests of the host take {after.stolen_share:.0%} of the cores' time, and more than before"
            )
    active = re.fullmatch("0x([0-9a-f]+)", (after.gpu or {}).get("clocks_throttle_reasons.active", ""))
    reasons = int(active[1], 16) & ~NO_REASON if active else 0
    if reasons:
        sentences.append(f"the GPU was slowed down (clocks_throttle_reasons.active {reasons:#x})")
    return sentences


def nvidia_smi_values(gpu: int) -> dict[str, str] | None:
    """Values from nvidia-smi of a GPU; None where it is missing or its output has another form."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = f"--query-gpu={','.join(ASKED_OF_THE_DRIVER)}"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in output.split(",")]
    return dict(zip(ASKED_OF_THE_DRIVER, values, strict=True)) if len(values) == len(ASKED_OF_THE_DRIVER) else None


def gpu_memory_mib(gpu: int) -> float | None:
    """Memory of a GPU that is in use, by all its processes; None where the driver does not report it."""
    match = re.match(r"(\d+) MiB", (nvidia_smi_values(gpu) or {}).get("memory.used", ""))
    return float(match[1]) if match else None


def _cpu_mhz() -> float | None:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return statistics.median(clocks) if clocks else None


def _throttled() -> int | None:
    counts = [int(path.read_text()) for path in SYSTEM.glob(THROTTLED)]
    return sum(counts) if counts else None


def _stolen_share() -> float | None:
    try:
        times: list[int] = [int(each) for each in CPU_TIMES.read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    return times[STOLEN] / sum(times) if len(times) > STOLEN else None
