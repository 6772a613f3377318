"""NVIDIA GPUs of this machine, by their driver; neither the CUDA toolkit nor another package is needed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
"""Where Linux states the version of NVIDIA's driver."""
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the driver's name of it, for example "NVIDIA RTX A4000".
        compute_capability: major and minor, for example (8, 6).
        cuda: newest CUDA version that the driver supports, for example "13.0".
    """

    name: str
    compute_capability: tuple[int, int]
    cuda: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {capability_text(self.compute_capability)})"


def capability_text(capability: tuple[int, int] | None) -> str:
    """A compute capability as text, for example "8.6"."""
    return "unknown" if capability is None else ".".join(map(str, capability))


def load_driver() -> ctypes.CDLL | None:
    """The driver's library, or None if there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU of this number, or None where there is no driver or no such GPU."""
    driver = load_driver()
    if driver is None:
        return None
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), index),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(call() != 0 for call in calls):
        return None
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), (major.value, minor.value), cuda)


def find_gpus() -> list[Gpu]:
    """All GPUs of this machine, by number."""
    gpus: list[Gpu] = []
    while (gpu := find_gpu(len(gpus))) is not None:
        gpus.append(gpu)
    return gpus


def driver_version() -> str:
    """The version of NVIDIA's driver as the system states it; empty where it does not."""
    try:
        return next(iter(DRIVER_VERSION.read_text().splitlines()), "").partition(":")[2].strip()
    except OSError:
        return ""
