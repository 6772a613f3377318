"""Processes that read scans and write masks beside the one that runs the model, a case at a time.

Whatever a damaged file does to such a process, it costs one case. The conversation is strictly by turns: the main
process sends a `Job`; the worker answers with a `Covered` if the model is needed, gets a `Labelled` or a `ScanError`
for it, and ends with `Finished` or `Stopped`. Messages are pickled; nothing but numbers and texts of ours goes through
the pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.cases import Case
from parotid_seg.runtime.journal import Entry
from parotid_seg.runtime.transaction import Work, do_case
from parotid_seg.scan.chunks import Covered

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal to get when the parent dies."""
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); import parotid_seg; del sys.path[0]; "
    "from parotid_seg.runtime.worker import main; main()"
)
"""The worker uses the package that the main process does, and nothing else from its folder or the current one."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker's products are tiny, and the cores are the engine's."""


@dataclass(frozen=True)
class Job:
    """A case to do, and what the journal has of it."""

    case: Case
    known: Entry | None


@dataclass(frozen=True)
class Finished:
    """How a case ended: see `transaction.do_case`."""

    status: str
    entry: Entry


@dataclass(frozen=True)
class Stopped:
    """Results cannot be written, so no case can be done."""

    message: str


@dataclass(frozen=True)
class Died:
    """The worker is gone, and why."""

    reason: str


Event = tuple["Worker", Covered | Finished | Stopped | Died]


class Worker:
    """The main process's end of a worker.

    Args:
        work: what all cases have in common.
        events: gets what the worker says.

    Attributes:
        job: what it is at; None if it waits for a job.
        since: when it last got something to do (monotonic seconds); None while it waits for the main process.
    """

    def __init__(self, work: Work, events: queue.SimpleQueue[Event]) -> None:
        self.job: Job | None = None
        self.since: float | None = None
        self._events = events
        self._letters: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._killed_for = ""
        package = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
        )
        self._letters.put(work)
        threading.Thread(target=self._converse, daemon=True).start()

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

    def wait(self) -> None:
        """Until the process is gone."""
        self._process.wait()

    def _say(self, message: object) -> None:
        self.since = time.monotonic()
        self._letters.put(message)

    def _converse(self) -> None:
        """In a thread of its own, so that nobody else waits for this worker."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            send(self._letters.get(), stdin)
            while True:
                send(self._letters.get(), stdin)
                message = pickle.load(stdout)
                self.since = None
                self._events.put((self, message))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._process.kill()
            status = self._process.wait()
            with contextlib.suppress(OSError):
                stdin.close()
            stdout.close()
            self._events.put((self, Died(self._killed_for or _cause(status))))


def _cause(status: int) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed, perhaps for want of memory"
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def main() -> None:
    """The worker: serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages

    def ask(covered: Covered) -> Labelled:
        send(covered, answers)
        answer: Labelled | ScanError = pickle.load(requests)
        if isinstance(answer, ScanError):
            raise answer
        return answer

    with contextlib.suppress(EOFError, BrokenPipeError):
        work: Work = pickle.load(requests)
        while True:
            job: Job = pickle.load(requests)
            try:
                send(Finished(*do_case(work, job.case, job.known, ask)), answers)
            except OutputError as error:
                send(Stopped(str(error)), answers)


def send(message: object, stream: IO[Any]) -> None:
    """Write a message."""
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()
