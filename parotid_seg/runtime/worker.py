"""The program of a worker process: cases from scan to mask, one after the other, labels asked of the main process."""

from __future__ import annotations

import contextlib
import pickle

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.messages import Finished, Job, Stopped, Work
from parotid_seg.runtime.pipes import ends, send
from parotid_seg.runtime.transaction import do_case
from parotid_seg.scan.chunks import Covered


def main() -> None:
    """Serve until the standard input ends."""
    requests, answers = ends()

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
