"""Manages worker processes, which read scans and write masks beside the main process with the model.

A damaged or hostile file can cost at most one case: answers of a worker are checked, see `answers`, and a worker with
an invalid answer is ended.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
import time
import traceback
from dataclasses import dataclass

from parotid_seg.errors import MachineError, ScanError
from parotid_seg.runtime.pipeline.protocol.answers import Question, next_answer
from parotid_seg.runtime.pipeline.protocol.framing import ProtocolError
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, PutOff, WorkerConfig
from parotid_seg.runtime.pipeline.protocol.requests import send_request
from parotid_seg.runtime.pipeline.protocol.worker_stdio import cause
from parotid_seg.runtime.pipeline.worker_process import WorkerProcess, WorkerStarter
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan


@dataclass(frozen=True)
class WorkerDied:
    """The worker is gone.

    Attributes:
        reason: why.
        invalid: whether it was ended because of an answer that is not valid; its case is not tried again then.
        machine: whether its case has nothing to do with it: the process that starts workers has ended.
    """

    reason: str
    invalid: bool = False
    machine: bool = False


Event = tuple["Worker", CroppedScan | CaseResult | PutOff | OutputFailure | WorkerDied]


_Request = WorkerConfig | CaseRequest | Prediction | ScanError


class Worker:
    """The main process's end of a worker, which starts at once and waits for `begin`.

    Args:
        events: queue for the worker's answers.
        process: its process, which the worker then owns.

    Attributes:
        job: its present case; None if it is idle.
        since: when it last got a request (monotonic seconds); None while it waits for the main process.

    Raises:
        MachineError: if the machine has no room for another thread.
    """

    def __init__(self, events: queue.SimpleQueue[Event], process: WorkerProcess) -> None:
        self.job: CaseRequest | None = None
        self.since: float | None = None
        self._events = events
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._work: WorkerConfig | None = None
        self._voxels = 0
        self._killed_for = ""
        self._labelled = 0
        self._process, self._connection = process.process, process.connection
        self._thread = threading.Thread(target=self._converse, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no room for another thread
            process.close()
            raise MachineError.of(OSError(errno.EAGAIN, str(error))) from error

    def begin(self, work: WorkerConfig) -> None:
        """Send the configuration of all cases; once, before the first case."""
        self._work = work
        self._requests.put(work)

    def give(self, job: CaseRequest, voxels: int) -> None:
        """Send a case to the worker.

        Args:
            job: the case.
            voxels: of its scan, by the header; the worker cannot send more.
        """
        self.job, self._voxels = job, voxels
        self._say(job)

    def answer(self, answer: Prediction | ScanError) -> None:
        """Send the requested labels to the worker, or the reason why there are none."""
        self._say(answer)

    @property
    def has_ended(self) -> bool:
        """Whether an idle worker's process has ended."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self, reason: str = "") -> None:
        """End the process at once; its `WorkerDied` will give this reason."""
        self._killed_for = reason
        self._process.kill()
        self._requests.put(None)  # the thread may be waiting for a request
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # or for an answer; another process may still hold it

    def wait(self) -> None:
        """Wait until the process is gone, its connection is closed and its thread has ended."""
        self._thread.join()

    def _say(self, request: _Request) -> None:
        self.since = time.monotonic()
        self._requests.put(request)

    def _converse(self) -> None:
        """Exchange messages with the worker; runs in a separate thread, so that nothing else waits for this worker."""
        invalid = ""
        requests, answers = self._connection.makefile("wb"), self._connection.makefile("rb")
        try:
            send_request(self._next_request(), requests)
            while True:
                request = self._next_request()
                question = self._question_of(request)
                send_request(request, requests)
                answer = next_answer(answers, question)
                self.since = None
                self._events.put((self, answer))
        except ProtocolError as error:
            invalid = f"its process was ended because of an answer that is not valid: {error}"
        except MemoryError:
            self._killed_for = self._killed_for or "there is not enough memory for what its process sends"
        except (OSError, EOFError):
            pass
        except Exception as error:  # a bug; without an event the run would wait for ever
            traceback.print_exc()
            invalid = f"unexpected {type(error).__name__} while handling its process' answer"
        died = WorkerDied("its process has ended")
        try:
            self._process.kill()
            died = self._end_of_process()
            for each in (requests, answers, self._connection):
                with contextlib.suppress(OSError):
                    each.close()
        finally:
            known = self._killed_for or invalid
            self._events.put((self, WorkerDied(known, invalid=bool(invalid)) if known else died))

    def _end_of_process(self) -> WorkerDied:
        """Wait for the end of the process; why it ended."""
        try:
            return WorkerDied(cause(self._process.wait()))
        except MachineError as error:
            return WorkerDied(error.reason, machine=True)

    def _question_of(self, request: _Request) -> Question:
        assert self._work is not None
        assert self.job is not None
        self._labelled = 0 if isinstance(request, CaseRequest) else self._labelled + 1
        return Question(self._work, self.job, self._voxels, self._labelled)

    def _next_request(self) -> _Request:
        """The next request. Raises EOFError when the worker should end."""
        request = self._requests.get()
        if request is None:
            raise EOFError
        return request


class WorkerPool:
    """Workers. The first is started in advance, to be ready with the model; if that fails, `start_worker` retries.

    Args:
        starter: starts their processes, if there is one already; the pool then owns it.

    Attributes:
        events: queue of the workers' answers.
    """

    def __init__(self, starter: WorkerStarter | None = None) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._starter = starter
        self._all: list[Worker] = []
        with contextlib.suppress(MachineError):
            self._add()
        self._spare = list(self._all)

    def start_worker(self, work: WorkerConfig) -> Worker:
        """A worker for cases.

        Raises:
            MachineError: if the machine has no room for another process.
        """
        while self._spare and self._spare[-1].has_ended:
            self._spare.pop()
        worker = self._spare.pop() if self._spare else self._add()
        worker.begin(work)
        return worker

    def _add(self) -> Worker:
        self._starter = self._starter or WorkerStarter()
        worker = Worker(self.events, self._starter.start())
        self._all.append(worker)
        return worker

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._all:
            worker.kill()
        if self._starter:
            self._starter.close()
        for worker in self._all:
            worker.wait()
