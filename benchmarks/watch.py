"""Run a command and watch it: wall time, and peak memory and open files of all its processes together (Linux)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.05

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without their bytecode, programs would be compiled at each start


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        seconds: wall time from the start to the end of the process.
        peak_mib: proportional set size of the process and all its descendants, the largest sum seen.
        peak_files: open file descriptors, the same.
        first_s: seconds to the first file that matches `until`; None if none was asked for.
        output: what it printed.
    """

    seconds: float
    peak_mib: float
    peak_files: int
    first_s: float | None
    output: str


def watch(command: Sequence[str], *, first: Path | None = None, memory: bool = True) -> Watched:
    """Run a command to its end.

    Args:
        command: program and arguments; it must end with status 0.
        first: a file to wait for and note the time of.
        memory: whether to look at memory and files, which costs a little of the machine.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak_kib, peak_files, first_s = 0, 0, None
    while process.poll() is None:
        if first is not None and first_s is None and first.exists():
            first_s = time.perf_counter() - started
        if memory:
            kib, files = memory_and_files(process.pid)
            peak_kib, peak_files = max(peak_kib, kib), max(peak_files, files)
        time.sleep(EVERY_S if memory else 0.002)
    seconds = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {process.returncode}: {output}")
    return Watched(seconds, peak_kib / 1024, peak_files, first_s, output)


def memory_and_files(root: int) -> tuple[int, int]:
    """KiB of proportional memory, and open files, of a process and all its descendants together (Linux)."""
    kib = files = 0
    for process in family(root):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            kib += int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
            files += len(list(Path(f"/proc/{process}/fd").iterdir()))
        except (OSError, StopIteration):
            continue
    return kib, files


def family(root: int) -> list[int]:
    """A process and all its descendants, itself first (Linux)."""
    found, new = [root], [root]
    while new:
        children = []
        for parent in new:
            for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
                try:
                    children += [int(child) for child in tasks.read_text().split()]
                except OSError:
                    continue
        found, new = found + children, children
    return found
