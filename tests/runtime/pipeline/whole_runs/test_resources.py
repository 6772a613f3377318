"""What a run takes from the system it gives back: descriptors, threads and processes stay flat over many runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from tests.processes.held import held

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("started_workers")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc, which is Linux's")
def test_runs_leave_no_descriptor_thread_or_process_behind(tmp_path: Path) -> None:
    backend = load_backend(DEFAULT_MODEL, "onnxruntime")
    (tmp_path / "no_scan.nii").write_bytes(b"no scan")
    options = InferOptions(workers=2, pictures=False, report=False)

    def run(number: int) -> None:
        summary = infer([tmp_path / "no_scan.nii"], tmp_path / f"out{number}", lambda: backend, options)
        assert summary.failed == 1

    run(0)  # what is made once and kept
    before = held()
    for number in range(1, 3):
        run(number)
    assert held() == before
