"""The example's slices around the glands as bench takes scans, and processes that can import the tests."""

import os
import sys
from pathlib import Path

import nibabel
import pytest

from parotid_seg.bench.inputs import in_memory
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True)
def tests_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(BENCHMARKS))))


@pytest.fixture(scope="session")
def contract():
    return read_model(DEFAULT_MODEL)[1]


@pytest.fixture(scope="session")
def scan(head, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "head.nii.gz"
    nibabel.save(head, path)
    return (path,)


@pytest.fixture(scope="session")
def covered(scan, contract):
    return in_memory([scan], contract)
