"""A machine without open files, processes or memory to spare: cases are put off, and no scan is blamed."""

import errno
import os
import resource
import subprocess
import threading
from pathlib import Path
from typing import Any

import nibabel
import pytest

from parotid_seg.errors import EXHAUSTED, MachineError, system_reason
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.node.segmenting import segment_with
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline import case_runner
from parotid_seg.runtime.pipeline import scheduler as pipeline
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.discovery import Case
from tests.dicom_example import write_image
from tests.runtime.pipeline.test_pipeline import check_masks, run, work

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("started_workers")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PUT_OFF_S", (0.1, 0.1, 0.1))


@pytest.mark.parametrize("number", sorted(EXHAUSTED))
def test_what_the_machine_lacks_is_no_reason_against_a_file(number: int) -> None:
    with pytest.raises(MachineError, match="nothing is wrong with the scan"):
        system_reason(OSError(number, os.strerror(number)))
    assert system_reason(OSError(errno.EACCES, "Permission denied")) == "Permission denied"


@pytest.mark.parametrize("where", ["hash_source", "read_for_model"])
def test_a_worker_that_cannot_open_a_file_puts_the_case_off(
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "s0.nii.gz")

    monkeypatch.setattr(case_runner, where, exhausted)
    with pytest.raises(MachineError, match="Too many open files"):
        run_case(work(tmp_path), cases[0], None, lambda covered: pytest.fail("it was read"))


def test_workers_that_cannot_be_started_at_first(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    real, tries = subprocess.Popen, []

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    finished = run(tmp_path, cases[:2], pictures=False)
    assert {each.status for each in finished.values()} == {"done"}
    check_masks(tmp_path, cases[:2])


def test_workers_that_can_never_be_started(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    def popen(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", popen)
    finished = run(tmp_path, cases[:2], pictures=False)
    assert [(each.status, each.machine) for each in finished.values()] == [("failed", True)] * 2
    assert finished["s0"].entry.reason == (
        "set aside, run it again: this machine has run out of something (Too many open files); "
        "nothing is wrong with the scan"
    )


def test_threads_that_cannot_be_started_at_first(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    real, tries = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        tries.append(thread)
        if len(tries) < 3:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    finished = run(tmp_path, cases[:1], pictures=False)
    assert finished["s0"].status == "done"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc, which is Linux's")
def test_no_descriptor_is_left_for_a_while(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PUT_OFF_S", (0.2, 0.8, 15.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    timer = threading.Timer(0.5, resource.setrlimit, (resource.RLIMIT_NOFILE, (soft, hard)))
    timer.start()
    try:
        finished = run(tmp_path, cases[:2], pictures=False)
    finally:
        timer.join()
    assert {each.status for each in finished.values()} == {"done"}
    check_masks(tmp_path, cases[:2])


def test_the_node_puts_such_a_series_off(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """`segment_with` raises what `node.work` puts off, instead of a reason of failure."""
    segment = segment_with(load_backend(DEFAULT_MODEL, "onnxruntime"))
    write_image(tmp_path / "scans", nibabel.load(cases[0].scan[0]))

    def popen(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(MachineError, match="Too many open files"):
        segment(tmp_path / "scans", tmp_path / "out")
