"""The program of a worker process: runs cases one after the other, with labels from the main process."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import IO, cast

from parotid_seg.errors import MachineError, OutputError
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.protocol.answers import send_answer
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, PutOff, WorkerConfig
from parotid_seg.runtime.pipeline.protocol.requests import next_request
from parotid_seg.runtime.pipeline.protocol.worker_stdio import ends
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan

for _used_later in ("scipy.ndimage", "parotid_seg.metrics", "parotid_seg.runtime.formats.nifti_output"):
    importlib.import_module(_used_later)  # by every case; a worker imports it while the model is loaded


def _hush_libraries() -> None:
    """Suppress messages of decoders in C on damaged files; Python's output still goes to standard error."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def main() -> None:
    """Serve until the standard input ends."""
    requests, answers = ends()
    _hush_libraries()
    with contextlib.suppress(EOFError, BrokenPipeError):
        work = cast(WorkerConfig, next_request(requests))
        while True:
            job = cast(CaseRequest, next_request(requests))
            send_answer(_do(work, job, requests, answers), work, job, answers)


def _do(
    work: WorkerConfig, job: CaseRequest, requests: IO[bytes], answers: IO[bytes]
) -> CaseResult | PutOff | OutputFailure:
    def ask(cropped: CroppedScan) -> Prediction:
        send_answer(cropped, work, job, answers)
        return cast(Prediction, next_request(requests))

    try:
        return CaseResult(*run_case(work, job.case, job.known, ask))
    except MachineError as error:
        return PutOff(error.reason)
    except OutputError as error:
        return OutputFailure(str(error))
