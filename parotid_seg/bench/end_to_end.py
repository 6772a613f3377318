"""From scan files to mask files: whole runs of `infer`, and scans alone, stage by stage."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parotid_seg.bench.child import Child
from parotid_seg.bench.engine_process import EngineProcess
from parotid_seg.bench.scan_stages import STAGES
from parotid_seg.bench.turns import LeaveOut, Turns
from parotid_seg.errors import ParotidSegError
from parotid_seg.files import scratch_folder
from parotid_seg.runtime.pipeline.sources import Scan
from parotid_seg.scan.other_formats import files_of_image
from parotid_seg.wording import Progress

RUNS, SCANS_PER_RUN = 3, 8
"""Runs of `parotid-seg infer` with each engine, which take turns, and least scans of each run."""


@dataclass(frozen=True)
class EndToEnd:
    """Results with the batch size that gives the most slices per second.

    Attributes:
        batch_size: samples at once.
        scans: how many a run of `parotid-seg infer` had.
        scans_s: seconds per scan in each run, its model loaded beforehand.
        scans_a_second: by the median of them.
        alone_s: mean seconds of a scan with nothing beside it, from its file to its mask.
        stages_s: the same by stage.
        explained: sum of the stages over the whole.
    """

    batch_size: int
    scans: int
    scans_s: tuple[float, ...]
    scans_a_second: float
    alone_s: float
    stages_s: dict[str, float]
    explained: float


def end_to_end(
    turns: Turns, running: Mapping[str, EngineProcess], scans: Sequence[Scan], progress: Progress
) -> dict[str, EndToEnd]:
    """Measure the engines that take part; of one that fails only the whole runs are left out.

    Args:
        turns: the engines and their results so far.
        running: their processes.
        scans: what to segment, more than once if they are few.
        progress: called with the phase, and the number of its steps that are done and of all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns.entries}
    with scratch_folder() as folder:
        count = _gathered(scans, folder)
        for number in range(RUNS):
            progress("whole runs", number, RUNS)
            for name in list(seconds):
                with _left_out_if_failing(name, seconds, turns.leave_out):
                    took = running[name].ask(Child.infer, folder, turns.entries[name].best_size)
                    seconds[name].append(took / count)
    results = {}
    for number, name in enumerate(list(seconds)):
        progress("scans alone", number, len(seconds))
        with _left_out_if_failing(name, seconds, turns.leave_out):
            size = turns.entries[name].best_size
            asked = [scans[0], *_some(scans)]  # the first is to warm up
            _, *stages = running[name].ask(Child.stages, asked, size)
            whole_s = float(np.mean([each.whole_s for each in stages]))
            stages_s = {stage: float(np.mean([each.seconds[stage] for each in stages])) for stage in STAGES}
            results[name] = EndToEnd(
                batch_size=size,
                scans=count,
                scans_s=tuple(seconds[name]),
                scans_a_second=1 / statistics.median(seconds[name]),
                alone_s=whole_s,
                stages_s=stages_s,
                explained=sum(stages_s.values()) / whole_s,
            )
    return results


@contextlib.contextmanager
def _left_out_if_failing(name: str, seconds: dict[str, list[float]], leave_out: LeaveOut) -> Iterator[None]:
    """Measure no further whole runs of an engine of which one fails, and report the reason."""
    try:
        yield
    except ParotidSegError as error:
        leave_out(f"whole runs of {name}", str(error))
        del seconds[name]


def _some(scans: Sequence[Scan]) -> list[Scan]:
    """`SCANS_PER_RUN` scans, some of them more than once if there are not enough."""
    return [scans[number % len(scans)] for number in range(SCANS_PER_RUN)]


def _gathered(scans: Sequence[Scan], folder: Path) -> int:
    """Put scans into a folder, at least `SCANS_PER_RUN` of them; returns how many.

    Scans are linked. Repeated ones are copied, because `infer` takes each file once, as are all where links fail.
    """
    many = scans if len(scans) > SCANS_PER_RUN else _some(scans)
    for number, scan in enumerate(many):
        place = folder / f"{number:04d}"
        place.mkdir()
        for source in scan:
            assert isinstance(source, Path)  # see `selection.scans_for`
            for path in files_of_image(source):
                target = place / path.name
                if number < len(scans):
                    with contextlib.suppress(OSError):
                        target.symlink_to(path)
                if not target.is_symlink():
                    shutil.copyfile(path, target)
    return len(many)
