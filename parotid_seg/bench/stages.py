"""A scan from file to mask, stage by stage, by the same code that `parotid-seg infer` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parotid_seg.errors import ScanError
from parotid_seg.runtime.backend import Backend
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.cases import Case
from parotid_seg.runtime.messages import Work
from parotid_seg.runtime.sources import Scan
from parotid_seg.runtime.transaction import do_case
from parotid_seg.scan.chunks import Covered, cut
from parotid_seg.scan.volume import Mask

STAGES = ("read", "cut", "to device", "compute", "from device", "join", "write")
"""read: file, orientation, what the grid covers. cut, join: chunks and their labels on the host. write: clean-up,
picture, mask."""


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
        batch_size: looks at once.
        folder: for mask and picture.

    Raises:
        ScanError: if it cannot be segmented.
    """
    spent = dict.fromkeys(STAGES, 0.0)

    def ask(covered: Covered) -> Labelled:
        begun = time.perf_counter()
        labels: Mask = np.zeros(covered.voxels.shape[1:], np.uint8)
        chunks = cut(covered, backend.contract.grid, batch_size)
        while True:
            before = time.perf_counter()
            chunk = next(chunks, None)
            spent["cut"] += time.perf_counter() - before
            if chunk is None:
                return Labelled(labels, {}, time.perf_counter() - begun)
            output, times = backend.timed(chunk.inputs)
            for stage, seconds in zip(("to device", "compute", "from device"), times, strict=True):
                spent[stage] += seconds
            before = time.perf_counter()
            labels[chunk.slices] = output
            spent["join"] += time.perf_counter() - before

    work = Work(folder, backend.contract, decides=(), overwrite=True, views=True)
    begun = time.perf_counter()
    status, entry = do_case(work, Case("scan", scan), None, ask)
    whole_s = time.perf_counter() - begun
    if status != "done":
        raise ScanError(entry.reason, path=entry.path)
    spent["read"], spent["write"] = entry.seconds["read"], entry.seconds["write"]
    (folder / entry.mask).unlink()
    return Stages(spent, whole_s)
