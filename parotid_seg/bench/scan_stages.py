"""A scan from file to mask, stage by stage, by the same code that `parotid-seg infer` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import ScanError
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.protocol.messages import WorkerConfig
from parotid_seg.runtime.pipeline.sources import Scan
from parotid_seg.runtime.segmentation.segment import asking
from parotid_seg.scan.chunks import Inputs

STAGES = ("read", "cut and join", "to device", "compute", "from device", "write")
"""read: file and orientation. cut and join: search for the structures, cutting into chunks and joining their labels, on
the host. write: clean-up, picture, mask."""


class _Timed(Backend):
    """A backend that takes one chunk after the other and adds up its times.

    Attributes:
        seconds: of each stage so far.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.contract, self.model_sha256, self.ran = backend.contract, backend.model_sha256, backend.ran
        self.batch_size, self.largest_batch = backend.batch_size, backend.largest_batch
        self.seconds = dict.fromkeys(("to device", "compute", "from device"), 0.0)

    def fits(self, inputs: Inputs) -> bool:
        return self._backend.fits(inputs)

    def start(self, inputs: Inputs) -> Done:
        output, times = self._backend.timed(inputs)
        for stage, seconds in zip(self.seconds, times, strict=True):
            self.seconds[stage] += seconds
        return Done(output)


@dataclass(frozen=True)
class Stages:
    """A scan from file to mask with nothing beside it.

    Attributes:
        seconds: by stage, in order.
        whole_s: from beginning to end by one clock.
    """

    seconds: dict[str, float]
    whole_s: float


def staged(backend: Backend, scan: Scan, batch_size: int, folder: Path) -> Stages:
    """Segment a scan with nothing beside it.

    Args:
        backend: the loaded model.
        scan: its files.
        batch_size: samples at once.
        folder: for mask and picture.

    Raises:
        ScanError: if it cannot be segmented.
    """
    backend.batch_size = batch_size
    timed = _Timed(backend)
    work = WorkerConfig(folder, backend.contract, fingerprint=(), options=InferOptions(overwrite=True))
    begun = time.perf_counter()
    status, entry = run_case(work, Case("scan", scan), None, asking(timed, batch_size))
    whole_s = time.perf_counter() - begun
    if status != "done":
        raise ScanError(entry.reason, path=entry.path)
    on_host = entry.seconds["segment"] - sum(timed.seconds.values())
    spent = {"read": entry.seconds["read"], "cut and join": on_host, **timed.seconds, "write": entry.seconds["write"]}
    (folder / entry.mask).unlink()
    return Stages(spent, whole_s)
