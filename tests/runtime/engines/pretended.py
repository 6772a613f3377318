"""An engine and a clock that only pretend: nothing is timed for real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parotid_seg.errors import DeviceMemoryError
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.scan.chunks import Inputs


class Engine(Backend):
    """An engine that computes nothing. Each look takes it some seconds of a clock that stands still otherwise."""

    def __init__(
        self,
        name: str = "",
        clock: Clock | None = None,
        seconds: Callable[[int], float] = lambda looks: 1.0,
        memory: int = 10**9,
    ) -> None:
        self.name, self.clock, self.seconds, self.memory = name, clock, seconds, memory
        self.closed, self.runs = False, 0
        self.specialised: set[int] = set()

    def start(self, inputs: Inputs) -> Done:
        looks = len(inputs["neighbours"])
        if looks > self.memory:
            raise DeviceMemoryError("too many")
        self.runs += 1
        self.clock.now += self.seconds(looks)
        return Done(np.zeros((1, 1, 1), np.uint8))

    def specialise(self, inputs: Inputs) -> None:
        self.specialised.add(len(inputs["neighbours"]))

    def close(self) -> None:
        self.closed = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now
