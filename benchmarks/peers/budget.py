"""How many epochs fit in a budget of time, and the file that keeps the answer for a training that is resumed.

nnU-Net's learning rate falls to zero over a number of epochs that it must know beforehand. So the first iterations are
timed, the number is worked out once and written down, and nobody works it out again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

EPOCHS_WANTED = 60
"""nnU-Net's own epochs of 250 iterations would be a dozen at most; shorter ones let the rate fall smoothly, and
a checkpoint is written after each."""
MOST_ITERATIONS = 250
MOST_REST = 0.05
"""Of an epoch's time may go into what follows its iterations; a short budget gets fewer epochs instead."""
VALIDATIONS = 2
"""Batches of validation after an epoch. They choose nothing: the last checkpoint is taken."""


@dataclass(frozen=True)
class Timing:
    """What the first iterations took, in seconds.

    Attributes:
        iteration: of training, with the loading of its batch.
        rest: what an epoch takes beside its iterations: validation, checkpoint, curves.
    """

    iteration: float
    rest: float

    def __post_init__(self) -> None:
        if not self.iteration > 0 or self.rest < 0:
            raise ValueError(f"{self}: expected a time above 0 for an iteration and none below 0")


@dataclass(frozen=True)
class Schedule:
    """A training's length, fixed before it begins.

    Attributes:
        configuration, trainer: of nnU-Net.
        core_minutes, threads: the budget; `core_minutes / threads` minutes by the clock.
        batch_size, patch_size: as trained; nnU-Net's plan may say otherwise.
        epochs, iterations: how many, and how many iterations each has.
        timing: what that was worked out from.
    """

    configuration: str
    trainer: str
    core_minutes: float
    threads: int
    batch_size: int
    patch_size: tuple[int, ...]
    epochs: int
    iterations: int
    timing: Timing

    @property
    def seconds(self) -> float:
        """How long the training should take."""
        return self.epochs * (self.iterations * self.timing.iteration + self.timing.rest)


def epochs_for(seconds: float, timing: Timing) -> tuple[int, int]:
    """Epochs, and iterations in each, that end within a budget.

    Args:
        seconds: the budget.
        timing: of this machine.

    Raises:
        ValueError: if not even one epoch of one iteration fits.
    """
    for wanted in range(EPOCHS_WANTED, 0, -1):
        an_epoch = seconds / wanted
        iterations = min(MOST_ITERATIONS, int((an_epoch - timing.rest) / timing.iteration))
        if iterations >= 1 and (timing.rest <= MOST_REST * an_epoch or wanted == 1):
            return int(seconds / (iterations * timing.iteration + timing.rest)), iterations
    raise ValueError(f"{seconds:.0f} s are too short for one iteration and what follows it ({timing})")


def write_whole(content: object, path: Path) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)  # noqa: PTH105


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Keep a schedule."""
    write_whole(asdict(schedule), path)


def read_schedule(path: Path) -> Schedule | None:
    """The schedule that was kept; None if there is none yet."""
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    timing, patch_size = Timing(**content.pop("timing")), tuple(content.pop("patch_size"))
    return Schedule(**content, timing=timing, patch_size=patch_size)


def check_same(kept: Schedule, **asked: object) -> None:
    """Refuse to go on with a training that was begun with other settings.

    Raises:
        SystemExit: names what differs.
    """
    differ = [
        f"{name} {getattr(kept, name)}, now {value}"
        for name, value in asked.items()
        if value is not None and getattr(kept, name) != value
    ]
    if differ:
        raise SystemExit(f"this training was begun with {'; '.join(differ)}. Take the same, or another --work")
