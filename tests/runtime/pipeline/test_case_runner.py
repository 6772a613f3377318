"""A case by itself: whatever goes wrong with it is its own, and has a reason."""

from pathlib import Path
from typing import NoReturn

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline import case_runner
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.protocol.messages import WorkerConfig
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan
from tests.runtime.segmentation.test_batches import Threshold
from tests.scan.test_chunks import scan_at


@pytest.fixture
def case(tmp_path: Path) -> Case:
    path = tmp_path / "s.nii.gz"
    voxels = scan_at(70, 75).voxels[0]
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-2.4, -2.4, 3.0, 1.0])), path)
    return Case("s", (path,))


@pytest.fixture
def work(tmp_path: Path) -> WorkerConfig:
    (tmp_path / "out").mkdir()
    return WorkerConfig(tmp_path / "out", Threshold().contract, ("model",), InferOptions(pictures=False))


def everywhere(covered: CroppedScan) -> Prediction:
    return Prediction(np.ones(covered.voxels.shape[1:], np.uint8), {}, 0.5)


def test_done_and_done_before_and_undone_by_other_options(case: Case, work: WorkerConfig) -> None:
    status, entry = run_case(work, case, None, everywhere)
    assert status == "done"
    assert entry.seconds["segment"] == 0.5
    assert run_case(work, case, entry, everywhere) == ("skipped", entry)
    other = WorkerConfig(work.out, work.contract, ("another model",), InferOptions(pictures=False))
    assert run_case(other, case, entry, everywhere)[0] == "done"
    assert run_case(work, Case("s", case.scan), None, everywhere)[1].key == entry.key
    assert (work.settings == entry.settings) != (other.settings == entry.settings)


def test_a_scan_for_which_there_is_not_enough_memory(
    case: Case, work: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(case_runner, "read_for_model", too_large)
    status, entry = run_case(work, case, None, everywhere)
    assert (status, entry.failure) == ("failed", f"{case.scan[0]}: there is not enough memory for it")


def test_a_bug_costs_the_case_and_leaves_its_traceback(
    case: Case, work: WorkerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(_: object) -> NoReturn:
        raise KeyError("/folder/of/somebody")

    status, entry = run_case(work, case, None, bug)
    assert (status, entry.path, entry.reason) == (
        "failed",
        str(case.scan[0]),
        "unexpected KeyError; see the traceback above",
    )
    assert "KeyError: '/folder/of/somebody'" in capsys.readouterr().err
    assert not list(work.out.iterdir())


def test_a_scan_that_the_engine_refuses(case: Case, work: WorkerConfig) -> None:
    def refuse(_: object) -> NoReturn:
        raise ScanError("m.engine: slices of a chunk: found 9, expected 1 to 4")

    assert run_case(work, case, None, refuse)[1].failure == (
        f"{case.scan[0]}: m.engine: slices of a chunk: found 9, expected 1 to 4"
    )
