"""Trainings in several processes, as users start them, and what becomes of them."""

import contextlib
import subprocess
import sys
from pathlib import Path

COMMAND = "-m", "parotid_seg"
ONE_MACHINE = ("--standalone",)


def training(processes, *arguments, launch=ONE_MACHINE, program=COMMAND):
    """One under way; of a single process without torchrun."""
    start = ["-m", "torch.distributed.run", *launch, "--nproc-per-node", processes]
    alone = processes == 1 and launch is ONE_MACHINE
    command = [sys.executable, *([] if alone else start), *program, "train", *arguments, "--device", "cpu"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, timeout=120):
    """Status, and our lines on stderr; among those of torchrun there must be no traceback of ours."""
    try:
        _, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert "parotid_seg/train" not in stderr, stderr
    return process.returncode, [line for line in stderr.splitlines() if line.startswith("parotid-seg: ")]


def after(process, start):
    """Read a training's output up to a line."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(process.stderr.read())


def workers(process):
    """Process IDs by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process.pid:
                items = (path / "environ").read_text().split("\0")
                found |= {int(item.removeprefix("RANK=")): int(path.name) for item in items if item.startswith("RANK=")}
    return found
