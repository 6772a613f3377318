"""A process gives freed memory back, and takes only what it fills."""

import os
import platform
import subprocess
import sys

import pytest

from parotid_seg.runtime.pipeline.worker_process import LESS_MEMORY

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")

RESIDENT = """
from pathlib import Path
def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
"""


def mib_of(program: str, **environment: str) -> float:
    """The number that a program prints, in a process of its own."""
    words = [sys.executable, "-c", RESIDENT + program]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return float(done.stdout)


FREED = """
del array
before = resident_mib()
large, small = [], []
for _ in range(10):
    large.append(bytearray(b"1") * (9 << 20))
    small.append(bytearray(b"1") * (200 << 10))
del large
print(resident_mib() - before)
"""
LARGEST = "array = bytearray(b'1') * (30 << 20)"
"""Freed, so that glibc by itself keeps smaller arrays."""


def test_freed_arrays_are_given_back_although_small_ones_lie_between() -> None:
    assert mib_of(LARGEST + FREED) > 80
    call = "from parotid_seg.system import return_freed_memory; return_freed_memory(); "
    assert mib_of(call + LARGEST + FREED) < 10


def test_those_of_a_worker_are_too() -> None:
    assert mib_of(LARGEST + FREED, **LESS_MEMORY) < 10


def test_a_worker_takes_memory_only_for_the_part_of_an_array_that_it_fills() -> None:
    fill = "import numpy as np; before = resident_mib(); mask = np.zeros((64, 1 << 20), np.uint8); "
    fill += "mask[:, :4096] = 1; print(resident_mib() - before)"
    assert mib_of(fill, **LESS_MEMORY) < 8
