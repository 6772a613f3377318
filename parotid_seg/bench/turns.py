"""Engines taking turns on the same chunks.

A shared machine's speed drifts, so no engine is measured in one block: all engines and batch sizes take short turns for
as long as there is time. This is repeated in several launches of fresh processes, because differences between starts
are noise, too.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from parotid_seg.bench.child import Child, Round, Started
from parotid_seg.bench.engine_process import EngineProcess
from parotid_seg.bench.machine_probe import MachineProbe, best_transfer_ms, undisturbed_median, undisturbed_rounds
from parotid_seg.bench.selection import noise_like, rotation
from parotid_seg.bench.stats import median_spread
from parotid_seg.bench.system_state import gpu_memory_mib
from parotid_seg.contract import Contract
from parotid_seg.errors import OptionError, ParotidSegError
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.scan.chunks import CroppedScan, Inputs
from parotid_seg.wording import Progress

LAUNCHES = 3
LEAST_ROUNDS = 3
"""Least rounds of each launch, whatever the time limit."""
ROUND_S = 0.15
"""Approximate length of one engine's turn at one batch size."""
LEAST_IN_A_ROUND, MOST_IN_A_ROUND = 2, 100
"""Chunks."""
STEADY = 0.01
"""Spread of a median below which no more rounds are needed, once there are `ENOUGH` chunks."""
ENOUGH = 200
"""Chunks, for the 99th percentile to have two above it."""

LeaveOut = Callable[[str, str], None]


@dataclass
class Job:
    """One engine at one batch size.

    Attributes:
        count: chunks a turn.
        rounds: all turns, by launch.
        transfers_ms: time of a transfer between the machine's cores in each of them, the worse of before and after.
        peak_mib: largest resident set of the process with batches up to this size, of each launch.
        gpu_mib: more memory of the GPU in use than before the process started; None on the CPU.
    """

    count: int = LEAST_IN_A_ROUND
    rounds: list[list[Round]] = field(default_factory=list)
    transfers_ms: list[list[float]] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    gpu_mib: float | None = None

    @property
    def real_ms(self) -> list[float]:
        """Of all chunks of scans."""
        return [each for launch in self.rounds for run in launch for each in run.real_ms]

    @property
    def medians_ms(self) -> list[list[float]]:
        """Of each round, by launch; with several chunks under way where the engine takes them."""
        return [[statistics.median(run.ahead_ms or run.real_ms) for run in launch] for launch in self.rounds if launch]

    @property
    def undisturbed_ms(self) -> list[list[float]]:
        """Those of rounds in which the machine was undisturbed."""
        transfers = [launch for launch in self.transfers_ms if launch]
        return undisturbed_rounds(self.medians_ms, transfers, best_transfer_ms(transfers)) if transfers else []

    @property
    def median_ms(self) -> float:
        """Of undisturbed rounds."""
        return undisturbed_median(self.medians_ms, [launch for launch in self.transfers_ms if launch])

    @property
    def spread(self) -> float:
        """See `stats.median_spread`; of undisturbed rounds."""
        return median_spread([each for launch in self.undisturbed_ms for each in launch])


@dataclass
class MeasuredEngine:
    """An engine and its results so far.

    Attributes:
        candidate: what it loads.
        started, cold_s: of each launch.
        warm_s: seconds to load the model once more in the same process, with its first chunk, of each launch.
        jobs: by batch size.
    """

    candidate: Candidate
    started: list[Started] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    jobs: dict[int, Job] = field(default_factory=dict)

    @property
    def best_size(self) -> int:
        """The batch size of the most samples per second."""
        return max(self.jobs, key=lambda size: size / self.jobs[size].median_ms)


class Turns:
    """See the module.

    Args:
        candidates: the engines.
        contract: the model's.
        scans: where chunks come from.
        sizes: samples at once.
        leave_out: called with each engine or batch size that cannot be measured, and why.
        gpu: number of the GPU that takes part, if one does.
        strict: whether a size that an engine does not take is an error, because the user requested it.

    Attributes:
        entries: by name. An engine that fails is removed.
        chunks: by batch size those of scans, and of noise.
        scans: indices of the scans that they are of.
        leave_out: as given.

    Raises:
        InputError: if no scan is long enough for any of the sizes.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        contract: Contract,
        scans: Sequence[CroppedScan],
        sizes: Sequence[int],
        leave_out: LeaveOut,
        *,
        gpu: int | None = None,
        strict: bool = False,
    ) -> None:
        self.entries = {candidate.name: MeasuredEngine(candidate) for candidate in candidates}
        self.chunks: dict[int, tuple[list[Inputs], list[Inputs]]] = {}
        self.scans: set[int] = set()
        self._launches = 0
        self.leave_out, self._gpu, self._strict = leave_out, gpu, strict
        for size in sorted(set(sizes)):
            real, numbers = rotation(scans, contract, size)
            self.scans |= numbers
            if real:
                self.chunks[size] = real, noise_like(real)
            else:
                leave_out(f"batches of {size}", "no scan has so many slices; name longer scans (--scans)")
        if not self.chunks:
            raise OptionError("--batch-sizes: no scan has so many slices; name longer scans (--scans)")

    @contextlib.contextmanager
    def launched(self) -> Iterator[dict[str, EngineProcess]]:
        """Fresh processes of all engines that still take part."""
        running: dict[str, EngineProcess] = {}
        try:
            for name, entry in list(self.entries.items()):
                used = None if self._gpu is None else gpu_memory_mib(self._gpu)
                with self.left_out_if_failing(name):
                    running[name] = EngineProcess(entry.candidate, self._first_chunk)
                if process := running.get(name):
                    sizes = self._taken_by(process)
                    with self.left_out_if_failing(name):
                        self._get_ready(entry, process, sizes, used)
            yield running
        finally:
            for process in running.values():
                process.end()

    def take(self, running: dict[str, EngineProcess], seconds: float, progress: Progress) -> None:
        """Let the engines take turns until the time is over or all medians are steady."""
        begun, number = time.monotonic(), 0
        self._launches += 1
        with contextlib.closing(MachineProbe()) as probe:
            before = probe.ms()
            while number < LEAST_ROUNDS or (time.monotonic() - begun < seconds and not self._steady):
                for size in self.chunks:
                    for name in list(running):
                        if name in self.entries and size in self.entries[name].jobs:
                            with self.left_out_if_failing(name):
                                job = self.entries[name].jobs[size]
                                job.rounds[-1].append(running[name].ask(Child.round, size, job.count))
                                after = probe.ms()
                                job.transfers_ms[-1].append(max(before, after))
                                before = after
                number += 1
                progress("turns", min(int(time.monotonic() - begun), int(seconds)), int(seconds))

    @contextlib.contextmanager
    def left_out_if_failing(self, name: str) -> Iterator[None]:
        """Remove an engine that fails from the measurement, and report the reason."""
        try:
            yield
        except ParotidSegError as error:
            self.leave_out(name, str(error))
            self.entries.pop(name, None)

    @property
    def _first_chunk(self) -> Inputs:
        return next(iter(self.chunks.values()))[0][0]

    @property
    def _steady(self) -> bool:
        jobs = [job for entry in self.entries.values() for job in entry.jobs.values()]
        enough = ENOUGH * self._launches / LAUNCHES
        return all(job.spread < STEADY and len(job.real_ms) >= enough for job in jobs)

    def _taken_by(self, process: EngineProcess) -> list[int]:
        """The batch sizes that an engine takes; the others are reported before it is measured.

        Raises:
            OptionError: if it does not take one that the user requested.
        """
        largest = process.started.largest_batch
        beyond = [size for size in self.chunks if largest is not None and size > largest]
        why = f"the engine was built for at most {largest}"
        if beyond and self._strict:
            raise OptionError(f"--batch-sizes: found {beyond[0]} for {process.name}, but {why}")
        if not self.entries[process.name].started:
            for size in beyond:
                self.leave_out(f"{process.name}, batches of {size}", why)
        return [size for size in self.chunks if size not in beyond]

    def _get_ready(
        self, entry: MeasuredEngine, process: EngineProcess, sizes: Sequence[int], used_mib: float | None
    ) -> None:
        """Give a fresh process its chunks, smallest batches first, and record its memory."""
        entry.started.append(process.started)
        entry.cold_s.append(process.cold_s)
        for size in sizes:
            process.ask(Child.hold, size, *self.chunks[size])
            job = entry.jobs.setdefault(size, Job())
            # in rising order, because engines do not free memory
            job.peak_mib.append(process.ask(Child.memory_mib, size, LEAST_IN_A_ROUND))
            trial = statistics.median(process.ask(Child.round, size, LEAST_IN_A_ROUND).real_ms)
            job.count = max(LEAST_IN_A_ROUND, min(MOST_IN_A_ROUND, round(1000 * ROUND_S / trial)))
            job.rounds.append([])
            job.transfers_ms.append([])
            if used_mib is not None and self._gpu is not None:
                job.gpu_mib = (gpu_memory_mib(self._gpu) or used_mib) - used_mib
        entry.warm_s.append(process.ask(Child.start_again, entry.candidate.make, self._first_chunk))  # memory is known
