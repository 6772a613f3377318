"""What the worker processes of pytest-xdist need to get on beside each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this worker, "gw0" and so on; None without pytest-xdist."""
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""The cores of all workers."""


def keep_to_own_cores() -> None:
    """Give this worker its share of the machine's cores.

    onnxruntime, OpenVINO and torch start as many threads as there are cores to use, and so do the processes that tests
    start. Without this, all workers together would start several times as many, which wait for each other. For
    numpy's OpenBLAS this is not enough: in whole runs it has two threads on the one core, and products take 20 times as
    long. So the main process sets its variable, which the workers inherit.
    """
    if WORKER is None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return
    if not hasattr(os, "sched_setaffinity"):
        return
    cores, count = sorted(CORES), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    number = int(WORKER.removeprefix("gw")) % count
    os.sched_setaffinity(0, cores[number::count] or [cores[number % len(cores)]])


@contextlib.contextmanager
def every_core() -> Iterator[None]:
    """Let this worker, and processes that it starts meanwhile, use the cores of all."""
    if not CORES:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this test run that the first worker makes and all use, in whatever modules the fixture is imported.

    Args:
        factory: of pytest.
        name: of the folder.
        make: fills it. If that fails, the next worker tries again in a new one.
    """
    base = factory.getbasetemp() if WORKER is None else factory.getbasetemp().parent
    with FileLock(base / f"{name}.lock"):
        place = base / f"{name}.folder"
        if not place.exists():
            folder = factory.mktemp(name)
            make(folder)
            place.write_text(str(folder))
    return Path(place.read_text())
