"""The program of a worker process: cases from scan to mask, one after the other, labels asked of the main process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.messages import Finished, Job, Stopped, Work, send
from parotid_seg.runtime.transaction import do_case
from parotid_seg.scan.chunks import Covered

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal to get when the parent dies."""


def main() -> None:
    """Serve until the standard input ends."""
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
