"""Processes that read scans and write masks beside the one that runs the model, seen from there.

Whatever a damaged file does to such a process, it costs one case.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import threading
import time
from dataclasses import dataclass

from parotid_seg.errors import ScanError
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.messages import Finished, Job, Stopped, Work
from parotid_seg.runtime.pipes import cause, command_of, send
from parotid_seg.scan.chunks import Covered

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker's products are tiny, and the cores are the engine's."""


@dataclass(frozen=True)
class Died:
    """The worker is gone, and why."""

    reason: str


Event = tuple["Worker", Covered | Finished | Stopped | Died]


class _EndOfMessages:
    """Put among a worker's messages, it ends the thread that sends them."""


class Worker:
    """The main process's end of a worker, which starts at once and waits for `begin`.

    Args:
        events: gets what the worker says.

    Attributes:
        job: what it is at; None if it waits for a job.
        since: when it last got something to do (monotonic seconds); None while it waits for the main process.
    """

    def __init__(self, events: queue.SimpleQueue[Event]) -> None:
        self.job: Job | None = None
        self.since: float | None = None
        self._events = events
        self._letters: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._killed_for = ""
        self._process = subprocess.Popen(
            command_of("parotid_seg.runtime.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
        )
        self._thread = threading.Thread(target=self._converse, daemon=True)
        self._thread.start()

    def begin(self, work: Work) -> None:
        """Tell it what all cases have in common; once, before the first case."""
        self._letters.put(work)

    def give(self, job: Job) -> None:
        """Hand it a case."""
        self.job = job
        self._say(job)

    def answer(self, answer: Labelled | ScanError) -> None:
        """Hand it the labels that it asked for, or why there are none."""
        self._say(answer)

    def kill(self, reason: str = "") -> None:
        """End the process at once; its `Died` will give this reason."""
        self._killed_for = reason
        self._process.kill()
        self._letters.put(_EndOfMessages())  # the thread may be waiting for a message

    def wait(self) -> None:
        """Until the process is gone, its pipes are closed and its thread has ended."""
        self._process.wait()
        self._thread.join()

    def _say(self, message: object) -> None:
        self.since = time.monotonic()
        self._letters.put(message)

    def _converse(self) -> None:
        """In a thread of its own, so that nobody else waits for this worker."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            send(self._next_message(), stdin)
            while True:
                send(self._next_message(), stdin)
                message = pickle.load(stdout)
                self.since = None
                self._events.put((self, message))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._process.kill()
            status = self._process.wait()
            with contextlib.suppress(OSError):
                stdin.close()
            stdout.close()
            self._events.put((self, Died(self._killed_for or cause(status))))

    def _next_message(self) -> object:
        """What to send next. Raises EOFError once the worker is to end."""
        message = self._letters.get()
        if isinstance(message, _EndOfMessages):
            raise EOFError
        return message


class Crew:
    """Workers. The first process starts with it, to be ready when the model is.

    Attributes:
        events: what workers say.
    """

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._all = [Worker(self.events)]
        self._spare = list(self._all)

    def hire(self, work: Work) -> Worker:
        """A worker for cases."""
        if not self._spare:
            self._spare.append(Worker(self.events))
            self._all += self._spare
        worker = self._spare.pop()
        worker.begin(work)
        return worker

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._all:
            worker.kill()
        for worker in self._all:
            worker.wait()
