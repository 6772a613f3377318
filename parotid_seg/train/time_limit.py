"""The limit on the time of a run, what it says in long phases, and how to go on after it has ended early."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from parotid_seg.errors import OptionError
from parotid_seg.train.config import INITIAL
from parotid_seg.wording import Progress, Say

UNCUT_S = 20.0
"""Seconds of a command before which nothing is cut off, so that a short training has a whole epoch."""
HEARTBEAT_S = 10.0
"""Seconds without a line after which a step of a phase is reported."""


class TimeIsOverError(Exception):
    """The time of a run is over before its first step; with a line that says what is left."""


@dataclass(frozen=True)
class TimeLimit:
    """When a run ends.

    Attributes:
        minutes: its length; None for no limit.
        started: of `time.monotonic`, from which the minutes count.
    """

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes >= 0:
            raise OptionError(f"--max-minutes: found {self.minutes:g}, expected 0 or more")

    @property
    def deadline(self) -> float:
        """Time of `time.monotonic` at which the run ends."""
        return math.inf if self.minutes is None else self.started + 60 * self.minutes

    def left_s(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def over(self, reserve_s: float = 0.0) -> bool:
        """Whether the time is over in `reserve_s` seconds."""
        return time.monotonic() + reserve_s >= self.deadline

    def cuts(self, reserve_s: float = 0.0) -> bool:
        """The same, after the first `UNCUT_S` of the command: whether to stop within an epoch or before it."""
        return self.over(reserve_s) and time.monotonic() - self.started > UNCUT_S


class Pace:
    """Passes lines and steps on, and makes a line of a step where none came for `HEARTBEAT_S`.

    Args:
        report: called with each line.
        progress: called with each step.
    """

    def __init__(self, report: Say, progress: Progress) -> None:
        self._report, self._progress = report, progress
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """One line."""
        self._last = time.monotonic()
        self._report(line)

    def step(self, phase: str, done: int, steps: int, detail: str = "") -> None:
        """One step of a phase begins; `detail` is for the progress bar only."""
        self._progress(f"{phase}{detail and f': {detail}'}", done, steps)
        if time.monotonic() - self._last >= HEARTBEAT_S:
            self.say(f"{phase}: {done} of {steps} done")


def resume_advice(run: Path) -> str:
    """A sentence on how to resume a run that ended early."""
    checkpoints = [*run.glob("last.pt"), *run.glob("*/last.pt")]
    if not checkpoints:
        best, started = run / "best.pt", ""
        if best.exists():
            from parotid_seg.train.checkpoint import what_best_is  # imports torch

            started = f"; {best} is there: {what_best_is(best)}"
        return f"{run} holds no finished epoch on this machine{started}"
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime)
    best = newest.with_name("best.pt")
    return f"{newest} is whole, and --resume goes on with it" + (f"; best so far: {best}" if best.exists() else "")


def how_to_go_on(run: Path, epochs_done: int, best: str) -> str:
    """What a run that --max-minutes ended has left, and how to go on.

    Args:
        run: folder of the stage.
        epochs_done: finished epochs.
        best: what `best.pt` is; empty if there is none.
    """
    if epochs_done:
        return f"{f'best.pt is {best}' if best else 'there is no best.pt yet'}; --resume continues"
    longer = "no epoch is finished, so --resume has nothing to continue: start again with more minutes"
    if not best:
        return f"there is no best.pt, as {longer}"
    on = "" if best == INITIAL else f", or train on with --init {run / 'best.pt'}; either with another --out"
    return f"{run / 'best.pt'} is there: {best}; {longer}{on}"
