"""Cases through real worker processes, a simple model in the place of the engine: whatever happens, none is lost."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import OutputError
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, WorkerConfig
from parotid_seg.runtime.pipeline.scheduler import Limits, Pipeline
from parotid_seg.runtime.pipeline.worker_pool import WorkerPool
from parotid_seg.runtime.segmentation.batching import Batcher
from tests.runtime.segmentation.test_batches import Threshold

pytestmark = pytest.mark.slow


TWO = Limits(workers=2, scan_bytes=1e9)


class Observed(Batcher[Any]):
    """Tells of every scan that is handed in."""

    def __init__(self, seen: Callable[..., None] = lambda worker: None) -> None:
        super().__init__(cast(Backend, Threshold()), 4)
        self.seen = seen
        self.workers: set[Any] = set()

    def add(self, key: Any, covered: Any) -> None:
        self.workers.add(key)
        super().add(key, covered)
        self.seen(key)


def work(out: Path, **options: Any) -> WorkerConfig:
    return WorkerConfig(out, Threshold().contract, ("model",), InferOptions(**options))


def run(
    out: Path,
    cases: list[Case],
    batches: Observed | None = None,
    limits: Limits = TWO,
    known: dict[str, Entry] | None = None,
    **options: Any,
) -> dict[str, CaseResult]:
    jobs = [CaseRequest(case, (known or {}).get(case.name)) for case in cases]
    with contextlib.closing(WorkerPool()) as pool:
        pipeline = Pipeline(work(out, **options), batches or Observed(), limits, pool)
        return {each.entry.case: each for each in pipeline.run(jobs)}


def check_masks(out: Path, cases: list[Case]) -> None:
    for case in cases:
        mask = np.asarray(nibabel.load(out / f"{case.name}.nii.gz").dataobj)
        scan = np.asarray(nibabel.load(case.scan[0]).dataobj)
        assert mask.shape == scan.shape
        assert np.mean(mask[scan > 0]) > 0.8
    assert not list(out.glob("**/.partial-*"))


def pid(worker: Any) -> int:
    return worker._process.pid


def test_all_cases_are_done_by_as_few_workers_as_are_needed(cases: list[Case], tmp_path: Path) -> None:
    batches = Observed()
    finished = run(tmp_path, cases, batches)
    assert {each.status for each in finished.values()} == {"done"}
    assert len(finished) == len(cases)
    assert 1 <= len(batches.workers) <= 2
    check_masks(tmp_path, cases)
    for each in finished.values():
        assert set(each.entry.seconds) == {"read", "segment", "write"}
        assert (tmp_path / "pictures" / f"{each.entry.case}.png").exists()


def test_a_worker_that_is_killed_is_replaced_and_its_case_done(cases: list[Case], tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_first(worker: Any) -> None:
        if not killed:
            killed.append(worker.job.case.name)
            os.kill(pid(worker), signal.SIGKILL)

    finished = run(tmp_path, cases, Observed(kill_first))
    assert {each.status for each in finished.values()} == {"done"}
    assert len(finished) == len(cases)
    assert killed
    check_masks(tmp_path, cases)


def test_a_case_that_kills_its_worker_twice_is_set_aside_and_the_others_are_done(
    cases: list[Case], tmp_path: Path
) -> None:
    def kill(worker: Any) -> None:
        if worker.job.case.name == "s1":
            os.kill(pid(worker), signal.SIGKILL)

    finished = run(tmp_path, cases, Observed(kill))
    assert finished["s1"].status == "failed"
    assert finished["s1"].entry.failure == (
        f"{cases[1].scan[0]}: set aside, tried twice: its process was killed, perhaps for want of memory"
    )
    others = [case for case in cases if case.name != "s1"]
    assert all(finished[case.name].status == "done" for case in others)
    check_masks(tmp_path, others)


def test_a_worker_that_hangs_is_replaced(cases: list[Case], tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop_first(worker: Any) -> None:
        if not stopped:
            stopped.append(worker)
            os.kill(pid(worker), signal.SIGSTOP)

    finished = run(tmp_path, cases[:3], Observed(stop_first), Limits(2, 1e9, slowest_s=3.0))
    assert stopped
    assert {each.status for each in finished.values()} == {"done"}
    check_masks(tmp_path, cases[:3])


def test_a_case_that_always_hangs_is_set_aside(cases: list[Case], tmp_path: Path) -> None:
    finished = run(
        tmp_path, cases[:1], Observed(lambda worker: os.kill(pid(worker), signal.SIGSTOP)), Limits(1, 1e9, slowest_s=1)
    )
    assert finished["s0"].entry.reason.endswith("tried twice: its process hung and was ended after 1 s")


def test_scans_that_fill_the_memory_are_done_one_at_a_time(cases: list[Case], tmp_path: Path) -> None:
    at_once = []

    def look(worker: object) -> None:
        at_once.append(len(pipeline._busy))

    with contextlib.closing(WorkerPool()) as pool:
        pipeline = Pipeline(work(tmp_path, pictures=False), Observed(look), Limits(workers=2, scan_bytes=1), pool)
        assert [each.status for each in pipeline.run(CaseRequest(case, None) for case in cases)] == ["done"] * len(
            cases
        )
    assert max(at_once) == 1


def test_an_output_folder_that_goes_stops_the_run_and_leaves_no_process(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def replace_by_a_file(_worker: object) -> None:
        if not out.exists():
            out.write_text("in the way")

    batches = Observed(replace_by_a_file)
    with pytest.raises(OutputError, match="pictures: the folder cannot be made"):
        run(out, cases, batches)
    for worker in batches.workers:
        assert worker._process.returncode is not None


def test_workers_end_when_the_run_is_given_up(cases: list[Case], tmp_path: Path) -> None:
    batches = Observed()
    with contextlib.closing(WorkerPool()) as pool:
        next(Pipeline(work(tmp_path), batches, TWO, pool).run(CaseRequest(case, None) for case in cases))
    assert all(worker._process.returncode is not None for worker in batches.workers)


def test_a_worker_more_is_started_when_the_engine_waits(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers held up for a moment while one scan is already through."""
    monkeypatch.setattr("parotid_seg.runtime.pipeline.scheduler.STARVED_S", 0.3)
    held: list[Any] = []

    def hold(worker: Any) -> None:
        if len(held) < 2:
            held.append(worker)
            os.kill(pid(worker), signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (pid(worker), signal.SIGCONT)).start()

    batches = Observed(hold)
    finished = run(tmp_path, cases, batches, Limits(3, 1e9))
    assert len(finished) == len(cases)
    assert len(batches.workers) == 3


def test_beside_a_gpu_all_workers_start_at_once(cases: list[Case], tmp_path: Path) -> None:
    batches = Observed(lambda _: None)
    run(tmp_path, cases[:3], batches, Limits.of_machine(3, "cuda:0"))
    assert len(batches.workers) == 3
    assert Limits.of_machine(3, "cpu").first_workers == 2


def test_a_worker_does_not_outlive_the_run(tmp_path: Path, cases: list[Case]) -> None:
    """Killed with the main process, whatever it was doing: nothing is written into the folder afterwards."""
    import subprocess
    import sys

    program = (
        "import sys, time, os, signal\n"
        "from tests.runtime.pipeline.test_pipeline import *\n"
        "from pathlib import Path\n"
        "cases = [Case('s', (Path(sys.argv[2]),))]\n"
        "def hold(worker):\n"
        "    print(pid(worker), flush=True); time.sleep(60)\n"
        "run(Path(sys.argv[1]), cases, Observed(hold))\n"
    )
    main = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(cases[0].scan[0])], stdout=subprocess.PIPE, text=True
    )
    worker = int(main.stdout.readline())
    main.kill()
    main.wait()
    for _ in range(50):
        time.sleep(0.1)
        if not _alive(worker):
            return
    pytest.fail("the worker lives on")


def _alive(process: int) -> bool:
    try:
        return "State:\tZ" not in open(f"/proc/{process}/status").read()  # noqa: PTH123
    except FileNotFoundError:
        return False
