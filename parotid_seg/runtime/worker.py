"""The program of a worker process: cases from scan to mask, one after the other, labels asked of the main process."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.messages import Finished, Job, Stopped, Work
from parotid_seg.runtime.pipes import ends, send
from parotid_seg.runtime.transaction import do_case
from parotid_seg.scan.chunks import Covered


def _hush_libraries() -> None:
    """Have no decoder in C print what it thinks of a damaged file; what Python prints still gets to standard error."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def main() -> None:
    """Serve until the standard input ends."""
    requests, answers = ends()
    _hush_libraries()

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
