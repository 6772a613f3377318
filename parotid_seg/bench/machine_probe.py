"""The current speed of the machine, measured with fixed work: cores pass memory to each other.

The speed of a shared machine varies. While a virtual machine's cores are far apart on the host, for seconds or minutes,
an engine whose threads share activations takes up to half longer, but matrix products and work on one core do not, so
they cannot detect this. Passing memory between cores slows down at the same times as the engine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from parotid_seg.system import available_cores

BYTES = 1 << 20
"""Bytes that are passed: they fit into the nearest cache of each core."""
MOST_CORES = 8
HANDOVERS = 24
TRIES = 3
"""Repeats, of which the shortest counts, because every disturbance makes one longer."""
CALM_S = 0.005
"""Wait before a measurement: threads of an engine poll for new work before they sleep."""
MOST_SLOWDOWN = 1.2
"""Largest multiple of the best transfer time that counts as undisturbed. Slow phases differ from it by 1.4 and more."""
BEST = 5
"""Percentile of a run's transfer times that counts as its best."""
LEAST_ROUNDS = 3
"""Least undisturbed rounds for a launch to count."""

Rounds = Sequence[Sequence[float]]
"""Milliseconds of each round, by launch."""


class MachineProbe:
    """One thread on each core, as far as the system lets threads be placed."""

    def __init__(self) -> None:
        places = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(available_cores())
        chosen = [places[index] for index in np.unique(np.linspace(0, len(places) - 1, MOST_CORES).astype(int))]
        self._threads = [ThreadPoolExecutor(1) for _ in chosen]
        self._memory = np.zeros(BYTES // 4, np.float32)
        if hasattr(os, "sched_setaffinity"):
            for thread, core in zip(self._threads, chosen, strict=True):
                thread.submit(os.sched_setaffinity, 0, {core}).result()

    def ms(self) -> float:
        """Milliseconds for the piece of work."""
        time.sleep(CALM_S)
        return min(self._once_ms() for _ in range(TRIES))

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown()

    def _once_ms(self) -> float:
        begun = time.perf_counter()
        for number in range(HANDOVERS):
            thread = self._threads[number % len(self._threads)]
            thread.submit(np.add, self._memory, 1, self._memory).result()
        return 1000 * (time.perf_counter() - begun)


def best_transfer_ms(transfers_ms: Rounds) -> float:
    """Time in ms of a transfer between the machine's cores when nothing disturbed it."""
    return float(np.percentile(np.concatenate([np.asarray(launch) for launch in transfers_ms]), BEST))


def undisturbed_rounds(rounds_ms: Rounds, transfers_ms: Rounds, best_ms: float) -> list[list[float]]:
    """The rounds in which the machine was undisturbed, by launch; launches with too few of them are skipped.

    Args:
        rounds_ms: times of an engine.
        transfers_ms: of a transfer between the machine's cores in the same rounds.
        best_ms: see `best_transfer_ms`.
    """
    undisturbed = [
        [
            time_ms
            for time_ms, transfer_ms in zip(rounds, transfers, strict=True)
            if transfer_ms <= MOST_SLOWDOWN * best_ms
        ]
        for rounds, transfers in zip(rounds_ms, transfers_ms, strict=True)
    ]
    return [launch for launch in undisturbed if len(launch) >= LEAST_ROUNDS]


def undisturbed_median(rounds_ms: Rounds, transfers_ms: Rounds) -> float:
    """Median in ms of the undisturbed rounds; of all rounds if there are too few."""
    rounds = undisturbed_rounds(rounds_ms, transfers_ms, best_transfer_ms(transfers_ms)) or rounds_ms
    return statistics.median(each for launch in rounds for each in launch)
