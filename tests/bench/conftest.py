"""The example's slices around the glands as bench takes scans, and processes that can import the tests."""

import os
import sys
from pathlib import Path

import nibabel
import pytest

from parotid_seg.bench.selection import in_memory
from parotid_seg.contract import Contract
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.scan.chunks import CroppedScan

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks" / "speed"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True)
def tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(BENCHMARKS))))


@pytest.fixture(scope="session")
def contract() -> Contract:
    return read_model(DEFAULT_MODEL).contract


@pytest.fixture(scope="session")
def scan(
    example: nibabel.Nifti1Image, around_glands: tuple[slice, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path]:
    """More than 16 slices, a usual batch."""
    path = tmp_path_factory.mktemp("bench") / "head.nii.gz"
    *plane, slices = around_glands
    nibabel.save(example.slicer[(*plane, slice(slices.start, slices.stop))], path)
    return (path,)


@pytest.fixture(scope="session")
def few(head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path]:
    """A scan of six slices that show the glands, where nothing is measured that depends on its size."""
    path = tmp_path_factory.mktemp("few") / "head.nii.gz"
    nibabel.save(head.slicer[:, :, 2:8], path)
    return (path,)


@pytest.fixture(scope="session")
def covered(scan: tuple[Path], contract: Contract) -> list[CroppedScan]:
    return in_memory([scan], contract)
