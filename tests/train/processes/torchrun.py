"""Trainings in several processes, as users start them with torchrun, and what becomes of them."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed import run as torchrun

from tests.processes.forked import Forked, command
from tests.train.pictures import none_drawn

ONE_MACHINE = ("--standalone",)


def training(
    processes: int,
    *arguments: Path | str,
    launch: tuple[object, ...] = ONE_MACHINE,
    program: Callable[..., None] | None = None,
) -> Forked:
    """One under way; of a single process without torchrun.

    The processes are forked, which saves each of them the imports; all else is torchrun's own code. The function
    `started` has them started. They draw no pictures.
    """
    program = program or without_pictures
    words = ["train", *map(str, arguments), "--device", "cpu"]
    if processes == 1 and launch is ONE_MACHINE:
        return Forked(partial(program, *words))
    options = [*map(str, launch), "--nproc-per-node", str(processes)]
    return Forked(partial(_launched, options, program, words), {"OMP_NUM_THREADS": "1"})


def without_pictures(*words: Any) -> None:
    """The `parotid-seg` command, in a process of its own."""
    none_drawn()
    command(*words)


def started(processes: int, *arguments: Path | str) -> Forked:
    """One under way on one machine, whose processes torchrun starts as those of users."""
    words = [*ONE_MACHINE, "--nproc-per-node", str(processes), "-m", "parotid_seg", "train", *map(str, arguments)]
    return Forked(partial(torchrun.main, [*words, "--device", "cpu"]), {"OMP_NUM_THREADS": "1"})


def _launched(options: Any, program: Any, words: Any) -> None:
    """The command `torchrun`, but for how it starts a process."""
    real = torchrun.config_from_args

    def forking(arguments: bytes) -> Any:
        config, _, _ = real(arguments)
        config.start_method = "fork"
        return config, _of_torchrun, [program, *words]

    with mock.patch.object(torchrun, "config_from_args", forking):
        torchrun.main([*options, "-m", "parotid_seg"])


def _of_torchrun(program: Any, *words: Any) -> None:
    """Run a program under a name that `workers` finds."""
    Path("/proc/self/comm").write_text(f"rank {os.environ['RANK']}")
    program(*words)


def ended(process: Forked, timeout: int = 300) -> tuple[int, list[str]]:
    """Status, and our lines on stderr; among those of torchrun there must be no traceback of ours."""
    try:
        _, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert "parotid_seg/train" not in stderr, stderr
    assert process.returncode is not None
    return process.returncode, [line for line in stderr.splitlines() if line.startswith("parotid-seg: ")]


def after(process: Forked, start: str) -> None:
    """Read a training's output up to a line."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(process.stderr.read())


def workers(process: Forked) -> dict[int, int]:
    """Process IDs by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
            if int(rest.split()[1]) == process.pid and name.startswith("rank "):
                found[int(name.removeprefix("rank "))] = int(path.name)
    return found
