"""Properties of this machine: processor, cores, memory and packages; and what a process does with freed memory."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from parotid_seg.version import VERSION

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Files with the limits of a container on Linux."""
M_MMAP_THRESHOLD = -3
"""Parameter of glibc's mallopt: allocations of at least so many bytes are mapped one by one."""
MAPPED_BYTES = 8 << 20
"""The value for a process with an engine: smaller ones take more time for hardly less memory."""


def available_cores() -> int:
    """Number of cores that this process may use; a container or a batch system may allow fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, quota_cores() or cores)


def quota_cores() -> int | None:
    """Cores equivalent to a container's quota of processor time, rounded up; None if there is no quota.

    `docker run --cpus` and limits of Kubernetes are such quotas. The process still sees all cores of the machine, but
    is paused for the rest of each period (usually 0.1 s) in which its threads together have used up the quota.
    """
    try:
        quota_us, period_us = map(int, CGROUP_QUOTA.read_text().split())
        return max(1, math.ceil(quota_us / period_us))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or "max"
        return None


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, if the system reports it."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Bytes of memory of the machine, or of the container if its limit is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return physical


def return_freed_memory() -> None:
    """Give freed arrays of `MAPPED_BYTES` and more back to the system at once, if the C library is glibc.

    By default glibc raises this size to that of the largest array freed, up to 32 MB. Smaller arrays then lie between
    others, and their memory is neither given back nor used for larger ones.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed packages among those given, and of parotid-seg, which need not be installed."""
    versions = {}
    for package in packages:
        if package == "parotid-seg":
            versions[package] = VERSION
            continue
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
