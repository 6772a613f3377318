"""What the worker processes of pytest-xdist need to get on beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this worker, "gw0" and so on; None without pytest-xdist."""


def keep_to_own_cores() -> None:
    """Give this worker its share of the machine's cores.

    onnxruntime, OpenVINO, torch and numpy start as many threads as there are cores to use, and so do the processes that
    tests start. Without this, all workers together would start several times as many, which wait for each other.
    """
    if WORKER is None or not hasattr(os, "sched_setaffinity"):
        return
    cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    number = int(WORKER.removeprefix("gw")) % count
    os.sched_setaffinity(0, cores[number::count] or [cores[number % len(cores)]])


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this test run that the first worker makes and all use.

    Args:
        factory: of pytest.
        name: of the folder.
        make: fills it. If that fails, the next worker tries again in a new one.
    """
    if WORKER is None:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    base = factory.getbasetemp().parent
    with FileLock(base / f"{name}.lock"):
        place = base / f"{name}.folder"
        if not place.exists():
            folder = factory.mktemp(name)
            make(folder)
            place.write_text(str(folder))
    return Path(place.read_text())
