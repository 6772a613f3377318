"""Schedules cases over workers and the model: reading, computing and writing overlap, and no case is lost."""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from parotid_seg.errors import MachineError, OutputError
from parotid_seg.runtime.pipeline.protocol.messages import (
    CaseRequest,
    CaseResult,
    OutputFailure,
    PutOff,
    WorkerConfig,
    failed,
)
from parotid_seg.runtime.pipeline.sources import voxels_of
from parotid_seg.runtime.pipeline.worker_pool import Event, Worker, WorkerDied, WorkerPool
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.scan.chunks import CroppedScan
from parotid_seg.system import available_cores, memory_bytes

log = logging.getLogger(__name__)

FIRST_WORKERS = 2
"""Workers at the start if the model needs the same cores: one reads while the other writes; more are started only if
the engine waits for them."""
MOST_WORKERS = 16
"""Most workers by default. More processes would only wait for the disk."""
STARVED_S = 0.5
"""One more worker is started whenever the engine has waited so many seconds in total."""
BYTES_PER_VOXEL = 12
"""A worker's memory for a scan, per voxel: the file's bytes, its voxels before and after reordering, and masks."""
MEMORY_SHARE = 0.25
"""Share of the machine's memory for scans in work."""
SLOWEST_S = 600.0
"""Seconds after which a worker that reads or writes one scan counts as hung."""
TICK_S = 0.25
"""Seconds between checks of workers while there is nothing else to do."""
PUT_OFF_S = (1.0, 4.0, 15.0)
"""Seconds until a case is tried again that was postponed because a resource of the machine was exhausted."""


@dataclass(frozen=True)
class Limits:
    """Limits on concurrent work.

    Attributes:
        workers: most processes that read and write.
        scan_bytes: memory for all scans in work; a single larger one runs alone.
        slowest_s: most seconds that a worker may read or write one scan.
        first_workers: processes at the start.
    """

    workers: int
    scan_bytes: float
    slowest_s: float = SLOWEST_S
    first_workers: int = FIRST_WORKERS

    @classmethod
    def of_machine(cls, workers: int | None, device: str) -> Limits:
        """Limits for this machine, with at most `workers` processes beside a model on a device.

        A GPU leaves the cores to the workers, so that all start at once.
        """
        most = workers or min(max(FIRST_WORKERS, available_cores()), MOST_WORKERS)
        first = most if device.startswith("cuda") else FIRST_WORKERS
        return cls(most, MEMORY_SHARE * memory_bytes(), first_workers=first)


@dataclass(frozen=True)
class _Attempt:
    """A case in work or still to run.

    Attributes:
        job: the case, and the journal's entry of it.
        voxels: of its scan, by the header.
        alone: whether no other case may run meanwhile, because its worker died or a resource was exhausted.
        deaths: number of workers that died with it.
        put_off: how often it was postponed.
        due: when it can be tried again (monotonic seconds).
    """

    job: CaseRequest
    voxels: int = 0
    alone: bool = False
    deaths: int = 0
    put_off: int = 0
    due: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory that it needs."""
        return BYTES_PER_VOXEL * self.voxels


class Pipeline:
    """Runs cases.

    Args:
        work: their common configuration.
        batches: the model.
        limits: see `Limits`.
        worker_pool: starts workers.
    """

    def __init__(self, work: WorkerConfig, batches: Batcher[Worker], limits: Limits, worker_pool: WorkerPool) -> None:
        self._work, self._batches, self._limits, self._worker_pool = work, batches, limits, worker_pool
        self._at_work: dict[Worker, _Attempt | None] = {}
        self._again: deque[_Attempt] = deque()
        self._wanted = min(limits.first_workers, limits.workers)
        self._starved_s = 0.0
        self._served = False

    def run(self, jobs: Iterable[CaseRequest]) -> Iterator[CaseResult]:
        """Run the cases; they finish in any order.

        A case whose worker dies or hangs is tried once more, alone, and fails if that happens again. If a resource of
        the machine is exhausted, such as open files, or the process that starts workers has ended, a case is postponed,
        and fails after some time.

        Raises:
            OutputError: if results cannot be written.
        """
        waiting = deque(jobs)
        while waiting or self._again or self._busy:
            yield from self._hand_out(waiting)
            for worker, answer in self._batches.step():
                if worker in self._at_work:
                    worker.answer(answer)
            yield from self._listen(bool(waiting))

    @property
    def _busy(self) -> list[_Attempt]:
        return [attempt for attempt in self._at_work.values() if attempt]

    def _hand_out(self, waiting: deque[CaseRequest]) -> Iterator[CaseResult]:
        """Give cases to idle workers, as far as memory allows; yields those postponed too often."""
        while waiting or self._again:
            idle = self._idle_worker()
            if idle is None and len(self._at_work) >= self._wanted:
                return
            attempt = self._again[0] if not waiting else _Attempt(waiting[0])
            if attempt.due > time.monotonic():
                return
            try:
                attempt = replace(attempt, voxels=voxels_of(attempt.job.case.scan))
                if self._busy and not self._has_room(attempt):
                    return
                worker = idle or self._worker_pool.start_worker(self._work)
            except MachineError as error:
                if not self._busy:  # else try again when another case has ended
                    (waiting or self._again).popleft()
                    yield from self._put_off(attempt, error.reason)
                return
            (waiting or self._again).popleft()
            self._at_work[worker] = attempt
            log.info("%s: a worker reads its %d voxels", attempt.job.case.name, attempt.voxels)
            worker.give(attempt.job, attempt.voxels)

    def _idle_worker(self) -> Worker | None:
        """A worker without a case. Those that have ended are dropped: a case's own failures count, not theirs."""
        for worker in [worker for worker, attempt in self._at_work.items() if attempt is None]:
            if not worker.has_ended:
                return worker
            worker.kill()
            del self._at_work[worker]
        return None

    def _has_room(self, attempt: _Attempt) -> bool:
        """Whether a case can run beside those in work."""
        alone = attempt.alone or any(each.alone for each in self._busy)
        return not alone and sum(each.bytes for each in self._busy) + attempt.bytes <= self._limits.scan_bytes

    def _listen(self, more: bool) -> Iterator[CaseResult]:
        """Handle events of workers; wait for one if the model has nothing to do.

        Args:
            more: whether there are cases that have not been started.
        """
        begun = time.monotonic()
        idle = not self._batches.busy
        try:
            event: Event | None = (
                self._worker_pool.events.get(timeout=TICK_S) if idle else self._worker_pool.events.get_nowait()
            )
        except queue.Empty:
            event = None
        if idle and more and self._served:
            self._starve(time.monotonic() - begun)
        while event:
            yield from self._take(*event)
            try:
                event = self._worker_pool.events.get_nowait()
            except queue.Empty:
                event = None
        self._watch()

    def _take(
        self, worker: Worker, event: CroppedScan | CaseResult | PutOff | OutputFailure | WorkerDied
    ) -> Iterator[CaseResult]:
        if isinstance(event, CroppedScan):
            self._served = True
            if attempt := self._at_work[worker]:
                count = "all" if event.samples is None else len(event.samples)
                log.info("%s: the model computes %s samples", attempt.job.case.name, count)
            self._batches.add(worker, event)
        elif isinstance(event, CaseResult):
            self._at_work[worker] = None
            yield event
        elif isinstance(event, PutOff):
            attempt, self._at_work[worker] = self._at_work[worker], None
            if attempt:
                yield from self._put_off(attempt, event.reason)
        elif isinstance(event, OutputFailure):
            raise OutputError(event.message)
        else:
            attempt = self._at_work.pop(worker, None)
            if attempt and event.machine:
                yield from self._put_off(attempt, event.reason)
            elif attempt and (event.invalid or attempt.deaths):
                tries = "" if event.invalid else ", tried twice"
                yield CaseResult("failed", failed(attempt.job.case, f"set aside{tries}: {event.reason}"))
            elif attempt:
                log.info("%s: %s; it is tried once more, alone", attempt.job.case.name, event.reason)
                self._again.append(replace(attempt, alone=True, deaths=1))

    def _put_off(self, attempt: _Attempt, reason: str) -> Iterator[CaseResult]:
        """Postpone a case, or let it fail if it was postponed too often."""
        if attempt.put_off == len(PUT_OFF_S):
            yield CaseResult("failed", failed(attempt.job.case, f"set aside, run it again: {reason}"), machine=True)
            return
        log.info("%s: postponed by %g s: %s", attempt.job.case.name, PUT_OFF_S[attempt.put_off], reason)
        due = time.monotonic() + PUT_OFF_S[attempt.put_off]
        self._again.append(replace(attempt, alone=True, put_off=attempt.put_off + 1, due=due))

    def _starve(self, seconds: float) -> None:
        """Called after the engine waited: start one more worker if all are busy and the total wait is long enough."""
        self._starved_s += seconds
        if self._starved_s > STARVED_S and all(self._at_work.values()):
            self._starved_s = 0.0
            self._wanted = min(self._wanted + 1, self._limits.workers)
            log.info("the model waits for scans: up to %d workers read and write now", self._wanted)

    def _watch(self) -> None:
        """End workers that hang."""
        for worker in self._at_work:
            since = worker.since
            if since is not None and time.monotonic() - since > self._limits.slowest_s:
                worker.kill(f"its process hung and was ended after {self._limits.slowest_s:g} s")
